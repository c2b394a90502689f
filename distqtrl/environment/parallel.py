"""A PettingZoo parallel environment: several agents act at once, may come and go, and may differ in their spaces."""

import importlib
import pkgutil
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distqtrl import config as configuration
from distqtrl.config import UserError, nearest
from distqtrl.environment.pictures import Picture, picture
from distqtrl.environment.spaces import Floats, Spaces, flattened, part, spaces

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv

Flags = npt.NDArray[np.bool_]
Stepped = tuple[list[Floats], npt.NDArray[np.float64], Flags, Flags, Flags]


def is_parallel(name: str) -> bool:
    """Whether an environment.id is of the form package.module/environment_v0, which Gymnasium's are not.

    >>> is_parallel("mpe2/simple_spread_v3"), is_parallel("ALE/Pong-v5"), is_parallel("minigrid:MiniGrid-Empty-5x5-v0")
    (True, False, False)
    """
    return "/" in name and not re.search(r"-v\d+$", name)


class Parallel:
    """An environment with G agents (see vector.World).

    An agent that leaves without a word has terminated, and one of whom nothing is said observes zeros. Raises UserError
    for what no policy could be trained in.
    """

    def __init__(self, config: configuration.Environment, render: bool = False) -> None:
        self.env, self._name, self._limit = _made(config, render), config.id, config.max_episode_steps
        self.metadata: dict[str, Any] = getattr(self.env, "metadata", {})
        self.agents: tuple[str, ...] = tuple(str(agent) for agent in self.env.possible_agents)
        self._keys = list(self.env.possible_agents)
        self._part, self._readers, found = config.observation, list[Callable[[Any], Floats]](), list[Spaces]()
        for key, agent in zip(self._keys, self.agents, strict=True):
            who = f"{config.id}, agent {agent}"
            space, action = part(self.env.observation_space(key), config.observation, who), self.env.action_space(key)
            if action is None:
                raise UserError(f"{who} has no action: give it a space, or leave it out of possible_agents")
            flat, reader = flattened(space, config.image, who)
            one = spaces(flat, action, who)
            found.append(replace(one, num_observations=one.num_observations * config.frames))
            self._readers.append(reader)
        self.spaces = tuple(found)
        self._frames = [deque[Floats](maxlen=config.frames) for _ in self.agents]
        self._steps = 0

    def reset(self, seed: int) -> tuple[list[Floats], Flags]:
        """What every agent observes, and which ones act."""
        observed, _ = self.env.reset(seed=seed)
        self._steps = 0
        for frames in self._frames:
            frames.clear()
        acts_G = self._acting()
        if not acts_G.any():
            raise UserError(f"{self._name}: no agent acts after reset: mend the environment's agents")
        return self._observations(observed), acts_G

    def step(self, actions_G: Sequence[Any]) -> Stepped:
        """Observations (final for an agent that ended), rewards, terminated, truncated, and who acts next."""
        acted_G = self._acting()
        given = {
            key: self._action(space, actions_G[g])
            for g, (key, space) in enumerate(zip(self._keys, self.spaces, strict=True))
            if acted_G[g]
        }
        observed, rewards, terminated, truncated, _ = self.env.step(given)
        self._steps += 1
        acts_G = self._acting()
        rewards_G = np.array([rewards.get(key, 0.0) for key in self._keys], dtype=np.float64)
        terminated_G, truncated_G = (
            np.array([bool(ends.get(key, False)) for key in self._keys]) for ends in (terminated, truncated)
        )
        acts_G &= ~(terminated_G | truncated_G)
        if self._limit is not None and self._steps >= self._limit:
            truncated_G |= acts_G
            acts_G[:] = False
        terminated_G |= acted_G & ~acts_G & ~truncated_G
        return self._observations(observed), rewards_G, terminated_G & acted_G, truncated_G & acted_G, acts_G

    def state(self) -> Floats | None:
        """The environment's own state; none where it has none."""
        try:
            return np.asarray(self.env.state(), dtype=np.float32).reshape(-1)
        except NotImplementedError:
            return None

    def render(self) -> Picture:
        return picture(self.env.render, self._name)

    def close(self) -> None:
        self.env.close()

    def _acting(self) -> Flags:
        now = set(self.env.agents)
        if not now <= set(self._keys):
            odd = sorted(str(agent) for agent in now - set(self._keys))
            raise UserError(f"{self._name}: agent {odd[0]} is not in possible_agents: add it there")
        return np.array([key in now for key in self._keys])

    def _observations(self, observed: dict[Any, Any]) -> list[Floats]:
        return [self._observation(g, observed.get(key)) for g, key in enumerate(self._keys)]

    def _observation(self, g: int, given: Any) -> Floats:
        num, frames = self.spaces[g].num_observations, self._frames[g]
        if given is None:
            frames.clear()
            return np.zeros(num, dtype=np.float32)
        x = self._readers[g](given if self._part is None else given[self._part])
        depth = frames.maxlen or 1
        if x.size * depth != num:
            raise UserError(
                f"{self._name}, agent {self.agents[g]} observes {x.size} numbers, its space said {num // depth}: "
                "spaces must stay as they are at the start; pad observations to the largest"
            )
        if depth == 1:
            return x
        frames.extend([x] * (1 if frames else depth))
        return np.concatenate(frames)

    @staticmethod
    def _action(space: Spaces, action: Any) -> Any:
        """One agent's row of the actions of all, as its space wants it."""
        if space.num_actions is None:
            return np.asarray(action[: len(space.low)], dtype=np.float32)
        return int(action if np.ndim(action) == 0 else action[0])


def _made(config: configuration.Environment, render: bool) -> "ParallelEnv":
    """The environment of an id; raises UserError when there is none, or it is no parallel one."""
    name, (folder, _, last) = config.id, config.id.rpartition("/")
    maker = _maker(name, folder.replace("/", "."), last)
    more = {"render_mode": "rgb_array"} if render else {}
    try:
        env = maker(**{**config.kwargs, **more})
    except Exception as error:  # an environment may refuse its arguments with any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"environment.id = '{name}' (kwargs {config.kwargs}) cannot be made: {reason}") from None
    if config.num_actions is not None:
        raise UserError(
            f"environment.num_actions is for Gymnasium's environments, {name} has several agents: remove it"
        )
    if not all(hasattr(env, part) for part in ("possible_agents", "observation_space", "action_space", "step")):
        raise UserError(f"environment.id = '{name}' makes a {type(env).__name__}, which is no PettingZoo ParallelEnv")
    if hasattr(env, "agent_iter"):
        raise UserError(f"environment.id = '{name}' {AEC}")
    return env


INSTALL = "pip install 'distqtrl[marl]'"
AEC = (
    "is an AEC environment, whose agents take turns: name a function that returns "
    "pettingzoo.utils.conversions.aec_to_parallel(env), where its rules allow that"
)


def _maker(name: str, module: str, last: str) -> Callable[..., Any]:
    """``parallel_env`` of module.last, or the function ``last`` of module; PettingZoo's own come from its registry."""
    if module.startswith("pettingzoo."):
        return _registered(name, f"{module.removeprefix('pettingzoo.')}/{last}")
    whole = f"{module}.{last}"
    try:
        found = importlib.import_module(whole)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{whole}.".startswith(f"{error.name}."):
            raise UserError(f"environment.id = '{name}' cannot be imported ({error}): install that package") from None
        return _function(name, module, last, error)
    if not hasattr(found, "parallel_env"):
        raise UserError(f"environment.id = '{name}' " + (AEC if hasattr(found, "env") else "has no parallel_env"))
    maker: Callable[..., Any] = found.parallel_env
    return maker


def _registered(name: str, key: str) -> Callable[..., Any]:
    try:
        import pettingzoo
        from pettingzoo.env_registry.exceptions import PettingZooRegistryError
    except ImportError as error:
        raise UserError(f"environment.id = '{name}' cannot be made ({error}): {INSTALL}") from None
    try:
        pettingzoo.spec("parallel", key)
    except PettingZooRegistryError as error:
        with suppress(PettingZooRegistryError):
            pettingzoo.spec("aec", key)
            raise UserError(f"environment.id = '{name}' {AEC}") from None
        reason = " ".join(str(error).split())
        raise UserError(f"environment.id = '{name}' is not in PettingZoo's registry: {reason[:200]}") from None
    return partial(pettingzoo.make, "parallel", key)


def _function(name: str, module: str, last: str, reason: ModuleNotFoundError) -> Callable[..., Any]:
    try:
        holder: ModuleType = importlib.import_module(module)
    except ModuleNotFoundError:
        remedy = INSTALL if module.split(".")[0] == "mpe2" else "install it"
        raise UserError(f"environment.id = '{name}' cannot be imported ({reason}): {remedy}") from None
    if not callable(getattr(holder, last, None)):
        names = [x for x in dir(holder) if not x.startswith("_") and callable(getattr(holder, x, None))]
        names += [each.name for each in pkgutil.iter_modules(getattr(holder, "__path__", []), "") if "_v" in each.name]
        known = nearest(last, names)
        raise UserError(f"environment.id = '{name}': {module} has no function {last}: {known}")
    maker: Callable[..., Any] = getattr(holder, last)
    return maker
