"""What acts for one policy in a rollout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distqtrl.policy import network
from distqtrl.policy.distribution import Head, allowed, masks, read
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.placement import Acting
from distqtrl.training.roles import Spec


@dataclass
class Player:
    """What acts for one role in a rollout: weights and all else that does not change meanwhile."""

    head: Head
    outputs: Callable[[np.ndarray, np.ndarray], np.ndarray]  # raw and normalised observations -> (B, A)
    normalised: Callable[[np.ndarray], np.ndarray]
    std_A: np.ndarray

    def noise(self, streams: Sequence[np.random.Generator], steps: int) -> np.ndarray:
        """What ``act`` wants for so many steps of the rows with these streams, (steps, B, ...)."""
        return np.stack([self.head.noise(s, steps) for s in streams], axis=1).astype(self.std_A.dtype, copy=False)

    def act(self, obs_BO: np.ndarray, noise_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The policy's actions, and the environment's."""
        seen_BO = read(self.head, obs_BO)
        normal_BO = self.normalised(seen_BO).astype(self.std_A.dtype, copy=False)
        outputs = self.outputs(seen_BO, normal_BO)
        if self.head.masked:
            outputs = allowed(outputs, masks(self.head, obs_BO))
        actions = self.head.sample(outputs, noise_B, self.std_A)
        return actions, self.head.to_environment(actions)


def player(learner: NetworkLearner, w_M: torch.Tensor) -> Player:
    """What acts for a learner with these weights."""
    return Player(
        head=learner.head, outputs=learner.acting(w_M), normalised=learner.normalizer.applied(), std_A=learner.std_A
    )


def remote_player(spec: Spec, acting: Acting, dtype: np.dtype) -> Player:
    """What acts for a policy that other ranks learn."""
    outputs = network.acting(spec.architecture, torch.from_numpy(acting.w_M.astype(dtype)))
    return Player(
        head=spec.head,
        outputs=lambda raw_BO, obs_BO: outputs(obs_BO),
        normalised=acting.normalizer.applied(),
        std_A=acting.std_A.astype(dtype),
    )
