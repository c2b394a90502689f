"""A film for a page: an episode's GIF, made small enough to be kept beside its numbers."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from distqtrl.report import animation

MOST_BYTES = 60_000
PICTURES, SHORTEST_MS = 60, 100  # pictures of a film at most; how long each stands at least
SIZES = (  # pixels of width, colours, one picture in so many: the first that is small enough is taken
    *((240, 64, 1), (240, 32, 1), (200, 32, 1), (160, 32, 1), (160, 16, 1), (120, 16, 1)),
    *((160, 16, 2), (120, 16, 2), (120, 16, 3), (80, 16, 3), (80, 8, 4)),
)


def small(path: Path) -> tuple[bytes, float]:
    """The beginning of a GIF at its own pace, in MOST_BYTES or fewer, and what share of its time is shown."""
    with Image.open(path) as gif:
        ends_ms = np.cumsum([_ms(frame) for frame in ImageSequence.Iterator(gif)])
        pace_ms = max(SHORTEST_MS, int(np.diff(ends_ms, prepend=0).min()))
        starts_ms = np.arange(0, ends_ms[-1], pace_ms)[:PICTURES]
        shown = np.searchsorted(ends_ms, starts_ms, side="right")
        share = min(1.0, len(shown) * pace_ms / float(ends_ms[-1]))
        if share == 1:
            shown[-1] = len(ends_ms) - 1  # how it ends
        frames = {i: frame.convert("RGB") for i, frame in enumerate(ImageSequence.Iterator(gif)) if i in shown}
    for width, colours, every in SIZES:
        pictures = [frames[i] for i in (*shown[:-1:every], shown[-1])]
        made = animation.gif(_alike(pictures, width, colours), 1000 / (every * pace_ms))
        if len(made) <= MOST_BYTES:
            return made, share
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
