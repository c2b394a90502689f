"""Shared memory that killed ranks left behind.

MPICH names its files in /dev/shm after the job. Under srun that is the job's and step's number, which a requeued job
has again: ranks that were killed with SIGKILL would keep their own successors from starting ("Out of memory").
"""

import os
import time
from contextlib import suppress
from pathlib import Path

STARTING_S = 5.0  # a rank that creates a file maps it within this


def remove(folder: Path = Path("/dev/shm")) -> None:
    """Remove this user's files of MPICH that no process has mapped any more."""
    left = {path for path in folder.glob("mpich_shm_*") if _is_ours_and_old(path)}
    if left:
        for path in left - _mapped():
            path.unlink(missing_ok=True)


def _is_ours_and_old(path: Path) -> bool:
    with suppress(OSError):
        facts = path.stat()
        return facts.st_uid == os.getuid() and time.time() - facts.st_mtime > STARTING_S
    return False


def _mapped() -> set[Path]:
    """Files that processes of this user have mapped."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it ended, or is another user's
            found |= {
                Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if "/mpich_shm_" in line
            }
    return found
