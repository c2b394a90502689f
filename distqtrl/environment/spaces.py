"""What a policy must know of an environment's spaces, and observations as flat float32 vectors."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, flatdim, flatten, flatten_space

from distqtrl.environment.factors import factors
from distqtrl.errors import UserError, nearest

Floats = npt.NDArray[np.float32]
Path = tuple[Any, ...]  # the keys that lead to a part of a Dict or Tuple
READ = (Box, Discrete, MultiDiscrete, MultiBinary)
WIDEST = 10_000_000  # numbers of an observation
MANY = 20
SINGLE = np.dtype(np.float32)


@dataclass(frozen=True)
class Spaces:
    """O, and the actions: discrete, bounds of a Box, or factors with so many choices each.

    masked: behind an observation there are ``num_masks`` numbers, 0 for a choice that there is not.
    image: frames, rows, columns and colours of an observation that is an image; else ().
    """

    num_observations: int
    num_actions: int | None
    action_start: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    factors: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    masked: bool = False
    image: tuple[int, ...] = ()

    @property
    def num_masks(self) -> int:
        """How many numbers of a mask follow an observation: one for every choice; 0 without masks."""
        return (self.num_actions or sum(self.factors)) if self.masked else 0

    @property
    def words(self) -> str:
        """The spaces in words, for a message."""
        actions = f"{self.num_actions} actions" if self.num_actions else f"Box{self.low} to {self.high}"
        if self.factors:
            actions = f"{len(self.factors)} choices among {', '.join(map(str, self.factors))}"
        return f"{self.num_observations} observations, {actions}{' and a mask' * self.masked}"


def spaces(observation: Space, action: Space, name: str) -> Spaces:
    """What a policy must know of a flat space and its actions; raises UserError for actions that no head fits."""
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


def part(space: Space, key: str | None, name: str) -> tuple[Space, Path]:
    """The part of an observation space at ``key`` (environment.observation; robot.position is in the Dict robot).

    Without a key it is the whole. Raises UserError for a part that is not there and for one that is not a vector of
    fixed length.
    """
    parts = _parts(space)
    path: Path = ()
    if key is not None:
        if key not in parts:
            known = nearest(key, parts if len(parts) <= MANY else _inner(space)) if parts else f"it observes {space}"
            raise UserError(f"{name}: environment.observation = '{key}' is not there: {known}")
        path, space = parts[key]
    odd = [(at, one) for at, one in _leaves(space) if not isinstance(one, READ)]
    if odd:
        good = [at for at, (_, one) in parts.items() if all(isinstance(leaf, READ) for _, leaf in _leaves(one))]
        remedy = f"set environment.observation to one of {', '.join(good[:MANY])}" if good else "wrap the environment"
        at, one = odd[0]
        where = f" at {'.'.join(str(x) for x in (*path, *at))}" if (*path, *at) else ""
        kind = f"{type(one).__name__}{where}"
        raise UserError(f"{name}: observation space {kind} is not a vector of fixed length: {remedy}")
    if not 0 < flatdim(space) <= WIDEST:
        raise UserError(
            f"{name}: observation space {short(space)} is {flatdim(space):,} numbers, one to {WIDEST:,} can be read: "
            "wrap the environment"
        )
    return space, path


def _inner(space: Space) -> dict[Any, Space]:
    if isinstance(space, Dict):
        return dict(space.spaces)
    return dict(enumerate(space.spaces)) if isinstance(space, Tuple) else {}


def _leaves(space: Space) -> Iterator[tuple[Path, Space]]:
    if not isinstance(space, Dict | Tuple):
        yield (), space
    for key, one in _inner(space).items():
        yield from (((key, *path), leaf) for path, leaf in _leaves(one))


def _parts(space: Space) -> dict[str, tuple[Path, Space]]:
    """Everything inside a Dict or Tuple by its dotted path; outer ones before what they hold."""
    found: dict[str, tuple[Path, Space]] = {}
    level: list[tuple[Path, Space]] = [((), space)]
    while level:
        level = [((*path, key), one) for path, outer in level for key, one in _inner(outer).items()]
        for path, one in level:
            found.setdefault(".".join(str(key) for key in path), (path, one))
    return found


def at(given: Any, path: Path) -> Any:
    """The part of an observation at a path; raises UserError where it is not there."""
    for depth, key in enumerate(path):
        try:
            given = given[key]
        except (LookupError, TypeError):
            where = ".".join(str(x) for x in path[: depth + 1])
            raise UserError(f"{short(given)}, in which there is no {where}") from None
    return given


def flattened(space: Space, image: tuple[int, ...], name: str) -> tuple[Box, Callable[[Any], Floats]]:
    """A flat Box for a space (whole numbers one-hot), and the function that copies its observations into vectors.

    That function raises UserError, beginning with what it was given in place of an observation of this space. image:
    rows and columns to which an image (H, W) or (H, W, colours) is averaged, in grey from 0 to 1; () keeps it.
    """
    if image:
        shape = space.shape or ()
        if not isinstance(space, Box) or len(shape) not in (2, 3) or shape[0] < image[0] or shape[1] < image[1]:
            raise UserError(
                f"{name}: environment.image = {image} needs an image of that size or more, not {short(space)}"
            )
        rows, columns = (np.arange(n) * size // n for n, size in zip(image, shape, strict=False))
        brightest = float(space.high.max())
        if not 0 < brightest < np.inf:
            raise UserError(f"{name}: environment.image = {image} needs an image of bounded brightness, not {space}")
        read = _box(space)
        return Box(0, 1, (image[0] * image[1],)), lambda x: _averaged(read(x), rows, columns) / np.float32(brightest)
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    if isinstance(space, Box):
        read = _box(space)
        return flat, read if len(space.shape) == 1 else lambda x: read(x).reshape(-1)
    if isinstance(space, Discrete):
        return flat, _one_hot(space)
    exact = _unrounded(space)
    return flat, lambda x: np.asarray(flatten(exact, _fitted(exact, x, ())), dtype=np.float32)


def picture(space: Space, image: tuple[int, ...]) -> tuple[int, ...]:
    """Rows, columns and colours of what ``flattened`` reads, where it is an image; else ()."""
    if image:
        return (*image, 1)
    shape = space.shape if isinstance(space, Box) else ()
    return (*shape, 1)[:3] if len(shape) in (2, 3) else ()


def _one_hot(space: Discrete) -> Callable[[Any], Floats]:
    """What makes a number of a Discrete space one-hot."""
    start, num = int(space.start), int(space.n)

    def read(given: Any) -> Floats:
        place = (given if type(given) is int else int(_fitted(space, given, ()))) - start
        if not 0 <= place < num:
            raise UserError(f"{short(given)}, its space said {space}")
        x_O = np.zeros(num, dtype=np.float32)
        x_O[place] = 1
        return x_O

    return read


def _box(space: Box) -> Callable[[Any], Floats]:
    """What copies an observation of a Box into an array of its own, of the same shape."""
    shape = space.shape

    def read(given: Any) -> Floats:
        if type(given) is np.ndarray and given.dtype is SINGLE:
            x: Floats = given.copy()
        else:
            try:
                array = np.asarray(detached(given))
                with np.errstate(over="ignore"):  # becomes infinite, which is refused
                    x = array.astype(np.float32) if array.dtype.kind in "biufO" else np.zeros((), np.float32)
            except (TypeError, ValueError):  # rows of unequal lengths, words
                x = np.zeros((), np.float32)
        if x.shape != shape:
            if isinstance(given, np.ndarray) and given.shape == shape:  # complex numbers, records
                raise UserError(f"{short(given)} and type {given.dtype}, its space said {space.dtype}")
            raise UserError(f"{f'shape {x.shape}' if x.ndim else short(given)}, its space said shape {shape}")
        return x

    return read


def detached(given: Any) -> Any:
    """A tensor without its graph, which NumPy takes; anything else as it is."""
    return given.detach() if hasattr(given, "detach") else given


def _unrounded(space: Space) -> Space:
    """The same space with float32 Boxes, so that flattening rounds no number to a type of whole ones."""
    if isinstance(space, Dict):
        return Dict([(key, _unrounded(one)) for key, one in space.spaces.items()])
    if isinstance(space, Tuple):
        return Tuple([_unrounded(one) for one in space.spaces])
    return Box(-np.inf, np.inf, space.shape, np.float32) if isinstance(space, Box) else space


def _fitted(space: Space, given: Any, path: Path) -> Any:
    """An observation as Gymnasium flattens it; raises UserError for one that is not of its space."""
    if isinstance(space, Dict | Tuple):
        inner, kind = _inner(space), Mapping if isinstance(space, Dict) else tuple | list
        if not isinstance(given, kind) or (isinstance(space, Tuple) and len(given) != len(inner)):
            where = f" at {'.'.join(map(str, path))}" if path else ""
            raise UserError(f"{short(given)}{where}, its space said {type(space).__name__} of {len(inner)}")
        own = {key: _fitted(one, at(given, (key,)), (*path, key)) for key, one in inner.items()}
        return own if isinstance(space, Dict) else tuple(own.values())
    where = f" at {'.'.join(map(str, path))}" if path else ""
    if isinstance(space, Box):
        try:
            return _box(space)(given)
        except UserError as error:
            raise UserError(f"{error}{where}") from None
    x = np.asarray(given)
    if isinstance(space, Discrete) and x.size == 1:
        x = x.reshape(())
    with np.errstate(invalid="ignore"):
        whole = x.astype(space.dtype) if x.dtype.kind in "biuf" else None
    if whole is None or (whole != x).any() or not space.contains(whole):
        shown = short(x.tolist()) if x.size <= 16 else short(given)
        raise UserError(f"{shown}{where}, its space said {space}")
    return whole


def _averaged(grey: Floats, rows: np.ndarray, columns: np.ndarray) -> Floats:
    """Means over blocks that begin at these rows and columns, and over colours."""
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    heights, widths = np.diff([*rows, grey.shape[0]]), np.diff([*columns, grey.shape[1]])
    out: Floats = (sums / np.outer(heights, widths)).astype(np.float32).reshape(-1)
    return out


def short(given: Any, most: int = 60) -> str:
    """A short description of any value, for a message."""
    if isinstance(given, np.ndarray) and given.size > 1:
        return f"an array of shape {given.shape}"
    try:
        text = " ".join(repr(given).split())
    except Exception:  # somebody's object
        text = "something"
    return f"{text if len(text) <= most else f'{text[:most]}...'} ({type(given).__name__})"
