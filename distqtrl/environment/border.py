"""The border to an environment: whatever crosses it is checked against its space, copied and converted here.

This is the only such place, for Gymnasium and PettingZoo alike. A message says what was wrong; ``vector`` prefixes the
copy, seed and step at which it was.
"""

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete

from distqtrl.config import stages as configuration
from distqtrl.environment.factors import KEY, factors, taken, unmasked
from distqtrl.environment.spaces import Floats, at, detached, flattened, part, picture, short, spaces
from distqtrl.errors import UserError

EXACT = 1 << 24  # float32 has every integer up to here
LETTERS = 1000  # of a name that a policy file holds


class Port:
    """Where one agent's observations come in and its actions go out.

    Observations are flat float32 vectors of their own, the last ``frames`` of them one behind the other. Raises
    UserError for spaces that no policy can be made for, and for an observation that does not fit its space.
    """

    def __init__(self, observation: Space, action: Space, config: configuration.Environment, who: str) -> None:
        self._who, self._depth = who, config.frames
        rest, self._mask = unmasked(observation, action, config.num_actions, who)
        seen, self._path = part(rest, config.observation, who)
        flat, self._flatten = flattened(seen, config.image, who)
        chosen = _first(action, config.num_actions, who)
        one = spaces(flat, chosen, who)
        num = one.num_observations * config.frames
        image = picture(seen, config.image)
        image = (config.frames, *image) if image else ()
        self.spaces = replace(one, num_observations=num, masked=self._mask is not None, image=image)
        self.action = taker(chosen, who)
        self._frames = deque[Floats](maxlen=self._depth)

    def forget(self) -> None:
        """Begin an episode: its first observation fills all frames."""
        self._frames.clear()

    def nothing(self) -> Floats:
        """What the policy sees where nothing is observed: zeros; what follows is a first observation."""
        self.forget()
        return np.zeros(self.spaces.num_observations + self.spaces.num_masks, dtype=np.float32)

    def observation(self, given: Any) -> Floats:
        """What the policy sees, and behind it the mask of its actions, where there is one."""
        mask, remedy = None, ""
        try:
            if self._mask is not None:
                mask = self._mask(at(given, (KEY,)))
            remedy = ": fix the environment"
            x_O = self._flatten(at(given, self._path) if self._path else given)
        except UserError as error:
            if "its space said shape" in str(error):
                remedy = ": spaces must stay as they are at the start; pad observations to the largest"
            raise UserError(f"{self._who} observes {error}{remedy}") from None
        if self._depth > 1:
            self._frames.extend([x_O] * (1 if self._frames else self._depth))
            x_O = np.concatenate(self._frames)
        return x_O if mask is None else np.concatenate([x_O, mask])


def _first(space: Space, num: int | None, who: str) -> Space:
    """The actions that the policy chooses from: all, or the first environment.num_actions."""
    if num is None:
        return space
    if not isinstance(space, Discrete) or num > space.n:
        raise UserError(f"{who}: environment.num_actions = {num} does not fit its actions, {space}")
    return Discrete(num, start=space.start)


def taker(space: Space, who: str) -> Callable[[Any], Any]:
    """A function from a policy's action (a number, or a row of A or more) to one of this space, in its type and bounds.

    A Box of integers gets the nearest ones. Raises UserError where float32 does not have all of them.
    """
    if isinstance(space, Discrete):
        start, end, kind = int(space.start), int(space.start) + int(space.n), space.dtype.type

        def chosen(action: Any) -> Any:
            number = int(action[0] if isinstance(action, np.ndarray) and action.ndim else action)
            if not start <= number < end:
                raise UserError(f"{who}: action {number} is not in {space}: the policy is another environment's")
            return kind(number)

        return chosen
    if found := factors(space):
        sizes_F, starts_F = (np.array(one) for one in found)

        def several(action: Any) -> Any:
            row_F = action[: len(sizes_F)]
            if ((row_F < starts_F) | (row_F >= starts_F + sizes_F)).any():
                raise UserError(
                    f"{who}: action {row_F.tolist()} is not in {space}: the policy is another environment's"
                )
            return taken(space, row_F)

        return several
    assert isinstance(space, Box)
    low_A, high_A, num, dtype = space.low, space.high, len(space.low), space.dtype
    if dtype.kind in "iub":
        if max(abs(int(low_A.min())), abs(int(high_A.max()))) > EXACT:
            raise UserError(
                f"{who}: action space {space} has integers beyond {EXACT}, which float32 cannot tell apart: make the "
                "environment take a smaller Box and scale it itself"
            )
        return lambda action: np.clip(np.rint(action[:num]), low_A, high_A).astype(dtype)

    def bounded(action: Any) -> Any:
        own_A = np.minimum(np.maximum(action[:num], low_A), high_A)
        return own_A if own_A.dtype is dtype else own_A.astype(dtype)

    return bounded


def number(given: Any, *where: str) -> float:
    """A reward as a float, whatever holds its one element; raises UserError for anything else, NaN and infinity."""
    if not isinstance(given, float):
        try:
            array = np.asarray(detached(given))
            fits = array.size == 1 and array.dtype.kind in "biufO" and given is not np.ma.masked
            value = float(array.reshape(())[()]) if fits else None
        except Exception:  # None, a word, an object of somebody's
            value = None
        if value is None:
            raise UserError(f"{': '.join(where)} is {short(given)}: fix the environment, a reward is one number")
        given = value
    if not math.isfinite(given):
        raise UserError(f"{': '.join(where)} is {given}, which is not finite: fix the environment")
    return float(given)


def flag(given: Any, *where: str) -> bool:
    """Whether an episode ended, as one true or false; raises UserError for anything else."""
    try:
        array = np.asarray(given)
        fits = array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1)
    except Exception:  # ragged lists, an object of somebody's
        fits = False
    if not fits:
        raise UserError(f"{': '.join(where)} is {short(given)}: fix the environment, it is True or False")
    return bool(array.item())


def parts(given: Any, names: tuple[str, ...], call: str, who: str) -> Any:
    """What reset() or step() returned, a tuple of ``names``; raises UserError for anything else."""
    if not isinstance(given, (tuple, list)) or len(given) != len(names):
        raise UserError(f"{who}: {call} gives {short(given)} instead of {len(names)} things, {', '.join(names)}")
    return given


def by_agent(given: Any, agents: frozenset[Any], what: str, who: str) -> dict[Any, Any]:
    """A value per agent; raises UserError unless it is a dictionary whose keys are some of these agents."""
    if not isinstance(given, dict):
        raise UserError(f"{who}: {what} are {short(given)} instead of a dictionary by agent: fix the environment")
    if not given.keys() <= agents:
        odd = sorted(str(agent) for agent in given.keys() - agents)[0]
        remedy = "leave it out, each agent has its own" if odd == "__all__" else "add it there"
        raise UserError(f"{who}: {what} name agent {odd}, which is not in possible_agents: {remedy}")
    return given


def state(given: Any, width: int | None, who: str) -> Floats:
    """What a centralised critic sees, ``width`` numbers where that is known; raises UserError for anything else."""
    x = _floats(given)
    if x is None:
        raise UserError(
            f"{who}: state() gives {short(given)} instead of an array of numbers: fix it, or set agents.critic to "
            "independent"
        )
    if width is not None and x.size != width:
        raise UserError(f"{who}: state() gives {x.size} numbers, {width} were expected: fix it, or its state_space")
    if not np.isfinite(x).all():
        raise UserError(f"{who}: state() is not finite, {short(x.tolist())}: fix the environment")
    return x


def _floats(given: Any) -> Floats | None:
    try:
        array = np.asarray(given)
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return array.astype(np.float32).reshape(-1) if array.dtype.kind in "biuf" and array.size else None
    except Exception:
        return None


def agents(given: Any, who: str) -> tuple[str, ...]:
    """The names of the possible agents, in order; raises UserError unless they are a list of distinct ones."""
    if not isinstance(given, list | tuple):
        why = ", whose order differs from process to process" if isinstance(given, set | frozenset) else ""
        raise UserError(f"{who}: possible_agents is a {type(given).__name__}{why}: make it a list")
    names = tuple(str(agent) for agent in given)
    if not names:
        raise UserError(f"{who}: possible_agents is empty: name the agents there before reset")
    for name, agent in zip(names, given, strict=True):
        if not name or names.count(name) > 1:
            same = " and ".join(repr(other) for other in given if str(other) == name)
            why = f"names agents alike, {same}" if name else f"has an agent without a name, {agent!r}"
            raise UserError(f"{who}: possible_agents {why}: give every agent a name of its own")
        if len(name) > LETTERS or not name.isprintable() or not _hashable(agent):
            raise UserError(
                f"{who}: possible_agents has {short(agent)}: name it by at most {LETTERS} printable letters"
            )
    return names


def acting(given: Any, possible: frozenset[Any], who: str) -> set[Any]:
    """The agents that act; raises UserError unless they are a collection of possible ones."""
    try:
        now = set(given) if isinstance(given, Collection) and not isinstance(given, str) else None
    except TypeError:  # some cannot be a key
        now = None
    if now is None:
        raise UserError(f"{who}: agents is {short(given)}: make it a list of those that act")
    if not now <= possible:
        odd = sorted(str(agent) for agent in now - possible)
        raise UserError(f"{who}: agent {odd[0]} is not in possible_agents: add it there")
    return now


def _hashable(agent: Any) -> bool:
    try:
        hash(agent)
    except Exception:
        return False
    return True
