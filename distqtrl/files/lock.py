"""A lock on a folder, which the kernel gives back when its process ends."""

import fcntl
import os
import platform
from pathlib import Path
from typing import IO

from distqtrl.errors import UserError
from distqtrl.files.replace import named


class Held(UserError):
    """Another process, ``holder``, has the lock."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is being written by {holder}: wait for its end, or stop it")
        self.holder = holder


def locked(path: Path) -> IO[str]:
    """The file with the kernel's lock on it, which goes when this process ends, however it ends; network filesystems
    tell other hosts of it.

    Raises Held where another process has it. Closing any other file of this path in this process gives it up, too.
    """
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if isinstance(error, BlockingIOError):
            raise Held(path.parent, holder) from None
        remedy = "put train.directory on a filesystem with locks"
        raise UserError(f"{path} cannot be locked ({error.strerror}): {remedy}") from None
    job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    with named(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {platform.node()}{job}\n")
        file.flush()
    return file
