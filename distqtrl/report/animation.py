"""One greedy episode as an animated GIF."""

import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from distqtrl.config import stages as configuration
from distqtrl.environment.pictures import Picture
from distqtrl.environment.rollout import bound, play
from distqtrl.environment.vector import Environments, Role
from distqtrl.errors import UserError
from distqtrl.files.replace import replace

WIDTH = 480  # pixels; what is wider is made smaller
FPS = 10  # where the environment does not say
FASTEST = 50  # frames a second; programs that show GIFs slow down what is faster


def record(
    path: Path,
    environment: configuration.Environment,
    seed: int,
    roles: Sequence[Role],
    acts: Sequence[Callable[[np.ndarray], np.ndarray]],
    max_steps: int | None = None,
) -> float:
    """Write the first episode of an evaluation with this seed, whole or not at all; returns its return.

    acts: see ``Environments.acting``; max_steps: see ``rollout.bound``. Raises UserError for a path that does not name
    a GIF, and for an environment that draws nothing.
    """
    if path.suffix.lower() != ".gif":
        raise UserError(f"--gif {path} does not end in .gif")
    if not path.parent.is_dir() or path.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"--gif {path} cannot be written: {reason}")
    frames: list[Image.Image] = []
    whole = path.absolute()  # an environment may change the folder
    with _no_screen():
        environments = Environments(
            environment, [0], seed, "evaluation", 0, roles, film=lambda picture: frames.append(_frame(picture))
        )
        with closing(environments):
            most = bound(environments, max_steps)
            returns_B, _ = play(environments, environments.acting(acts), most)
            fps = _number(environments.envs[0].metadata.get("render_fps")) or FPS
    replace(whole, gif(frames, fps))
    return float(returns_B.mean())


def _number(given: object) -> float:
    """What metadata says of frames per second; 0: nothing that can be used."""
    return float(given) if isinstance(given, int | float) and 0 < given < math.inf else 0.0


def gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    """The frames at this pace, without end; some are left out where it is too fast, the last one never is."""
    every = math.ceil(fps / FASTEST)
    first, *others = [*frames[:-1:every], frames[-1]]
    hundredths = max(100 // FASTEST, round(100 * every / fps))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=10 * hundredths, loop=0)
    return file.getvalue()


def _frame(picture: Picture) -> Image.Image:
    """At most WIDTH wide, in 256 colours: an episode of thousands has to fit in memory."""
    image = Image.fromarray(picture)
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    return image.quantize(dither=Image.Dither.NONE)


@contextmanager
def _no_screen() -> Iterator[None]:
    """pygame (SDL) and MuJoCo draw into memory, silently, where they are not told otherwise."""
    wanted = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        wanted["MUJOCO_GL"] = "egl"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
