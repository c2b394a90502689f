"""What a policy must know of an environment's spaces, and observations as flat float32 vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, flatten, flatten_space

from distqtrl.config import UserError, nearest
from distqtrl.environment.factors import factors

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spaces:
    """O, and the actions: discrete, bounds of a Box, or factors with so many choices each.

    masked: behind an observation there are ``num_masks`` numbers, 0 for a choice that there is not.
    """

    num_observations: int
    num_actions: int | None
    action_start: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    factors: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    masked: bool = False

    @property
    def num_masks(self) -> int:
        """One for every choice, where there are masks."""
        return (self.num_actions or sum(self.factors)) if self.masked else 0

    @property
    def words(self) -> str:
        """For people."""
        actions = f"{self.num_actions} actions" if self.num_actions else f"Box{self.low} to {self.high}"
        if self.factors:
            actions = f"{len(self.factors)} choices among {', '.join(map(str, self.factors))}"
        return f"{self.num_observations} observations, {actions}{' and a mask' * self.masked}"


def spaces(observation: Space, action: Space, name: str) -> Spaces:
    """Of a flat observation space; raises UserError for actions that no head is made for."""
    assert observation.shape is not None
    num_observations = observation.shape[0]
    if isinstance(action, Discrete):
        return Spaces(num_observations, int(action.n), int(action.start), (), ())
    if found := factors(action):
        return Spaces(num_observations, None, 0, (), (), *found)
    if isinstance(action, Box) and len(action.shape) == 1 and action.shape[0] and action.is_bounded():
        low, high = (tuple(float(x) for x in bound) for bound in (action.low, action.high))
        return Spaces(num_observations, None, 0, low, high)
    raise UserError(
        f"{name}: action space {action} is not supported; use Discrete, MultiDiscrete, MultiBinary or a bounded "
        "one-dimensional Box"
    )


def sole(space: Space, key: str | None) -> str | None:
    """environment.observation, or where it is not given and there is one part beside a mask, that part's."""
    return next(iter(space.spaces)) if key is None and isinstance(space, Dict) and len(space.spaces) == 1 else key


def part(space: Space, key: str | None, name: str) -> Space:
    """The observation space, or its part ``key`` (environment.observation); raises UserError unless Box or Discrete."""
    if key is not None:
        if not isinstance(space, Dict) or key not in space.spaces:
            known = nearest(key, space.spaces) if isinstance(space, Dict) else f"it observes {space}"
            raise UserError(f"{name}: environment.observation = '{key}' is not there: {known}")
        space = space[key]
    if isinstance(space, Dict):
        raise UserError(
            f"{name}: observation space Dict: set environment.observation to one of {', '.join(space.spaces)}"
        )
    if not isinstance(space, Box | Discrete):
        raise UserError(f"{name}: observation space {space} is not supported; use one with a Box or Discrete space")
    return space


def flattened(space: Space, image: tuple[int, ...], name: str) -> tuple[Box, Callable[[Any], Floats]]:
    """A flat Box for a Box or Discrete space (one-hot), and the function that makes its observations.

    image: rows and columns to which an image (H, W) or (H, W, colours) is averaged, in grey from 0 to 1; () keeps it.
    """
    if image:
        shape = space.shape or ()
        if not isinstance(space, Box) or len(shape) not in (2, 3) or shape[0] < image[0] or shape[1] < image[1]:
            raise UserError(f"{name}: environment.image = {image} needs an image of that size or more, not {space}")
        rows, columns = (np.arange(n) * size // n for n, size in zip(image, shape, strict=False))
        brightest = float(space.high.max())
        return Box(0, 1, (image[0] * image[1],)), lambda x: _averaged(x, rows, columns) / np.float32(brightest)
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    if isinstance(space, Box):
        return flat, lambda x: np.asarray(x, dtype=np.float32).reshape(-1)
    return flat, lambda x: np.asarray(flatten(space, x), dtype=np.float32)


def _averaged(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Floats:
    """Means over blocks that begin at these rows and columns, and over colours."""
    grey = np.asarray(x, dtype=np.float32)
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    heights, widths = np.diff([*rows, grey.shape[0]]), np.diff([*columns, grey.shape[1]])
    out: Floats = (sums / np.outer(heights, widths)).astype(np.float32).reshape(-1)
    return out
