"""What a site check finds of the filesystem that runs are written to, from this host alone."""

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

from distqtrl.doctor.verdict import Verdict, failed, ok, warning
from distqtrl.errors import UserError
from distqtrl.files.lock import Held, locked
from distqtrl.files.replace import replace

WRITTEN = 8 << 20  # bytes that must fit: a quota is seen by writing alone
FULL, NEAR = 64 << 20, 1 << 30  # bytes that are free
FEW_FILES, NEAR_FILES = 100, 10_000
RENAMES, FLUSHES = 50, 10
SLOW_S = 0.5


def write(folder: Path) -> Verdict:
    """What is written is there."""
    data = os.urandom(WRITTEN)
    path = folder / "write"
    began = time.monotonic()
    try:
        replace(path, data)
        if path.read_bytes() != data:
            return failed("what was read is not what was written")
    except OSError as error:
        return failed(f"{WRITTEN >> 20} MiB cannot be written: {error.strerror}")
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return ok(f"{WRITTEN >> 20} MiB written and read in {time.monotonic() - began:.2f} s")


def rename(folder: Path) -> Verdict:
    """A file that is replaced is whole at every moment."""
    path, versions = folder / "rename", [bytes([65 + number]) * 65536 for number in range(2)]
    replace(path, versions[0])
    broken, reads, over = "", 0, threading.Event()

    def read() -> None:
        nonlocal broken, reads
        while not over.is_set() and not broken:
            try:
                broken = "" if path.read_bytes() in versions else "a half-written file was seen"
            except OSError as error:
                broken = f"a file was missing while it was replaced ({error.strerror})"
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(RENAMES):
            replace(path, versions[number % 2])
    finally:
        over.set()
        reader.join()
    return failed(broken) if broken else ok(f"replaced {RENAMES} times, whole at each of {reads} looks")


def flush(folder: Path) -> Verdict:
    """What is flushed is on the disk, in a time that a checkpoint can wait."""
    times = []
    with (folder / "flush").open("wb") as file:
        for _ in range(FLUSHES):
            file.write(bytes(4096))
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            times.append(time.monotonic() - began)
    text = f"an fsync takes {1000 * median(times):.3g} ms"
    slow = "train.checkpoint_every a larger number, or train.directory on a faster filesystem"
    return ok(text) if median(times) < SLOW_S else warning(text, slow)


def lock(folder: Path) -> Verdict:
    """A lock is refused to a second process, and given back when the first is killed."""
    path = folder / "lock"
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            os.write(writing, _taken(path).encode()[:500])
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        first = os.read(reading, 500).decode()
        second = _taken(path) if first == "granted" else ""
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(reading)
        os.close(writing)
    if first != "granted":
        return failed(first)
    if second == "granted":
        return failed("two processes got the same lock")
    if second != "refused":
        return failed(second)
    after = _taken(path)
    if after != "granted":
        return failed(f"the lock of a process that was killed stays: {after}")
    return ok("refused while it is held, free when its holder was killed")


def _taken(path: Path) -> str:
    """Whether this process gets the lock: "granted", "refused" or why there is none. It keeps it until it ends."""
    try:
        KEPT.append(locked(path))
    except Held:
        return "refused"
    except (UserError, OSError) as error:
        return str(error)
    return "granted"


KEPT: list[object] = []


def space(folder: Path) -> Verdict:
    """Room for checkpoints."""
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):,.2f} GiB free (a quota is not seen)"
    if free < FULL:
        return failed(text)
    return ok(text) if free >= NEAR else warning(text, "remove old runs; train.keep_checkpoints limits a run's")


def inodes(folder: Path) -> Verdict:
    """Room for more files."""
    facts = os.statvfs(folder)
    if facts.f_files == 0:
        return ok("this filesystem does not count files")
    text = f"{facts.f_favail:,} more files"
    if facts.f_favail < FEW_FILES:
        return failed(text)
    return ok(text) if facts.f_favail >= NEAR_FILES else warning(text, "remove files that nobody needs")
