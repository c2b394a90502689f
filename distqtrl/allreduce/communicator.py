"""What a rank can say to the others: a protocol of four methods, its serial form, and what is built on them.

One rank is the same program with the serial communicator; mpi4py is needed only when a launcher started us.
"""

import hashlib
import os
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from distqtrl.config import UserError

Array = npt.NDArray[np.float64]
T = TypeVar("T")
LAUNCHERS = (  # what they tell every process they start, MPICH and Intel, Open MPI, srun
    {"size": "PMI_SIZE", "rank": "PMI_RANK"},
    {"size": "OMPI_COMM_WORLD_SIZE", "rank": "OMPI_COMM_WORLD_RANK"},
    {"size": "SLURM_STEP_NUM_TASKS", "rank": "SLURM_PROCID"},
)


class Communicator(Protocol):
    """The ranks of this job."""

    rank: int
    size: int

    def allgather(self, x: np.ndarray) -> np.ndarray:
        """Every rank's x (same shape and dtype everywhere), stacked in rank order: (R, *x.shape)."""

    def allreduce_sum(self, x_N: Array) -> Array:
        """Sum over ranks in whatever order the MPI likes."""

    def abort(self, code: int) -> NoReturn:
        """End every rank of the job, now."""

    def describe(self) -> dict[str, str]:
        """The library behind it, for people."""


class Serial:
    """The one rank of a job without MPI."""

    rank, size = 0, 1

    def allgather(self, x: np.ndarray) -> np.ndarray:
        return x[np.newaxis]

    def allreduce_sum(self, x_N: Array) -> Array:
        return x_N

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)

    def describe(self) -> dict[str, str]:
        return {"mpi": "none (one rank, serial communicator)"}


class Refused(UserError):
    """Bad input on which all ranks agreed: every rank raises it, rank 0 alone prints it."""

    exit_code = 2


def announced(what: str, without: int) -> int:
    """The "size" or "rank" that the launcher gave this process, known before (or without) MPI."""
    values = (os.environ.get(launcher[what], "") for launcher in LAUNCHERS)
    return next((int(value) for value in values if value.isdigit()), without)


def connect() -> Communicator:
    """The communicator of this job: MPI when a launcher started us, else serial.

    Raises UserError when mpi4py is missing, or when its library is not the launcher's (every rank would
    then be rank 0 of 1 and train alone).
    """
    size = announced("size", without=1)
    if size == 1:
        return Serial()
    try:
        from distqtrl.allreduce.mpi import Mpi
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the launcher started {size} ranks, but MPI cannot be loaded ({error}); "
            f"pip install 'distqtrl[mpich]', or distqtrl[mpi] beside a site MPI"
        ) from None
    world = Mpi()
    if world.size != size:
        raise UserError(
            f"the launcher started {size} ranks, but MPI sees {world.size}: mpirun and the library of mpi4py "
            f"({world.describe()['mpi']}) are not of one MPI; use the mpirun beside this python"
        )
    return world


def ordered_sum(comm: Communicator, x_N: Array) -> Array:
    """Sum over ranks in rank order, float64: bitwise the same on any MPI for a given number of ranks."""
    x_RN = comm.allgather(x_N)
    total = x_RN[0].copy()
    for row in x_RN[1:]:
        total += row
    return total


REDUCTIONS: dict[str, Callable[[Communicator, Array], Array]] = {
    "ordered": ordered_sum,
    "fast": lambda comm, x_N: comm.allreduce_sum(x_N),
}


def allgather_bytes(comm: Communicator, data: bytes) -> list[bytes]:
    """Every rank's bytes, in rank order."""
    length_R = comm.allgather(np.array([len(data)], dtype=np.int64))[:, 0]
    padded = np.zeros(max(1, int(length_R.max())), dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    rows = comm.allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, length_R, strict=True)]


def agreed(comm: Communicator, step: Callable[[], T]) -> T:
    """step() on every rank, or Refused on every rank when any rank raised UserError or OSError.

    ``step`` must not communicate. The message names the ranks when not all failed alike.
    """
    result, message = None, ""
    try:
        result = step()
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.strerror or error}: {error.filename}"
    by_rank = [text.decode() for text in allgather_bytes(comm, message.encode())]
    if any(by_rank):
        if len(set(by_rank)) == 1:
            raise Refused(message)
        raise Refused("; ".join(f"rank {r}: {text}" for r, text in enumerate(by_rank) if text))
    return result  # type: ignore[return-value]


def check_equal(comm: Communicator, data: bytes, what: str, remedy: str) -> None:
    """Raise UserError on every rank, naming the ranks that differ from the majority, unless data is equal."""
    digests = allgather_bytes(comm, hashlib.blake2b(data, digest_size=16).digest())
    majority = max(digests, key=digests.count)
    odd = [str(rank) for rank, digest in enumerate(digests) if digest != majority]
    if odd:
        raise Refused(f"{what} differ on rank {', '.join(odd)} of {comm.size}: {remedy}")
