"""The communicator over MPI; the only file that imports mpi4py. Buffers only, nothing is pickled."""

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
        self._world.Abort(code)
        raise SystemExit(code)

    def describe(self) -> dict[str, str]:
        version = MPI.Get_library_version().splitlines()[0].rstrip("\x00").replace("\t", " ")
        return {"mpi": version, "host": MPI.Get_processor_name()}
