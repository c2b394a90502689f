"""Processes of the launched ranks, seen from outside, by a tag in their environment (Linux)."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

OPENMPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_pml": "ob1",  # no search for fabrics, which takes a second
    "OMPI_MCA_btl": "^ofi",
}
RANK = (b"PMI_RANK=", b"OMPI_COMM_WORLD_RANK=")  # MPICH, Open MPI


def tagged(tag: bytes) -> dict[int, int | None]:
    """Living processes with this entry in their environment (a zombie's is empty), and their ranks."""
    found: dict[int, int | None] = {}
    for pid in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(OSError):
            values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if tag in values:
                found[pid] = next((int(value.split(b"=")[1]) for value in values if value.startswith(RANK)), None)
    return found


def kill(pid: int) -> bool:
    """SIGKILL; whether the process was there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline:
            return False
        time.sleep(0.01)
    return True
