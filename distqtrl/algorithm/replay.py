"""Transitions of every environment of this rank, each in a ring of its own.

Samples are drawn per environment, so that what a gradient step sees does not depend on how environments are spread
over ranks, and the rings move with their environments when ranks come or go.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass
class Transitions:
    """N transitions; actions are the policy's own, in [-1, 1]. ``next_obs_NO`` is final where an episode ended."""

    obs_NO: Floats
    actions_NA: Floats
    rewards_N: Floats
    terminated_N: npt.NDArray[np.bool_]
    next_obs_NO: Floats


class Replay:
    """``capacity`` transitions of each of ``num`` environments; ``added`` counts all that one environment ever gave."""

    def __init__(self, num: int, capacity: int, num_observations: int, num_actions: int) -> None:
        self.capacity, self.added = capacity, 0
        shape = (num, capacity)  # np.empty: memory is taken as it is written
        self.obs_BNO = np.empty((*shape, num_observations), np.float32)
        self.actions_BNA = np.empty((*shape, num_actions), np.float32)
        self.rewards_BN = np.empty(shape, np.float32)
        self.terminated_BN = np.empty(shape, np.bool_)
        self.next_obs_BNO = np.empty((*shape, num_observations), np.float32)

    @property
    def filled(self) -> int:
        """How many transitions of one environment are stored."""
        return min(self.added, self.capacity)

    def add(self, obs_TBO: Floats, actions_TBA: np.ndarray, rewards_TB: np.ndarray, *rest: np.ndarray) -> None:
        """T steps of every environment; ``rest`` is terminated_TB and next_obs_TBO."""
        at_T = (self.added + np.arange(len(rewards_TB))) % self.capacity
        for ring, new in zip(self._rings().values(), (obs_TBO, actions_TBA, rewards_TB, *rest), strict=True):
            ring[:, at_T] = new.swapaxes(0, 1)
        self.added += len(rewards_TB)

    def sample(self, uniform_B: list[np.ndarray]) -> Transitions:
        """The transitions chosen by numbers in [0, 1), as many of every environment as it has numbers."""
        begin_N = np.repeat(np.arange(len(uniform_B)) * self.capacity, [len(u) for u in uniform_B])
        row_N = begin_N + (np.concatenate(uniform_B) * self.filled).astype(np.int64)
        rings = (ring.reshape(-1, *ring.shape[2:]) for ring in self._rings().values())
        return Transitions(*(rows.take(row_N, axis=0) for rows in rings))

    def last(self, steps: int) -> Floats:
        """Observations of the last ``steps`` steps of every environment, (steps * num, O)."""
        at_T = (self.added - np.arange(steps, 0, -1)) % self.capacity
        seen: Floats = self.obs_BNO[:, at_T]
        return seen.reshape(-1, seen.shape[-1])

    def state(self) -> dict[str, np.ndarray]:
        """Everything ``restore`` needs, a row per environment."""
        rings = {f"replay_{name}": ring[:, : self.filled].copy() for name, ring in self._rings().items()}
        return rings | {"replay_added": np.full(len(self.rewards_BN), self.added)}

    def restore(self, state: dict[str, np.ndarray], rows: list[int]) -> None:
        """Take over these rows of a state."""
        self.added = int(state["replay_added"][rows[0]])
        for name, ring in self._rings().items():
            ring[:, : self.filled] = state[f"replay_{name}"][rows]

    def _rings(self) -> dict[str, np.ndarray]:
        return {
            "obs": self.obs_BNO,
            "actions": self.actions_BNA,
            "rewards": self.rewards_BN,
            "terminated": self.terminated_BN,
            "next_obs": self.next_obs_BNO,
        }
