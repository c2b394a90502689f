"""A Gymnasium environment: one agent, which acts in every step."""

import math
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np

from distqtrl.config import stages as configuration
from distqtrl.environment import border
from distqtrl.environment.failures import close, failure, said
from distqtrl.environment.pictures import Picture, picture
from distqtrl.environment.spaces import Floats, Spaces
from distqtrl.errors import UserError, nearest

STEP = ("observation", "reward", "terminated", "truncated", "info")


class Single:
    """An environment with one agent (see world.World)."""

    agents: tuple[str, ...] = ("",)

    def __init__(self, config: configuration.Environment, render: bool = False) -> None:
        self.env, self._name = make(config, render), config.id
        self.metadata: dict[str, Any] = self.env.metadata
        self.max_steps = None if self.env.spec is None else self.env.spec.max_episode_steps
        with ExitStack() as undo:
            undo.callback(self.close)
            self._port = border.Port(self.env.observation_space, self.env.action_space, config, config.id)
            undo.pop_all()
        self.spaces: tuple[Spaces, ...] = (self._port.spaces,)

    def reset(self, seed: int) -> tuple[Floats, bool]:
        self._port.forget()
        given, _ = border.parts(self.env.reset(seed=seed), ("observation", "info"), "reset()", self._name)
        return self._port.observation(given), True

    def step(self, actions_G: np.ndarray) -> tuple[Floats, float, bool, bool, bool]:
        name, given = self._name, self.env.step(self._port.action(actions_G))
        if type(given) is not tuple or len(given) != len(STEP):
            given = border.parts(given, STEP, "step()", name)
        seen, reward, terminated, truncated, _ = given
        if terminated is not True and terminated is not False:
            terminated = border.flag(terminated, name, "terminated")
        if truncated is not True and truncated is not False:
            truncated = border.flag(truncated, name, "truncated")
        if type(reward) is not float or not math.isfinite(reward):
            reward = border.number(reward, name, "the reward")
        return self._port.observation(seen), reward, terminated, truncated, not (terminated or truncated)

    def state(self) -> None:
        """There is none beyond the observation."""

    def render(self) -> Picture:
        return picture(self.env.render, self._name)

    def close(self) -> None:
        close(self.env.close, self._name)


def make(config: configuration.Environment, render: bool = False) -> gymnasium.Env:
    """One environment as it is registered; raises UserError for an unknown id and for arguments that it refuses.

    Gymnasium's own checks are left out: they warn once, and the border checks every step.
    """
    for key in ("id", "max_episode_steps"):
        if key in config.kwargs:
            raise UserError(f"environment.kwargs has {key}, which environment.{key} sets: give it there")
    more = {"render_mode": "rgb_array"} if render else {}
    what = f"environment.id = '{config.id}' (kwargs {config.kwargs}) cannot be made"
    try:
        return gymnasium.make(
            config.id,
            max_episode_steps=config.max_episode_steps,
            **{"disable_env_checker": True, **config.kwargs, **more},
        )
    except gymnasium.error.UnregisteredEnv:
        own = "" if ":" in config.id else f"; if a module of yours registers it, pass module:{config.id}"
        raise UserError(f"unknown environment '{config.id}': {nearest(config.id, gymnasium.registry)}{own}") from None
    except ModuleNotFoundError as error:
        module, cause = config.id.partition(":")[0], error.__cause__ or error
        if not f"{module}.".startswith(f"{getattr(cause, 'name', None)}."):  # one that its module needs
            raise failure(error, f"{what}, install what it needs") or error from None
        remedy = "install it, or name its folder in PYTHONPATH"
        remedy = "pip install 'distqtrl[minigrid]'" if module == "minigrid" else remedy
        raise UserError(f"environment.id = '{config.id}' cannot be made ({cause}): {remedy}") from None
    except BaseException as error:  # an environment may refuse its arguments with any exception
        raise failure(error, what) or UserError(f"{what}: {said(error)}") from None
