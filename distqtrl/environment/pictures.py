"""Pictures that environments draw of themselves: RGB, (H, W, 3) uint8."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import DependencyNotInstalled

from distqtrl.environment.failures import failure
from distqtrl.errors import UserError

Picture = npt.NDArray[np.uint8]


def check(metadata: dict[str, Any], name: str) -> None:
    """Raise UserError for an environment that draws no pictures."""
    modes = metadata.get("render_modes") or ()
    if "rgb_array" not in modes:
        known = ", ".join(map(str, modes)) or "none"
        raise UserError(f"{name} draws no pictures: rgb_array is not among its render modes ({known})")


def picture(render: Callable[[], Any], name: str) -> Picture:
    """What render() draws; raises UserError where it fails (no pygame, no OpenGL), or that is not a picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's, of environments that do not say how fast they are
            drawn = render()
    except BaseException as error:  # what draws is any library's, and may fail with any exception
        if isinstance(error, DependencyNotInstalled) and "pygame" in str(error):
            raise UserError(f"{name} cannot be drawn without pygame: pip install 'distqtrl[pictures]'") from None
        raise failure(error, f"{name} cannot be drawn") or error from None
    if not isinstance(drawn, np.ndarray):
        raise UserError(f"{name} cannot be drawn: it gives a {type(drawn).__name__} in place of an array")
    if drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[2] != 3:
        raise UserError(f"{name} cannot be drawn: it gives {drawn.shape} of {drawn.dtype}, not (H, W, 3) of uint8")
    return drawn
