"""A film for a page: an episode's GIF, made small enough to be kept beside its numbers."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from distqtrl.report import animation

MOST_BYTES = 60_000
PICTURES, SHORTEST_MS = 60, 100  # pictures of a film at most; how long each stands at least
LAST = 10  # times as long as the others: films begin again at once
SIZES = (  # pixels of width, colours, pictures at most: the first that is small enough is taken
    *((240, 64, PICTURES), (240, 32, PICTURES), (200, 32, PICTURES), (160, 32, PICTURES), (160, 16, PICTURES)),
    *((160, 16, 40), (160, 16, 30), (120, 16, 40), (120, 16, 20), (80, 16, 20), (80, 8, 10)),
)


def small(path: Path) -> tuple[bytes, float]:
    """The beginning of a GIF at its own pace, in MOST_BYTES or fewer, and what share of its time is shown."""
    with Image.open(path) as gif:
        ends_ms = np.cumsum([_ms(frame) for frame in ImageSequence.Iterator(gif)])
        pace_ms = max(SHORTEST_MS, int(np.diff(ends_ms, prepend=0).min()))
        starts_ms = np.arange(0, ends_ms[-1], pace_ms)
        shown = np.searchsorted(ends_ms, starts_ms, side="right")
        shown[-1] = len(ends_ms) - 1  # how it ends
        shown = shown[:PICTURES]
        frames = {i: frame.convert("RGB") for i, frame in enumerate(ImageSequence.Iterator(gif)) if i in shown}
    for width, colours, most in SIZES:
        pictures = _alike([frames[i] for i in shown[:most]], width, colours)
        made = animation.gif([*pictures, *[pictures[-1]] * (LAST - 1)], 1000 / pace_ms)
        if len(made) <= MOST_BYTES:
            return made, len(pictures) / len(starts_ms)
    raise ValueError(f"{path} cannot be made smaller than {len(made):,} bytes")


def _ms(frame: Image.Image) -> int:
    return frame.info.get("duration", SHORTEST_MS)


def _alike(pictures: list[Image.Image], width: int, colours: int) -> list[Image.Image]:
    """At most this wide, in the same few colours, so that what stays is not stored again."""
    size = min(width, pictures[0].width), max(1, round(pictures[0].height * min(1, width / pictures[0].width)))
    smaller = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    some = smaller[:: max(1, len(smaller) // 8)]
    strip = Image.new("RGB", (size[0] * len(some), size[1]))
    for number, picture in enumerate(some):
        strip.paste(picture, (number * size[0], 0))
    palette = strip.quantize(colours)
    return [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in smaller]
