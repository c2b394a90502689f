"""Actions that are several choices at once (MultiDiscrete, MultiBinary), and masks of the choices that there are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.spaces import Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from distqtrl.errors import UserError

Floats = npt.NDArray[np.float32]
KEY = "action_mask"  # Gymnasium's and PettingZoo's word for it
Ints = tuple[int, ...]


def factors(space: Space) -> tuple[Ints, Ints] | None:
    """How many choices every factor has and the number of its first one; None for a space that is no such product.

    >>> factors(MultiDiscrete([3, 2], start=[0, 5])), factors(MultiBinary(3)), factors(Discrete(4))
    (((3, 2), (0, 5)), ((2, 2, 2), (0, 0, 0)), None)
    """
    if isinstance(space, MultiDiscrete):
        sizes, starts = (tuple(int(x) for x in each.ravel()) for each in (space.nvec, space.start))
        return sizes, starts
    if isinstance(space, MultiBinary):
        num = int(np.prod(space.shape))
        return (2,) * num, (0,) * num
    return None


def taken(space: Space, row: np.ndarray) -> npt.NDArray[np.integer]:
    """A row of one number per factor, or more, as an action of the space: in its type and shape.

    >>> taken(MultiBinary((2, 2)), np.array([1, 0, 0, 1, 0])).tolist()
    [[1, 0], [0, 1]]
    """
    assert space.shape is not None
    return row[: int(np.prod(space.shape))].astype(space.dtype).reshape(space.shape)


def unmasked(
    observation: Space, action: Space, num: int | None, who: str
) -> tuple[Space, Callable[[Any], Floats] | None]:
    """The observation space without its action mask, and what reads that mask: float32, 1 for a choice
    that there is, 0 for one that is not; None where a Dict has no action_mask, or the actions are not chosen.

    Several factors have their masks one after the other. num: of the actions that the policy may choose from, where
    those are only the first ones. Raises UserError for a mask that is not of one number per choice; so does reading.
    """
    size = int(action.n) if isinstance(action, Discrete) else sum((factors(action) or ((), ()))[0])
    if not isinstance(observation, Dict) or KEY not in observation.spaces or not size:
        return observation, None
    space = observation[KEY]
    parts = space.spaces if isinstance(space, Tuple) else [space]
    found = sum(int(np.prod(part.shape or ())) for part in parts)
    if found != size:
        raise UserError(f"{who}: {KEY} has {found} numbers, {action} has {size} choices: make it one number per choice")

    def read(mask: Any) -> Floats:
        x = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        if x.size != size or x.dtype.kind not in "biuf" or not ((x == 0) | (x == 1)).all():
            raise UserError(f"{who}: {KEY} is {x.tolist()}: give {size} numbers, each 0 or 1")
        return x[:num].astype(np.float32)

    return Dict([(key, one) for key, one in observation.spaces.items() if key != KEY]), read
