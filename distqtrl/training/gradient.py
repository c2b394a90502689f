"""Gradients in one vector, summed over ranks."""

from collections.abc import Sequence
from itertools import accumulate, groupby

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
Named = Sequence[tuple[str, slice]]  # what parts of a vector are, those that spoil others first


class NotFinite(Refused, Diverged):
    """A sum over ranks is not finite, or a scale of all ranks has collapsed."""


def finite_sum(comm: Communicator, reduction: str, local_N: Array, what: str, named: Named = ()) -> Array:
    """Sum over ranks; raises NotFinite on every rank, naming those whose part is not finite.

    named: parts of the vector, of which the first that is not finite is said before ``what``.
    """
    total_N = REDUCTIONS[reduction](comm, local_N)
    if not np.isfinite(total_N).all():
        what = next((name for name, part in named if not np.isfinite(total_N[part]).all()), "") + what
        finite_R = comm.allgather(np.array([np.isfinite(local_N).all()]))[:, 0]
        ranks = (
            ", ".join(str(rank) for rank, good in zip(comm.ranks, finite_R, strict=True) if not good)
            or "none alone (the sum overflows)"
        )
        raise NotFinite(f"{what} is not finite on rank {ranks}: {REMEDY}")
    return total_N


def reduced(config: Allreduce, comm: Communicator, local_N: Array, where: str, named: Named = ()) -> Array:
    """A gradient summed over the ranks, or this rank's own while ranks step by themselves.

    Raises NotFinite on every rank, or Diverged on this one alone, for numbers that are not finite, which are called
    gradient or loss unless they are ``named``.
    """
    if config.aggregation != "average":
        what = f" at {where}" if named else f"gradient or loss at {where}"
        return finite_sum(comm, config.reduction, local_N, what, named)
    if not np.isfinite(local_N).all():
        raise Diverged(f"gradient is not finite at {where}: {REMEDY}")
    return local_N


class Gradients:
    """The gradients of parameters, one after the other: every ``grad`` is a view of a vector of its dtype.

    >>> a, b, c = torch.zeros(2, dtype=torch.float64), torch.zeros(()), torch.zeros(1)
    >>> gradients = Gradients([p.requires_grad_() for p in (a, b, c)])
    >>> (3 * a.sum() + 5 * b).backward()
    >>> gradients.read(range(0, 3))
    array([3., 3., 5., 0.])
    >>> gradients.write(range(1, 3), np.array([7.0, 9.0]))
    >>> b.grad, c.grad
    (tensor(7.), tensor([9.]))
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._ends = [0, *accumulate(p.numel() for p in parameters)]
        self._vectors: list[tuple[int, Tensor]] = []  # with the place of their first number among all numbers
        for dtype, neighbours in groupby(enumerate(parameters), lambda numbered: numbered[1].dtype):
            places, members = zip(*neighbours, strict=True)
            sizes = [p.numel() for p in members]
            vector = torch.zeros(sum(sizes), dtype=dtype)
            self._vectors.append((self._ends[places[0]], vector))
            for p, part in zip(members, vector.split(sizes), strict=True):
                p.grad = part.view(p.shape)

    def zero(self) -> None:
        """All of them are 0."""
        for _, vector in self._vectors:
            vector.zero_()

    def read(self, places: range) -> Array:
        """Those of neighbouring parameters, in float64."""
        return torch.cat([part.double() for part in self._parts(places)]).numpy()

    def write(self, places: range, gradient_N: Array) -> None:
        """Replace those of neighbouring parameters."""
        parts, given_N = self._parts(places), torch.from_numpy(gradient_N)
        for part, given in zip(parts, given_N.split([len(part) for part in parts]), strict=True):
            part.copy_(given)

    def _parts(self, places: range) -> list[Tensor]:
        """Views of what the vectors hold of neighbouring parameters."""
        start, stop = self._ends[places.start], self._ends[places.stop]
        return [vector[max(0, start - first) : max(0, stop - first)] for first, vector in self._vectors]


def parts(flat_N: Array, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into tensors like the parameters."""
    pieces = torch.split(torch.from_numpy(flat_N), [p.numel() for p in parameters])
    return [piece.to(p.dtype).view(p.shape) for p, piece in zip(parameters, pieces, strict=True)]
