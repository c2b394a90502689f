"""The communicator over MPI; the only file that imports mpi4py. Buffers only, nothing is pickled."""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from distqtrl.allreduce.communicator import RankLost
from distqtrl.allreduce.connect import oversubscribed
from distqtrl.allreduce.watchdog import Watchdog, keeper, until_read

Array = npt.NDArray[np.float64]
NAP_S = 1e-5  # and what the system adds to it, some 60 us


class Mpi:
    """All ranks of COMM_WORLD; where the MPI has User Level Failure Mitigation (ULFM), those that are left.

    parent, ranks: the communicator of these of the parent's ranks only.
    """

    def __init__(self, parent: "Mpi | None" = None, ranks: Sequence[int] = ()) -> None:
        self._parent, self.received = parent, 0
        self._comm: MPI.Comm = MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        self.ranks: Sequence[int] = range(self.size)
        if parent is not None:
            self._comm = MPI.Intracomm()  # none yet, see _begin
            self.ranks, self.rank, self.size = ranks, ranks.index(parent.rank), len(ranks)
        self._number, self._alive = self.rank, list(range(self.size))  # as ranks were numbered at the start
        self._watchdog: Watchdog = Watchdog(self.rank) if parent is None else parent._watchdog
        if parent is None:
            atexit.register(self._ended_in_time)
        told = os.environ.get("OMPI_MCA_mpi_ft_enable", "")  # noqa: SIM112 (by mpirun --with-ft ulfm)
        self._crowded = oversubscribed()
        self.survives = told in ("1", "true") and library().startswith("Open MPI")

    def subset(self, ranks: Sequence[int]) -> "Mpi":
        return Mpi(self, ranks)

    def _begin(self) -> None:
        """Make the communicator of a subset of the ranks, when it is first used."""
        if self._parent is not None and self._comm == MPI.COMM_NULL:
            whole = self._parent._comm
            assert isinstance(whole, MPI.Intracomm)
            self._comm = whole.Create_group(whole.Get_group().Incl(list(self.ranks)))

    def allgather(self, x: np.ndarray) -> np.ndarray:
        gathered = np.empty((self.size, *x.shape), dtype=x.dtype)
        with self._waiting(gathered.nbytes):
            self._call("Allgather", np.ascontiguousarray(x), gathered)
        return gathered

    def gather(self, x: np.ndarray) -> np.ndarray | None:
        gathered = None if self.rank else np.empty((self.size, *x.shape), dtype=x.dtype)
        with self._waiting(0 if gathered is None else gathered.nbytes):
            self._call("Gather", np.ascontiguousarray(x), gathered)
        return gathered

    def allreduce_sum(self, x_V: Array) -> Array:
        total = np.empty_like(x_V)
        with self._waiting(total.nbytes):
            self._call("Allreduce", x_V, total)
        return total

    def exchange(self, x_V: Array, partner: int) -> Array:
        if partner == self.rank:
            return x_V
        other = np.empty_like(x_V)
        with self._waiting(other.nbytes):
            if self._crowded:
                self._sleep(self._comm.Isend(x_V, partner), self._comm.Irecv(other, partner))
            else:
                self._comm.Sendrecv(x_V, partner, recvbuf=other, source=partner)
        return other

    def arrival(self) -> Callable[[], bool]:
        request = self._comm.Ibarrier()
        return lambda: bool(request.Test())

    def limit(self, timeout_s: float | None) -> None:
        self._watchdog.limit(timeout_s)

    def _call(self, name: str, given: np.ndarray, found: np.ndarray | None) -> None:
        """MPI's function of this name, which polls until it is done; asleep where ranks that work need the core."""
        if self._crowded:
            self._sleep(getattr(self._comm, f"I{name.lower()}")(given, found))
        else:
            getattr(self._comm, name)(given, found)

    def _sleep(self, *requests: MPI.Request) -> None:
        for request in requests:
            while not request.Test():
                time.sleep(NAP_S)

    @contextmanager
    def _waiting(self, num_bytes: int) -> Iterator[None]:
        (self._parent or self).received += num_bytes
        try:
            with self._watchdog():
                self._begin()
                yield
        except MPI.Exception as error:
            lost = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
            if self.survives and error.Get_error_class() in lost:
                raise RankLost from None
            raise

    def shrink(self) -> list[int]:
        while True:
            with suppress(MPI.Exception):
                self._comm.Revoke()
            with self._watchdog():
                self._comm = self._comm.Shrink()  # a new communicator, of those that are left
            self.rank, self.size = self._comm.rank, self._comm.size
            self.ranks = range(self.size)
            try:
                alive = self.allgather(np.array([self._number]))[:, 0].tolist()
            except RankLost:  # another one, meanwhile
                continue
            lost, self._alive = [rank for rank in self._alive if rank not in alive], alive
            return lost

    def abort(self, code: int) -> NoReturn:
        until_read(sys.stderr.fileno())
        self._comm.Abort(code)
        raise SystemExit(code)

    def finish(self, code: int) -> None:
        if self._comm != MPI.COMM_WORLD:  # MPI_Finalize may wait for the dead
            with suppress(MPI.Exception), self._watchdog():
                self._comm.Barrier()
            sys.stdout.flush()
            os._exit(code)

    def _ended_in_time(self) -> None:
        """Limit MPI_Finalize, which comes after Python has ended and may wait for the others."""
        keeper(self._number, self._watchdog.limit_s, "ending MPI")

    def describe(self) -> dict[str, str]:
        return {"mpi": library(), "host": MPI.Get_processor_name()}


def library() -> str:
    """The version line of the MPI library that is loaded."""
    return MPI.Get_library_version().splitlines()[0].rstrip("\x00").replace("\t", " ")
