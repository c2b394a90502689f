"""What a rank can say to the others: a small protocol, and its serial form.

One rank is the same program with the serial communicator; mpi4py is needed only when a launcher started us.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
T = TypeVar("T")


class Communicator(Protocol):
    """The ranks of this job."""

    rank: int
    size: int
    ranks: Sequence[int]  # their numbers in the whole job
    survives: bool  # whether a rank that is lost raises RankLost on the others, which can ``shrink`` then

    @property
    def received(self) -> int:
        """Bytes that this rank was sent so far."""

    def allgather(self, x: np.ndarray) -> np.ndarray:
        """Every rank's x (same shape and dtype everywhere), stacked in rank order: (R, *x.shape)."""

    def gather(self, x: np.ndarray) -> np.ndarray | None:
        """What ``allgather`` returns, on rank 0 alone; the others go on as soon as theirs is sent."""

    def allreduce_sum(self, x_V: Array) -> Array:
        """Sum over ranks in whatever order the MPI likes."""

    def exchange(self, x_V: Array, partner: int) -> Array:
        """The partner's x_V, which gets ours; all ranks call this, those without a partner name themselves."""

    def subset(self, ranks: Sequence[int]) -> "Communicator":
        """These ranks only, of which this is one; nothing is said before they first speak with each other."""

    def arrival(self) -> Callable[[], bool]:
        """Whether all ranks have called this, without waiting for them: ask until they have."""

    def limit(self, timeout_s: float | None) -> None:
        """End this process when it waits longer than this for the others, from now on."""

    def shrink(self) -> list[int]:
        """Go on without the ranks that are lost, and return their numbers at the start of the job."""

    def abort(self, code: int) -> NoReturn:
        """End every rank of the job, now."""

    def finish(self, code: int) -> None:
        """Leave; ends the process where the library cannot end after a loss."""

    def describe(self) -> dict[str, str]:
        """The library behind the communicator, in words."""


class Serial:
    """The one rank of a job without MPI."""

    rank, size, survives, received = 0, 1, True, 0
    ranks: Sequence[int] = (0,)

    def allgather(self, x: np.ndarray) -> np.ndarray:
        return x[np.newaxis]

    def gather(self, x: np.ndarray) -> np.ndarray:
        return self.allgather(x)

    def allreduce_sum(self, x_V: Array) -> Array:
        return x_V

    def exchange(self, x_V: Array, partner: int) -> Array:
        return x_V

    def subset(self, ranks: Sequence[int]) -> "Serial":
        return self

    def arrival(self) -> Callable[[], bool]:
        return lambda: True

    def limit(self, timeout_s: float | None) -> None:
        pass

    def shrink(self) -> list[int]:
        return []

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)

    def finish(self, code: int) -> None:
        pass

    def describe(self) -> dict[str, str]:
        return {"mpi": "none (one rank, serial communicator)"}


class RankLost(Exception):
    """Another rank is gone; only a communicator that ``survives`` raises it."""
