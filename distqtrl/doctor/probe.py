"""What the ranks of a site check say, in lines of JSON: each for itself before MPI, then all that they find together.

mpirun -n 2 python -m distqtrl.doctor.probe FOLDER LIMIT_S
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl import cgroup
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.connect import announced, connect
from distqtrl.allreduce.reductions import REDUCTIONS, allgather_bytes
from distqtrl.doctor.launching import slurm_number
from distqtrl.errors import UserError
from distqtrl.files.lock import Held, locked
from distqtrl.record.directory import VISIBLE_WITHIN_S

PREFIX = "site-check: "
PROTOCOLS = {  # what a launcher speaks, by what it sets
    "PMIX_RANK": "PMIx",
    "PMI_RANK": "PMI",
    "OMPI_COMM_WORLD_RANK": "Open MPI",
    "SLURM_PROCID": "srun",
}
READINGS = 20  # of the clocks
LIMITS = ("NOFILE", "NPROC", "FSIZE", "AS", "CPU")


def main(folder: Path, limit_s: float) -> int:
    """The program of a rank; returns its exit code."""
    process = {"rank": announced("rank", without=0), "size": announced("size", without=1), "host": platform.node()}
    _say("process", {**process, "pmi": [text for name, text in PROTOCOLS.items() if name in os.environ], **signals()})
    try:
        comm = connect(limit_s)
    except UserError as error:
        _say("refused", str(error))
        return 2
    for name, stage in STAGES.items():
        mine = json.dumps(stage(comm, folder)).encode()
        answers = [json.loads(part) for part in allgather_bytes(comm, mine)]
        if comm.rank == 0:
            _say(name, answers)
    comm.finish(0)
    return 0


def _say(name: str, value: Any) -> None:
    """One line, in one write, so that lines of different ranks do not mix."""
    os.write(1, f"{PREFIX}{json.dumps([name, value])}\n".encode())


def signals() -> dict[str, list[str]]:
    """Stop signals that this process was started without: blocked, or ignored."""
    stop = (signal.SIGUSR1, signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {
        "blocked": [number.name for number in stop if number in blocked],
        "ignored": [number.name for number in stop if signal.getsignal(number) == signal.SIG_IGN],
    }


def facts(comm: Communicator, folder: Path) -> dict[str, Any]:
    """What this rank runs on."""
    import torch

    from distqtrl.circuit.memory import machine_memory
    from distqtrl.doctor.ranks import rank_facts
    from distqtrl.versions import versions

    shared = None
    with suppress(OSError):
        shared = shutil.disk_usage("/dev/shm").free
    launcher_cores = None
    with suppress(AttributeError, OSError):  # macOS has none; a launcher of another user
        launcher_cores = len(os.sched_getaffinity(os.getppid()))
    return {
        **comm.describe(),
        **rank_facts(),
        "versions": versions(),
        "torch_threads": torch.get_num_threads(),
        "allocated": slurm_number("SLURM_CPUS_ON_NODE", without=0),
        "launcher_cores": launcher_cores,
        "host_cores": os.cpu_count(),
        "quota": cgroup.cpus(),
        "memory": int(machine_memory()),
        "shared": shared,
        "limits": {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in LIMITS},
    }


def sums(comm: Communicator, folder: Path) -> dict[str, str]:
    """A digest of every reduction of numbers whose sum depends on the order of additions."""
    rng = np.random.default_rng(comm.rank)
    x_V = rng.normal(size=1000) * 10.0 ** rng.integers(-8, 8, size=1000)
    return {name: hashlib.sha256(total(comm, x_V).tobytes()).hexdigest() for name, total in REDUCTIONS.items()}


def clocks(comm: Communicator, folder: Path) -> list[float]:
    """This host's time when all ranks have met, again and again."""
    times = []
    for _ in range(READINGS):
        comm.allgather(np.zeros(1))
        times.append(time.time())
    return times


def own_signal(comm: Communicator, folder: Path) -> dict[str, bool]:
    """Whether a SIGUSR1 that this rank sends to itself arrives, MPI being loaded."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: arrived.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    deadline = time.monotonic() + 2
    while not arrived and time.monotonic() < deadline:
        time.sleep(0.01)
    signal.signal(signal.SIGUSR1, before)
    return {"arrived": bool(arrived)}


def stamps(comm: Communicator, folder: Path) -> dict[str, Any]:
    """How far the filesystem's time of a new file is from this host's clock, in seconds."""
    path = folder / f"stamp-{comm.rank}"
    try:
        before = time.time()
        path.write_bytes(b"x")
        written = path.stat().st_mtime
        return {"skew_s": min(0.0, written - before) or max(0.0, written - time.time())}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def visible(comm: Communicator, folder: Path) -> dict[str, Any]:
    """After how many seconds this rank sees what rank 0 has written; None: not in time."""
    told = _tried(lambda: (folder / "seen").write_bytes(b"seen")) if comm.rank == 0 else {}
    comm.allgather(np.zeros(1))
    began = time.monotonic()
    while time.monotonic() < began + VISIBLE_WITHIN_S:
        with suppress(OSError):
            if (folder / "seen").read_bytes() == b"seen":
                return {**told, "after_s": time.monotonic() - began}
        time.sleep(0.05)
    return {**told, "after_s": None}


def locks(comm: Communicator, folder: Path) -> dict[str, Any]:
    """Rank 0 holds a lock and the others ask for it: "granted", "refused" or why it cannot be asked for."""
    told: dict[str, Any] = {}
    held = None
    for holder in (True, False):
        if holder == (comm.rank == 0):
            try:
                file = locked(folder / "lock-of-ranks")
                held = file if holder else held
                told["lock"] = "granted"
                if not holder:
                    file.close()
            except Held:
                told["lock"] = "refused"
            except (UserError, OSError) as error:
                told["lock"] = str(error)
        comm.allgather(np.zeros(1))
    if held is not None:
        held.close()
    return told


def _tried(action: Callable[[], Any]) -> dict[str, Any]:
    try:
        action()
    except OSError as error:
        return {"error": error.strerror or str(error)}
    return {}


STAGES: dict[str, Callable[[Communicator, Path], Any]] = {
    "facts": facts,
    "sums": sums,
    "clocks": clocks,
    "own_signal": own_signal,
    "stamps": stamps,
    "visible": visible,
    "locks": locks,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
