"""B copies of a Gymnasium environment on this rank, each known by its global index.

Every episode starts with ``reset(seed)``, and the seed belongs to (global environment index, episode number),
so samples do not depend on how environments are spread over ranks; no vector environment stands between, which
would reset by itself and step those that wait for others. Gymnasium offers no way to save an environment; a saved
state is therefore the episode's number and its actions, and restoring replays them. An environment whose replay
does not give the saved observation bit for bit (it draws from a source that its seed does not reach) restarts with
its next episode, and the caller is told which ones did.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete

from distqtrl import config as configuration
from distqtrl import seeding
from distqtrl.config import UserError, nearest

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spaces:
    """What a policy must know of an environment: O, and the actions (discrete, or bounds of a Box)."""

    num_observations: int
    num_actions: int | None
    action_start: int
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass
class Step:
    """One step of every environment. obs_BO is final for an episode that ended."""

    obs_BO: npt.NDArray[np.float32]
    rewards_B: Array
    terminated_B: npt.NDArray[np.bool_]
    truncated_B: npt.NDArray[np.bool_]


def merged(states: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One state of all the environments whose states these are."""
    rows = {name: [state[name] for state in states] for name in states[0]}
    rows["actions"] = [actions for actions in rows["actions"] if len(actions)] or rows["actions"][:1]  # [] has no dtype
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def make(config: configuration.Environment) -> gymnasium.Env:
    """One environment with flat observations; raises UserError for an unknown id, arguments or spaces."""
    try:
        env = gymnasium.make(config.id, max_episode_steps=config.max_episode_steps, **config.kwargs)
    except gymnasium.error.UnregisteredEnv:
        raise UserError(f"unknown environment '{config.id}': {nearest(config.id, gymnasium.registry)}") from None
    except ModuleNotFoundError as error:
        module = config.id.partition(":")[0]
        remedy = "pip install 'distqtrl[minigrid]'" if module == "minigrid" else "install the package that has it"
        raise UserError(f"environment.id = '{config.id}' cannot be made ({error}): {remedy}") from None
    except Exception as error:  # an environment may refuse its arguments with any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"environment.id = '{config.id}' (kwargs {config.kwargs}) cannot be made: {reason}") from None
    if config.num_actions is not None:
        env = _with_first_actions(env, config.id, config.num_actions)
    space = env.observation_space
    if config.observation is not None:
        if not isinstance(space, Dict) or config.observation not in space.spaces:
            known = nearest(config.observation, space.spaces) if isinstance(space, Dict) else f"it observes {space}"
            raise UserError(f"{config.id}: environment.observation = '{config.observation}' is not there: {known}")
        key, space = config.observation, space[config.observation]
        env = gymnasium.wrappers.TransformObservation(env, lambda obs: obs[key], space)
    if isinstance(space, Dict):
        raise UserError(
            f"{config.id}: observation space Dict: set environment.observation to one of {', '.join(space.spaces)}"
        )
    if not isinstance(space, Box | Discrete):
        raise UserError(
            f"{config.id}: observation space {space} is not supported; use one with a Box or Discrete space"
        )
    if isinstance(space, Discrete) or len(space.shape) != 1:
        env = gymnasium.wrappers.FlattenObservation(env)  # Discrete becomes one-hot
    return env


def _with_first_actions(env: gymnasium.Env, name: str, num: int) -> gymnasium.Env:
    space = env.action_space
    if not isinstance(space, Discrete) or num > space.n:
        raise UserError(f"{name}: environment.num_actions = {num} does not fit its actions, {space}")
    return gymnasium.wrappers.TransformAction(env, lambda action: action, Discrete(num, start=space.start))


def spaces(env: gymnasium.Env, name: str) -> Spaces:
    """The environment's spaces; raises UserError when its actions are not Discrete or a bounded 1-D Box."""
    assert env.observation_space.shape is not None
    num_observations, action = env.observation_space.shape[0], env.action_space
    if isinstance(action, Discrete):
        return Spaces(num_observations, int(action.n), int(action.start), (), ())
    if isinstance(action, Box) and len(action.shape) == 1 and action.is_bounded():
        low, high = (tuple(float(x) for x in bound) for bound in (action.low, action.high))
        return Spaces(num_observations, None, 0, low, high)
    raise UserError(f"{name}: action space {action} is not supported; use Discrete or a bounded one-dimensional Box")


class Environments:
    """The rank's environments; ``indices`` are their global numbers, ``purpose`` and ``episode`` (the first) seed them.

    ``obs_BO`` is what the policy sees next; ``finished`` collects (return, length) of episodes that ended.
    """

    def __init__(
        self, config: configuration.Environment, indices: Sequence[int], seed: int, purpose: str, episode: int = 0
    ) -> None:
        self.indices, self.seed, self.purpose = list(indices), seed, purpose
        self.num = len(self.indices)
        self.envs = [make(config) for _ in indices]
        self.episode_B = np.full(self.num, episode, dtype=np.int64)
        self.return_B = np.zeros(self.num)
        self.actions: list[list[np.ndarray]] = [[] for _ in indices]
        self.finished: list[tuple[float, int]] = []
        self.obs_BO = np.array([self._reset(b) for b in range(self.num)])

    def step(self, actions_B: np.ndarray, running_B: npt.NDArray[np.bool_] | None = None) -> Step:
        """One step of all, or of those that run; the others keep their observation and get no reward.

        An episode that ended gives way to the next one, and ``obs_BO`` is then that one's first.
        """
        obs_BO, rewards_B = self.obs_BO.copy(), np.zeros(self.num)
        terminated_B, truncated_B = np.zeros((2, self.num), dtype=np.bool_)
        ended = []
        for b in range(self.num) if running_B is None else np.flatnonzero(running_B).tolist():
            obs_BO[b], rewards_B[b], terminated_B[b], truncated_B[b], _ = self.envs[b].step(actions_B[b])
            self.return_B[b] += rewards_B[b]
            self.actions[b].append(actions_B[b])
            if terminated_B[b] or truncated_B[b]:
                ended.append(b)
        self.obs_BO = obs_BO.copy() if ended else obs_BO
        for b in ended:
            self.finished.append((float(self.return_B[b]), len(self.actions[b])))
            self.episode_B[b] += 1
            self.obs_BO[b] = self._reset(b)
        return Step(obs_BO, rewards_B, terminated_B, truncated_B)

    def restart(self) -> None:
        """Leave every unfinished episode and start the next one."""
        for b, history in enumerate(self.actions):
            if history:
                self.episode_B[b] += 1
                self.obs_BO[b] = self._reset(b)

    def state(self) -> dict[str, np.ndarray]:
        """Everything ``restore`` needs, as flat arrays."""
        every = [action for history in self.actions for action in history]
        return {
            "index_B": np.array(self.indices),
            "episode_B": self.episode_B.copy(),
            "length_B": np.array([len(history) for history in self.actions]),
            "actions": np.array(every) if every else np.zeros(0),
            "obs_BO": self.obs_BO.copy(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> list[int]:
        """Replay to a saved state, of these environments or more; returns the indices of those that had to restart."""
        histories = np.split(state["actions"], np.cumsum(state["length_B"])[:-1])
        row = {index: i for i, index in enumerate(state["index_B"].tolist())}
        restarted = []
        for b, (env, index) in enumerate(zip(self.envs, self.indices, strict=True)):
            saved = row[index]
            self.episode_B[b] = state["episode_B"][saved]
            self.obs_BO[b] = self._reset(b)
            for action in histories[saved]:
                self.obs_BO[b], reward, terminated, truncated, _ = env.step(action)
                self.actions[b].append(action)
                self.return_B[b] += float(reward)
                if terminated or truncated:  # no saved episode has ended, so this is another one
                    self.obs_BO[b] = np.nan
                    break
            if (self.obs_BO[b] != state["obs_BO"][saved]).any():
                self.episode_B[b] += 1
                self.obs_BO[b] = self._reset(b)
                restarted.append(index)
        return restarted

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _reset(self, b: int) -> npt.NDArray[np.float32]:
        """The first observation of environment b's present episode."""
        seed = seeding.integer(self.seed, self.purpose, self.indices[b], int(self.episode_B[b]))
        self.actions[b], self.return_B[b] = [], 0.0
        return np.asarray(self.envs[b].reset(seed=seed)[0], dtype=np.float32)
