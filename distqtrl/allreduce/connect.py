"""The communicator of this job: what the launcher said, and the MPI that fits it."""

import os
import re
import subprocess
import sys
from contextlib import suppress

from distqtrl.allreduce import leftovers
from distqtrl.allreduce.communicator import Communicator, Serial
from distqtrl.allreduce.watchdog import MEANING, keeper
from distqtrl.errors import UserError

LAUNCHERS = (  # what they tell every process they start, MPICH and Intel, Open MPI, srun
    {"size": "PMI_SIZE", "rank": "PMI_RANK", "on_host": "MPI_LOCALNRANKS", "here": "MPI_LOCALRANKID"},
    {
        "size": "OMPI_COMM_WORLD_SIZE",
        "rank": "OMPI_COMM_WORLD_RANK",
        "on_host": "OMPI_COMM_WORLD_LOCAL_SIZE",
        "here": "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    {
        "size": "SLURM_STEP_NUM_TASKS",
        "rank": "SLURM_PROCID",
        "on_host": "SLURM_STEP_TASKS_PER_NODE",
        "here": "SLURM_LOCALID",
    },
)


def announced(what: str, without: int) -> int:
    """The "size", the "rank", the ranks "on_host" or the rank among them, "here": known before (or without) MPI.

    srun writes its ranks on every host in one variable, such as 2(x3),1: the most of them count. One process is rank 0,
    whatever a job around it has left in its variables.
    """
    if what == "rank" and announced("size", without=1) == 1:
        return without
    for launcher in LAUNCHERS:
        numbers = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get(launcher[what], ""))
        if numbers:
            return max(int(number) for number in numbers)
    return without


_given: set[int] = set()


def given_cores() -> list[int]:
    """The cores that the launcher lets this process run on; where they are crowded, it keeps to one of them."""
    return sorted(_given or _cores(0))


def oversubscribed() -> bool:
    """Whether more ranks than cores are on this host.

    A launcher that binds its ranks shows each of them its own cores only, its own process still has them all.
    """
    return announced("on_host", without=1) > max(len(given_cores()), len(_cores(os.getppid())))


def _share_cores() -> None:
    """Let the MPI that is loaded next give up its core while it waits, if more ranks than cores are on this host.

    MPI waits by polling, which starves the ranks that still work. MPICH's heavy yield costs latency otherwise, so
    it is set only then. What the user has set stays. Where every core gets as many ranks as the others, they stay on
    theirs, unless the launcher has bound them.
    """
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    if oversubscribed():
        os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
        cores = given_cores()
        _given.update(cores)
        free = len(cores) > 1 and set(cores) == _cores(os.getppid())
        if free and announced("on_host", without=1) % len(cores) == 0:
            with suppress(AttributeError, OSError):
                os.sched_setaffinity(0, {cores[announced("here", without=0) % len(cores)]})


def _cores(pid: int) -> set[int]:
    try:
        return os.sched_getaffinity(pid)
    except (AttributeError, OSError):  # macOS has none; a launcher of another user
        return set(range(os.cpu_count() or 1))


def library() -> str:
    """Version line of the MPI library that mpi4py finds, without starting MPI; empty when there is none."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from distqtrl.allreduce.mpi import library; print(library())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def connect(timeout_s: float | None = 1800.0, calling: str = "") -> Communicator:
    """The communicator of this job: MPI when a launcher started us, else serial.

    timeout_s: how long to wait for the others, now and until ``limit`` says otherwise; None for ever. calling: the
    function of ours that a program of the user's called, and that every rank has to call.

    Raises UserError when mpi4py is missing, or when its library is not the launcher's (every rank would
    then be rank 0 of 1 and train alone).
    """
    size = announced("size", without=1)
    if size == 1:
        return Serial()
    _share_cores()
    leftovers.remove()
    meaning = f"not all ranks called {calling}, or {MEANING}" if calling else MEANING
    note = f"waits for the other ranks: every rank has to call {calling}" if calling else ""
    connected = keeper(announced("rank", without=0), timeout_s, "connecting", meaning, note)
    try:
        from distqtrl.allreduce.mpi import Mpi
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the launcher started {size} ranks, but MPI cannot be loaded ({error}); "
            f"pip install 'distqtrl[mpich]', or distqtrl[mpi] for the MPI of your site"
        ) from None
    finally:
        connected()
    world = Mpi()
    world.limit(timeout_s)
    if world.size != size:
        raise UserError(
            f"the launcher started {size} ranks, but MPI sees {world.size}: mpirun and the library of mpi4py "
            f"({world.describe()['mpi']}) belong to different MPIs: use the mpirun of this Python's environment"
        )
    return world
