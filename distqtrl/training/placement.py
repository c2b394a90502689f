"""Which ranks hold which policies, and how those reach the others."""

import numpy as np
import torch

from distqtrl.allreduce.communicator import Communicator
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training.learner import Learner
from distqtrl.training.policy_gradient.learner import PolicyGradient

Unpacked = tuple[np.ndarray, np.ndarray, Normalizer]


def _packed(learner: Learner, w_M: torch.Tensor) -> np.ndarray:
    std_A = learner.log_std.detach().exp().numpy() if isinstance(learner, PolicyGradient) else np.zeros(0)
    n = learner.normalizer
    return np.concatenate([w_M.detach().numpy(), std_A, [n.count], n.mean_O, n.m2_O])


def _unpacked(architecture: Architecture, head: Head, packed: np.ndarray) -> Unpacked:
    m, o = architecture.num_weights, architecture.num_inputs
    w_M, std_A, count, mean_O, m2_O = np.split(packed, np.cumsum([m, head.num_outputs, 1, o]))
    return w_M.copy(), std_A, Normalizer(float(count[0]), mean_O.copy(), m2_O.copy())


def blocks(num_roles: int, comm: Communicator) -> tuple[list[int], list[int]]:
    """With agents.placement spread: the roles that this rank holds, and the ranks that hold them.

    >>> from distqtrl.allreduce.communicator import Serial
    >>> blocks(3, Serial())
    ([0, 1, 2], [0])
    """
    num = min(num_roles, comm.size)
    parts = zip(np.array_split(range(num_roles), num), np.array_split(range(comm.size), num), strict=True)
    return next((own.tolist(), ranks.tolist()) for own, ranks in parts if comm.rank in ranks)
