"""The communicator over MPI; the only file that imports mpi4py. Buffers only, nothing is pickled."""

import fcntl
import sys
import termios
import time
from array import array
from contextlib import suppress
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from mpi4py import MPI


class Mpi:
    """All ranks of COMM_WORLD."""

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size

    def allgather(self, x: np.ndarray) -> np.ndarray:
        gathered = np.empty((self.size, *x.shape), dtype=x.dtype)
        self._world.Allgather(np.ascontiguousarray(x), gathered)
        return gathered

    def allreduce_sum(self, x_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = np.empty_like(x_N)
        self._world.Allreduce(x_N, total)
        return total

    def abort(self, code: int) -> NoReturn:
        _until_read(sys.stderr.fileno())
        self._world.Abort(code)
        raise SystemExit(code)

    def describe(self) -> dict[str, str]:
        version = MPI.Get_library_version().splitlines()[0].rstrip("\x00").replace("\t", " ")
        return {"mpi": version, "host": MPI.Get_processor_name()}


def _until_read(fd: int) -> None:
    """Wait until the launcher has read what we wrote to this pipe: MPICH's drops the rest when it hears of an abort."""
    deadline, unread = time.monotonic() + 2, array("i", [1])
    with suppress(OSError):  # not a pipe: nobody has to read it
        while unread[0] and time.monotonic() < deadline:
            fcntl.ioctl(fd, termios.FIONREAD, unread)
            time.sleep(0.01)
