"""Gradients as one vector, summed over ranks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import REDUCTIONS
from distqtrl.config.stages import Allreduce
from distqtrl.errors import Diverged

REMEDY = "lower the learning rates or check the environment"
Array = npt.NDArray[np.float64]


class NotFinite(Refused, Diverged):
    """A sum over ranks is not finite, or a scale of all ranks has collapsed."""


def finite_sum(comm: Communicator, reduction: str, local_N: Array, what: str) -> Array:
    """Sum over ranks; raises NotFinite on every rank, naming those whose part is not finite."""
    total_N = REDUCTIONS[reduction](comm, local_N)
    if not np.isfinite(total_N).all():
        finite_R = comm.allgather(np.array([np.isfinite(local_N).all()]))[:, 0]
        ranks = (
            ", ".join(str(rank) for rank, good in zip(comm.ranks, finite_R, strict=True) if not good)
            or "none alone (the sum overflows)"
        )
        raise NotFinite(f"{what} is not finite on rank {ranks}: {REMEDY}")
    return total_N


def reduced(config: Allreduce, comm: Communicator, local_N: Array, where: str) -> Array:
    """A gradient summed over the ranks, or this rank's own while ranks step by themselves.

    Raises NotFinite on every rank, or Diverged on this one alone, for numbers that are not finite.
    """
    if config.aggregation != "average":
        return finite_sum(comm, config.reduction, local_N, f"gradient or loss at {where}")
    if not np.isfinite(local_N).all():
        raise Diverged(f"gradient is not finite at {where}: {REMEDY}")
    return local_N


def flat(p: Tensor) -> Array:
    """A parameter's gradient as a vector; zeros where it has none."""
    gradient = torch.zeros_like(p) if p.grad is None else p.grad
    return gradient.detach().double().numpy().ravel()


def parts(flat_N: Array, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into tensors like the parameters."""
    pieces = torch.split(torch.from_numpy(flat_N), [p.numel() for p in parameters])
    return [piece.to(p.dtype).view(p.shape) for p, piece in zip(parameters, pieces, strict=True)]
