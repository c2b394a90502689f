"""Which ranks learn which policies, and how those reach the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.roles import Spec


@dataclass
class Acting:
    """A policy as other ranks see it."""

    w_M: np.ndarray
    std_A: np.ndarray
    normalizer: Normalizer


def packed(learner: NetworkLearner, w_M: torch.Tensor) -> np.ndarray:
    """A policy with these weights as one vector."""
    return np.concatenate([w_M.detach().numpy(), learner.std_A, *learner.normalizer.tensors().values()])


def unpacked(spec: Spec, vector: np.ndarray) -> Acting:
    """What ``packed`` gave."""
    m, o = spec.architecture.num_weights, spec.architecture.num_inputs
    w_M, std_A, count, mean_O, m2_O = np.split(vector, np.cumsum([m, spec.head.num_outputs, 1, o]))
    normalizer = Normalizer.of({"count": count, "mean_O": mean_O.copy(), "m2_O": m2_O.copy()})
    return Acting(w_M=w_M.copy(), std_A=std_A, normalizer=normalizer)


def blocks(num_roles: int, comm: Communicator) -> tuple[list[int], list[int]]:
    """With agents.placement spread: the roles that this rank learns, and the ranks that learn them.

    >>> from distqtrl.allreduce.communicator import Serial
    >>> blocks(3, Serial())
    ([0, 1, 2], [0])
    """
    num = min(num_roles, comm.size)
    pairs = zip(np.array_split(range(num_roles), num), np.array_split(range(comm.size), num), strict=True)
    return next((roles.tolist(), ranks.tolist()) for roles, ranks in pairs if comm.rank in ranks)


def exchanged(
    comm: Communicator, vectors: Sequence[np.ndarray], local_roles: Sequence[int], num: int
) -> list[np.ndarray]:
    """A vector of every one of num roles, from the first rank that learns it; vectors: those of this rank's roles."""
    local_sizes = np.zeros(num, dtype=np.int64)
    local_sizes[list(local_roles)] = [len(x) for x in vectors]
    sizes = comm.allgather(local_sizes)
    sent = allgather_bytes(comm, np.concatenate([np.asarray(x, dtype=np.float64) for x in vectors]).tobytes())
    out: list[np.ndarray] = []
    for role in range(num):
        rank = int(np.flatnonzero(sizes[:, role])[0])
        begin = int(sizes[rank, :role].sum())
        out.append(np.frombuffer(sent[rank])[begin : begin + int(sizes[rank, role])])
    return out
