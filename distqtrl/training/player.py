"""What acts for one policy in a rollout."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from distqtrl.policy import network
from distqtrl.policy.distribution import Head, allowed, masks, read
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.placement import Acting
from distqtrl.training.roles import Spec


@dataclass
class Player:
    """What acts for one role in a rollout: weights and all else that does not change meanwhile."""

    head: Head
    outputs: Callable[[np.ndarray, np.ndarray], np.ndarray]  # raw and normalised observations -> (B, A)
    normalizer: Normalizer
    std_A: np.ndarray

    def act(self, obs_BO: np.ndarray, noise_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The policy's actions, and the environment's."""
        dtype, seen_BO = self.std_A.dtype, read(self.head, obs_BO)
        normal_BO = self.normalizer.apply(seen_BO).astype(dtype, copy=False)
        outputs = self.outputs(seen_BO, normal_BO)
        if self.head.masked:
            outputs = allowed(outputs, masks(self.head, obs_BO))
        actions = self.head.sample(outputs, noise_B.astype(dtype, copy=False), self.std_A)
        return actions, self.head.to_environment(actions)


def player(learner: NetworkLearner, w_M: torch.Tensor) -> Player:
    """What acts for a learner with these weights."""
    return Player(head=learner.head, outputs=learner.acting(w_M), normalizer=learner.normalizer, std_A=learner.std_A)


def remote_player(spec: Spec, acting: Acting, dtype: np.dtype) -> Player:
    """What acts for a policy that other ranks learn."""
    outputs = network.acting(spec.architecture, torch.from_numpy(acting.w_M.astype(dtype)))
    return Player(
        head=spec.head,
        outputs=lambda raw_BO, obs_BO: outputs(obs_BO),
        normalizer=acting.normalizer,
        std_A=acting.std_A.astype(dtype),
    )
