"""Rollouts: T steps, or one whole episode, of every environment under one frozen policy.

The policy is a function handed in, so nothing here knows where its weights come from.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from distqtrl.config.stages import Environment
from distqtrl.environment.vector import Environments, Role

Act = Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]]
Noise = Callable[[int], Any]  # k steps' -> something of length k
Rows = slice | npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
BLOCK = 64  # steps of noise drawn at a time
AT_ONCE = 16  # environments of an evaluation that are open: a simulator may hold files, sockets and processes
MULTIPLE, AT_LEAST = 4, 1000  # see bound


@dataclass
class Rollout:
    """Samples in time order. ``next_obs_TBO`` is what followed, final observations included.

    ``valid_TB`` is False where an agent did not act, and after an environment's episode in rollouts of whole ones.
    ``actions`` are the policy's own, (T, B) or (T, B, A), before they were scaled for the environment. States, and
    what followed them, are there where a centralised critic wants them.
    """

    obs_TBO: npt.NDArray[np.float32]
    actions: np.ndarray
    rewards_TB: Array
    terminated_TB: npt.NDArray[np.bool_]
    truncated_TB: npt.NDArray[np.bool_]
    valid_TB: npt.NDArray[np.bool_]
    next_obs_TBO: npt.NDArray[np.float32]
    states_TES: npt.NDArray[np.float32] | None = None
    next_states_TES: npt.NDArray[np.float32] | None = None

    def of(self, rows: Rows, width: int, unpadded: Callable[[np.ndarray], np.ndarray]) -> "Rollout":
        """The rows of one role, (T, rows, ...); ``unpadded`` takes its actions out of rows as wide as the widest."""
        if isinstance(rows, slice) and width == self.obs_TBO.shape[-1]:
            return self
        actions = self.actions[:, rows]
        return replace(
            self,
            obs_TBO=self.obs_TBO[:, rows, :width],
            actions=unpadded(actions) if actions.ndim > 2 else actions,
            rewards_TB=self.rewards_TB[:, rows],
            terminated_TB=self.terminated_TB[:, rows],
            truncated_TB=self.truncated_TB[:, rows],
            valid_TB=self.valid_TB[:, rows],
            next_obs_TBO=self.next_obs_TBO[:, rows, :width],
        )


def collect(environments: Environments, act: Act, noise: Noise, num_steps: int | None) -> Rollout:
    """num_steps steps of every environment, or (None) one whole episode of each.

    act(obs_BO, noise_B) gives the policy's actions and the environment's; noise(k) gives k steps of noise, (k, B, ...).
    """
    whole = num_steps is None
    if whole:
        environments.restart()
    obs, actions, steps, valid, states = [], [], [], [], []
    running_E = np.ones(environments.num, dtype=np.bool_)
    t = 0
    while running_E.any() if num_steps is None else t < num_steps:
        if t % BLOCK == 0:
            block = noise(BLOCK)
        obs.append(environments.obs_BO)
        states.append(environments.states_ES)
        acts_B = environments.acts_B
        valid.append(acts_B & np.repeat(running_E, environments.num_agents) if whole else acts_B)
        chosen, scaled = act(environments.obs_BO, block[t % BLOCK])
        episode_E = environments.episode_B.copy() if whole else None
        step = environments.step(scaled, running_E if whole else None)
        actions.append(chosen)
        steps.append(step)
        if whole:
            running_E = running_E & (environments.episode_B == episode_E)
        t += 1
    central = states[0] is not None
    return Rollout(
        obs_TBO=np.array(obs),
        actions=np.array(actions),
        rewards_TB=np.array([s.rewards_B for s in steps]),
        terminated_TB=np.array([s.terminated_B for s in steps]),
        truncated_TB=np.array([s.truncated_B for s in steps]),
        valid_TB=np.array(valid),
        next_obs_TBO=np.array([s.obs_BO for s in steps]),
        states_TES=np.array(states) if central else None,
        next_states_TES=np.array([s.states_ES for s in steps]) if central else None,
    )


def play(
    environments: Environments, act: Callable[[np.ndarray], np.ndarray], max_steps: int | None = None
) -> tuple[Array, Array]:
    """Undiscounted returns (one per row, B) and lengths (E,) of one episode of every environment.

    act(obs_BO) is the action taken. After max_steps steps those that still run are left where they are.
    """
    environments.restart()
    return_B, length_E = np.zeros(len(environments.obs_BO)), np.zeros(environments.num)
    running_E = np.ones(environments.num, dtype=np.bool_)
    steps = 0
    while running_E.any() and (max_steps is None or steps < max_steps):
        episode_E = environments.episode_B.copy()
        step = environments.step(act(environments.obs_BO), running_E)
        return_B += step.rewards_B
        length_E += running_E
        running_E = running_E & (environments.episode_B == episode_E)
        steps += 1
    return return_B, length_E


@dataclass
class Episodes:
    """One episode of every index: returns of the agents, lengths, and which ones were cut after ``max_steps``."""

    agents: tuple[str, ...]
    returns_EG: Array
    length_E: Array
    cut_E: npt.NDArray[np.bool_]
    max_steps: int | None


def evaluation(
    config: Environment,
    indices: Sequence[int],
    seed: int,
    purpose: str,
    acts: Sequence[Callable[[np.ndarray], np.ndarray]],
    roles: Sequence[Role],
    episode: int = 0,
    max_steps: int | None = None,
) -> Episodes:
    """The episodes of these indices, each in an environment of its own, of which AT_ONCE are open at the same time.

    acts: what every role does, see ``Environments.acting``; max_steps: None for that of ``bound``.
    """
    found: list[tuple[Array, Array, npt.NDArray[np.bool_]]] = []
    agents: tuple[str, ...] = ()
    most = max_steps
    for begin in range(0, max(len(indices), 1), AT_ONCE):
        with closing(Environments(config, indices[begin : begin + AT_ONCE], seed, purpose, episode, roles)) as own:
            agents, most = own.agents, bound(own, max_steps)
            return_B, length_E = play(own, own.acting(acts), most) if own.num else (np.zeros(0), np.zeros(0))
            found.append((return_B.reshape(-1, own.num_agents), length_E, own.episode_B == episode))
    returns_EG, length_E, cut_E = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Episodes(agents, returns_EG, length_E, cut_E, most)


def bound(environments: Environments, wanted: int | None, longest: int = 0) -> int | None:
    """After how many steps an evaluation cuts an episode: as wanted; never where the environment has a time limit;
    otherwise MULTIPLE times the longest that training saw, at least AT_LEAST.
    """
    if wanted is not None or environments.max_steps is not None:
        return wanted
    return max(AT_LEAST, MULTIPLE * longest)


def cut(number: int, episodes: int, max_steps: int) -> str:
    """A sentence that says how many episodes were cut, having no end.

    >>> cut(1, 5, 1000)
    '1 of 5 episodes had not ended after 1,000 steps and was cut there, as truncated (evaluate.max_steps)'
    """
    were = "was" if number == 1 else "were"
    return (
        f"{number} of {episodes} episodes had not ended after {max_steps:,} steps and {were} cut there, as truncated "
        "(evaluate.max_steps)"
    )


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean, deviation, extremes and number of returns."""
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "episodes": len(returns),
    }
