"""What a rank can say to the others: a small protocol, its serial form, and what is built on it.

One rank is the same program with the serial communicator; mpi4py is needed only when a launcher started us.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from distqtrl.allreduce import leftovers
from distqtrl.allreduce.watchdog import keeper
from distqtrl.config import UserError

Array = npt.NDArray[np.float64]
T = TypeVar("T")
LAUNCHERS = (  # what they tell every process they start, MPICH and Intel, Open MPI, srun
    {"size": "PMI_SIZE", "rank": "PMI_RANK", "on_host": "MPI_LOCALNRANKS"},
    {"size": "OMPI_COMM_WORLD_SIZE", "rank": "OMPI_COMM_WORLD_RANK", "on_host": "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"size": "SLURM_STEP_NUM_TASKS", "rank": "SLURM_PROCID", "on_host": "SLURM_STEP_TASKS_PER_NODE"},
)


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

    def allreduce_sum(self, x_N: Array) -> Array:
        """Sum over ranks in whatever order the MPI likes."""

    def exchange(self, x_N: Array, partner: int) -> Array:
        """The partner's x_N, which gets ours; all ranks call this, those without a partner name themselves."""

    def among(self, ranks: Sequence[int]) -> "Communicator":
        """These ranks only, of which this is one; nothing is said before they first speak with each other."""

    def limit(self, timeout_s: float | None) -> None:
        """End this process when it waits longer than this for the others, from now on."""

    def shrink(self) -> list[int]:
        """Go on without the ranks that are lost, and return their numbers at the start of the job."""

    def abort(self, code: int) -> NoReturn:
        """End every rank of the job, now."""

    def finish(self, code: int) -> None:
        """Leave; ends the process where the library cannot end after a loss."""

    def describe(self) -> dict[str, str]:
        """The library behind it, for people."""


class Serial:
    """The one rank of a job without MPI."""

    rank, size, survives, received = 0, 1, True, 0
    ranks: Sequence[int] = (0,)

    def allgather(self, x: np.ndarray) -> np.ndarray:
        return x[np.newaxis]

    def allreduce_sum(self, x_N: Array) -> Array:
        return x_N

    def exchange(self, x_N: Array, partner: int) -> Array:
        return x_N

    def among(self, ranks: Sequence[int]) -> "Serial":
        return self

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


class Refused(UserError):
    """Bad input on which all ranks agreed: every rank raises it, rank 0 alone prints it."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


def announced(what: str, without: int) -> int:
    """The "size", "rank" or ranks "on_host" that the launcher gave this process, known before (or without) MPI.

    srun writes its ranks on every host in one variable, such as 2(x3),1: the most of them count.
    """
    for launcher in LAUNCHERS:
        numbers = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get(launcher[what], ""))
        if numbers:
            return max(int(number) for number in numbers)
    return without


def oversubscribed() -> bool:
    """Whether more ranks than cores are on this host.

    A launcher that binds its ranks shows each of them its own cores only, its own process still has them all.
    """
    return announced("on_host", without=1) > max(_cores(0), _cores(os.getppid()))


def _let_waiting_yield() -> None:
    """Let the MPI that is loaded next give up its core while it waits, if more ranks than cores are on this host.

    MPI waits by polling, which starves the ranks that still work. MPICH's heavy yield costs latency otherwise, so
    it is set only then. What the user has set stays.
    """
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    if oversubscribed():
        os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")


def _cores(pid: int) -> int:
    try:
        return len(os.sched_getaffinity(pid))
    except (AttributeError, OSError):  # macOS has none; a launcher of another user
        return os.cpu_count() or 1


def library() -> str:
    """Version line of the MPI library that mpi4py finds, without starting MPI; empty when there is none."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from distqtrl.allreduce.mpi import library; print(library())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def connect(timeout_s: float | None = 1800.0) -> Communicator:
    """The communicator of this job: MPI when a launcher started us, else serial.

    timeout_s: how long to wait for the others, now and until ``limit`` says otherwise; None for ever.

    Raises UserError when mpi4py is missing, or when its library is not the launcher's (every rank would
    then be rank 0 of 1 and train alone).
    """
    size = announced("size", without=1)
    if size == 1:
        return Serial()
    _let_waiting_yield()
    leftovers.remove()
    connected = keeper(announced("rank", without=0), timeout_s, "connecting")
    try:
        from distqtrl.allreduce.mpi import Mpi  # starts MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the launcher started {size} ranks, but MPI cannot be loaded ({error}); "
            f"pip install 'distqtrl[mpich]', or distqtrl[mpi] beside a site MPI"
        ) from None
    finally:
        connected()
    world = Mpi()
    world.limit(timeout_s)
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


def tree_sum(comm: Communicator, x_N: Array) -> Array:
    """Sum over ranks along a binary tree, float64: as reproducible as ``ordered_sum``, in about log2(R) messages.

    Recursive doubling: partners add the same two numbers, so all ranks hold the same bits after every round. Ranks
    beyond the largest power of two hand their part to a partner below it first, and take the sum from it at the end.
    """
    power = 1 << (comm.size.bit_length() - 1)
    below, fold = comm.rank < power, comm.rank ^ power
    fold = fold if fold < comm.size else comm.rank
    total = x_N.copy()
    if power < comm.size:
        other = comm.exchange(total, fold)
        total = total + other if fold != comm.rank else total
    distance = 1
    while distance < power:
        other = comm.exchange(total, comm.rank ^ distance if below else comm.rank)
        total = total + other if below else total
        distance *= 2
    if power < comm.size:
        other = comm.exchange(total, fold)
        total = total if below else other
    return total


REDUCTIONS: dict[str, Callable[[Communicator, Array], Array]] = {
    "ordered": ordered_sum,
    "tree": tree_sum,
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
    result, message, trace = None, "", ""
    try:
        result = step()
    except UserError as error:
        message, trace = str(error), error.trace
    except OSError as error:
        message = ": ".join(filter(None, [error.strerror or str(error), error.filename and str(error.filename)]))
    by_rank = [text.decode() for text in allgather_bytes(comm, message.encode())]
    if any(by_rank):
        texts = allgather_bytes(comm, trace.encode())
        first = next((r for r, text in enumerate(texts) if text), None)
        if first is not None:  # once is enough, and its trace is what belongs to its line
            raise Refused(f"rank {first}: {by_rank[first]}" if comm.size > 1 else message, texts[first].decode())
        if len(set(by_rank)) == 1:
            raise Refused(message)
        raise Refused("; ".join(f"rank {r}: {text}" for r, text in enumerate(by_rank) if text))
    return result  # type: ignore[return-value]


def check_equal(comm: Communicator, data: bytes, what: str, remedy: str) -> None:
    """Raise UserError on every rank, naming the ranks that differ from the majority, unless data is equal."""
    digests = allgather_bytes(comm, hashlib.blake2b(data, digest_size=16).digest())
    majority = max(digests, key=digests.count)
    odd = [str(rank) for rank, digest in zip(comm.ranks, digests, strict=True) if digest != majority]
    if odd:
        raise Refused(f"{what} differ on rank {', '.join(odd)} of {comm.size}: {remedy}")
