"""A Gymnasium environment: one agent, which acts in every step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from distqtrl import config as configuration
from distqtrl.config import UserError, nearest
from distqtrl.environment.factors import taken, unmasked
from distqtrl.environment.pictures import Picture, picture
from distqtrl.environment.spaces import Floats, Spaces, flattened, part, sole
from distqtrl.environment.spaces import spaces as spaces_of


class Single:
    """An environment with one agent (see vector.World)."""

    agents: tuple[str, ...] = ("",)

    def __init__(self, config: configuration.Environment, render: bool = False) -> None:
        self.env, self._name = make(config, render), config.id
        self.metadata: dict[str, Any] = self.env.metadata
        self._masks, found = _masks(self.env), spaces_of(self.env.observation_space, self.env.action_space, config.id)
        self.spaces: tuple[Spaces, ...] = (replace(found, masked=self._masks is not None),)
        self._factored = bool(found.factors)

    def reset(self, seed: int) -> tuple[Floats, bool]:
        obs_O: Floats = self.env.reset(seed=seed)[0]
        return self._with_mask(obs_O), True

    def step(self, actions_G: np.ndarray) -> tuple[Floats, float, bool, bool, bool]:
        if self._factored:
            actions_G = taken(self.env.action_space, actions_G)
        obs_O, reward, terminated, truncated, _ = self.env.step(actions_G)
        return self._with_mask(obs_O), float(reward), terminated, truncated, not (terminated or truncated)

    def _with_mask(self, obs_O: Floats) -> Floats:
        return obs_O if self._masks is None else np.concatenate([obs_O, self._masks.newest])

    def state(self) -> None:
        """There is none beyond the observation."""

    def render(self) -> Picture:
        return picture(self.env.render, self._name)

    def close(self) -> None:
        self.env.close()


def make(config: configuration.Environment, render: bool = False) -> gymnasium.Env:
    """One environment with flat observations; raises UserError for an unknown id, arguments or spaces."""
    more = {"render_mode": "rgb_array"} if render else {}
    try:
        env = gymnasium.make(config.id, max_episode_steps=config.max_episode_steps, **{**config.kwargs, **more})
    except gymnasium.error.UnregisteredEnv:
        raise UserError(f"unknown environment '{config.id}': {nearest(config.id, gymnasium.registry)}") from None
    except ModuleNotFoundError as error:
        module = config.id.partition(":")[0]
        remedy = "pip install 'distqtrl[minigrid]'" if module == "minigrid" else "install the package that has it"
        raise UserError(f"environment.id = '{config.id}' cannot be made ({error}): {remedy}") from None
    except Exception as error:  # an environment may refuse its arguments with any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"environment.id = '{config.id}' (kwargs {config.kwargs}) cannot be made: {reason}") from None
    env = _unmasked(env, config)
    if config.num_actions is not None:
        env = _with_first_actions(env, config.id, config.num_actions)
    key = sole(env.observation_space, config.observation) if _masks(env) else config.observation
    space = part(env.observation_space, key, config.id)
    flat, flatten = flattened(space, config.image, config.id)
    if key is not None or config.image or space.shape is None or len(space.shape) != 1:  # Discrete becomes one-hot
        env = gymnasium.wrappers.TransformObservation(env, lambda obs: flatten(obs if key is None else obs[key]), flat)
    if config.frames > 1:
        env = gymnasium.wrappers.FlattenObservation(gymnasium.wrappers.FrameStackObservation(env, config.frames))
    return env


class Unmasked(gymnasium.ObservationWrapper):
    """Takes the action mask out of what is observed, and keeps the newest."""

    def __init__(self, env: gymnasium.Env, space: gymnasium.spaces.Dict, read: Callable[[Any], Floats]) -> None:
        super().__init__(env)
        self.observation_space, self._keys, self._read = space, list(space.spaces), read
        self.newest: Floats

    def observation(self, observation: Any) -> dict[str, Any]:
        self.newest = self._read(observation)
        return {key: observation[key] for key in self._keys}


def _unmasked(env: gymnasium.Env, config: configuration.Environment) -> gymnasium.Env:
    space, read = unmasked(env.observation_space, env.action_space, config.num_actions, config.id)
    return Unmasked(env, space, read) if read is not None and isinstance(space, gymnasium.spaces.Dict) else env


def _masks(env: gymnasium.Env) -> Unmasked | None:
    """What has an environment's masks, if there are any."""
    while isinstance(env, gymnasium.Wrapper) and not isinstance(env, Unmasked):
        env = env.env
    return env if isinstance(env, Unmasked) else None


def _with_first_actions(env: gymnasium.Env, name: str, num: int) -> gymnasium.Env:
    space = env.action_space
    if not isinstance(space, Discrete) or num > space.n:
        raise UserError(f"{name}: environment.num_actions = {num} does not fit its actions, {space}")
    return gymnasium.wrappers.TransformAction(env, lambda action: action, Discrete(num, start=space.start))
