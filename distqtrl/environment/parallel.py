"""A PettingZoo parallel environment: several agents act at once, may come and go, and may differ in their spaces."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from distqtrl.config import stages as configuration
from distqtrl.environment import border
from distqtrl.environment.failures import close, failure, said
from distqtrl.environment.pictures import Picture, picture
from distqtrl.environment.spaces import Floats, Spaces
from distqtrl.errors import UserError, nearest

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv

Flags = npt.NDArray[np.bool_]
STEP = ("observations", "rewards", "terminations", "truncations", "infos")
METHODS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {  # what they are called with; PettingZoo's signature
    "reset": ((), {"seed": 0}, "(self, seed=None, options=None)"),
    "step": (({},), {}, "(self, actions)"),
    "observation_space": (("",), {}, "(self, agent)"),
    "action_space": (("",), {}, "(self, agent)"),
    "close": ((), {}, "(self)"),
}
Stepped = tuple[list[Floats], npt.NDArray[np.float64], Flags, Flags, Flags]


def is_parallel(name: str) -> bool:
    """Whether an environment.id is PettingZoo's, package.module/environment_v0; says so without importing anything.

    >>> is_parallel("mpe2/simple_spread_v3"), is_parallel("ALE/Pong-v5"), is_parallel("minigrid:MiniGrid-Empty-5x5-v0")
    (True, False, False)
    >>> is_parallel("module:lab/Plain"), is_parallel("GymV21Environment-v0")
    (False, False)
    """
    return "/" in name and ":" not in name and name not in gymnasium.registry and not re.search(r"-v\d+$", name)


def check_id(name: str) -> None:
    """Raise UserError for an environment.id that is empty, or the name of a file."""
    file = name.partition(":")[0]
    if name.startswith((".", "/", "~")) or "\\" in name or file.endswith((".py", ".pyc", ".ipynb")) or ".py/" in name:
        raise UserError(
            f"environment.id = '{name}' looks like a file: name its folder in PYTHONPATH and the environment by its "
            "module, module:Name-v0 for one that the module registers with Gymnasium, module/function for PettingZoo"
        )
    if not name.strip():
        raise UserError("environment.id is empty: name one of Gymnasium's, such as CartPole-v1")


class Parallel:
    """An environment with G agents (see world.World).

    An agent that disappears from ``agents`` without a flag counts as terminated, and one that is not reported observes
    zeros. Raises UserError for what no policy could be trained in.
    """

    def __init__(self, config: configuration.Environment, render: bool = False) -> None:
        self.env, self._name, self.max_steps = _made(config, render), config.id, config.max_episode_steps
        with ExitStack() as undo:
            undo.callback(self.close)
            self._look(config)
            undo.pop_all()

    def _look(self, config: configuration.Environment) -> None:
        """Take in who acts and what it sees."""
        self.metadata: dict[str, Any] = getattr(self.env, "metadata", {})
        possible = self.env.possible_agents
        self.agents: tuple[str, ...] = border.agents(possible, config.id)
        self._keys, self._known, self._ports = list(possible), frozenset(possible), list[border.Port]()
        self._named = list(zip(self._keys, self.agents, strict=True))
        for key, agent in self._named:
            who = f"{config.id}, agent {agent}"
            action = self.env.action_space(key)
            if action is None:
                raise UserError(f"{who} has no action: give it a space, or leave it out of possible_agents")
            self._ports.append(border.Port(self.env.observation_space(key), action, config, who))
        self.spaces: tuple[Spaces, ...] = tuple(port.spaces for port in self._ports)
        space = getattr(self.env, "state_space", None)
        self._num_states = int(np.prod(space.shape)) if isinstance(space, Box) else None
        self._steps = 0

    def reset(self, seed: int) -> tuple[list[Floats], Flags]:
        """What every agent observes, and which ones act."""
        observed, _ = border.parts(self.env.reset(seed=seed), ("observations", "infos"), "reset()", self._name)
        self._steps = 0
        for port in self._ports:
            port.forget()
        acts_G = self._acting()
        if not acts_G.any():
            raise UserError(f"{self._name}: no agent acts after reset: fix the environment's agents")
        return self._observations(observed), acts_G

    def step(self, actions_G: Sequence[Any]) -> Stepped:
        """Observations (final for an agent that ended), rewards, terminated, truncated, and who acts next."""
        acted_G = self._acting()
        given = {
            key: port.action(actions_G[g])
            for g, (key, port) in enumerate(zip(self._keys, self._ports, strict=True))
            if acted_G[g]
        }
        observed, rewards, terminated, truncated, _ = border.parts(self.env.step(given), STEP, "step()", self._name)
        self._steps += 1
        acts_G = self._acting()
        rewards = border.by_agent(rewards, self._known, "rewards", self._name)
        rewards_G = np.array(
            [border.number(rewards.get(key, 0.0), self._name, "the reward of agent", name) for key, name in self._named]
        )
        terminated_G, truncated_G = self._ends(terminated, "terminated"), self._ends(truncated, "truncated")
        acts_G &= ~(terminated_G | truncated_G)
        if self.max_steps is not None and self._steps >= self.max_steps:
            truncated_G |= acts_G
            acts_G[:] = False
        terminated_G |= acted_G & ~acts_G & ~truncated_G
        return self._observations(observed), rewards_G, terminated_G & acted_G, truncated_G & acted_G, acts_G

    def state(self) -> Floats | None:
        """The environment's own state; none where it has none."""
        try:
            given = self.env.state()
        except NotImplementedError:
            return None
        state_S = border.state(given, self._num_states, self._name)
        self._num_states = len(state_S)
        return state_S

    def render(self) -> Picture:
        return picture(self.env.render, self._name)

    def close(self) -> None:
        close(self.env.close, self._name)

    def _acting(self) -> Flags:
        now = border.acting(getattr(self.env, "agents", None), self._known, self._name)
        return np.array([key in now for key in self._keys])

    def _ends(self, given: Any, what: str) -> Flags:
        """Whether each agent's episode ended; an agent of whom nothing is said goes on."""
        given = border.by_agent(given, self._known, what, self._name)
        found = [given.get(key, False) for key in self._keys]
        for g, one in enumerate(found):
            if one is not True and one is not False:
                found[g] = border.flag(one, self._name, f"{what} of agent {self.agents[g]}")
        return np.array(found)

    def _observations(self, observed: Any) -> list[Floats]:
        observed = border.by_agent(observed, self._known, "observations", self._name)
        return [
            port.nothing() if (given := observed.get(key)) is None else port.observation(given)
            for key, port in zip(self._keys, self._ports, strict=True)
        ]


def _made(config: configuration.Environment, render: bool) -> "ParallelEnv":
    """The environment of an id; raises UserError when there is none, or it is not a parallel one."""
    name, (folder, _, last) = config.id, config.id.rpartition("/")
    maker = _maker(name, folder.replace("/", "."), last)
    more = {"render_mode": "rgb_array"} if render else {}
    try:
        env = maker(**{**config.kwargs, **more})
    except BaseException as error:  # an environment may refuse its arguments with any exception
        what = f"environment.id = '{name}' (kwargs {config.kwargs}) cannot be made"
        raise failure(error, what) or UserError(f"{what}: {said(error)}") from None
    if config.num_actions is not None:
        raise UserError(
            f"environment.num_actions is for Gymnasium's environments, {name} has several agents: remove it"
        )
    if hasattr(env, "agent_iter"):
        raise UserError(f"environment.id = '{name}' {AEC}")
    lacks = [f"method {part}" for part in METHODS if not callable(getattr(env, part, None))]
    lacks += [] if hasattr(env, "possible_agents") else ["list possible_agents"]
    if lacks:
        raise UserError(
            f"environment.id = '{name}' makes a {type(env).__name__}, not a PettingZoo ParallelEnv: it has no "
            f"{lacks[0]}: give it one"
        )
    for method in METHODS:
        _check_arguments(env, name, method)
    return env


def _check_arguments(env: Any, name: str, method: str) -> None:
    """Raise UserError for a method that does not take what it is called with."""
    given, named, wanted = METHODS[method]
    try:
        signature = inspect.signature(getattr(env, method))
        signature.bind(*given, **named)
    except ValueError:  # of compiled code
        return
    except TypeError as error:
        text = f"{name}: {method}{signature} does not take what it is called with ({error}): make it {method}{wanted}"
        raise UserError(text) from None


INSTALL = "pip install 'distqtrl[marl]'"
AEC = (
    "is an AEC environment, whose agents take turns: name a function that returns "
    "pettingzoo.utils.conversions.aec_to_parallel(env), where its rules allow that"
)


def _maker(name: str, module: str, last: str) -> Callable[..., Any]:
    """``parallel_env`` of module.last, or the function ``last`` of module; PettingZoo's own come from its registry."""
    if module.startswith("pettingzoo."):
        return _registered(name, f"{module.removeprefix('pettingzoo.')}/{last}")
    found = _module(name, f"{module}.{last}")
    if found is None:
        return _function(name, module, last)
    if not hasattr(found, "parallel_env"):
        raise UserError(f"environment.id = '{name}' " + (AEC if hasattr(found, "env") else "has no parallel_env"))
    maker: Callable[..., Any] = found.parallel_env
    return maker


def _module(name: str, module: str) -> ModuleType | None:
    """The imported module, or None where there is none; raises UserError for one that cannot be imported."""
    what = f"environment.id = '{name}' cannot be imported"
    try:
        return importlib.import_module(module)
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise failure(error, what) or UserError(f"{what}: {said(error)}") from None


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


def _function(name: str, module: str, last: str) -> Callable[..., Any]:
    holder = _module(name, module)
    if holder is None:
        remedy = INSTALL if module.split(".")[0] == "mpe2" else "install it, or name its folder in PYTHONPATH"
        raise UserError(
            f"environment.id = '{name}' cannot be imported (there is no module {module}): {remedy}; one of Gymnasium's "
            f"that a module registers is module:{name}"
        )
    if not callable(getattr(holder, last, None)):
        known = [x for x, made in vars(holder).items() if not x.startswith("_") and callable(made)]
        known += [each.name for each in pkgutil.iter_modules(getattr(holder, "__path__", []), "") if "_v" in each.name]
        raise UserError(f"environment.id = '{name}': {module} has no function {last}: {nearest(last, known)}")
    maker: Callable[..., Any] = getattr(holder, last)
    return maker
