"""Where the kernels' machine code is kept, and who compiles it: one process, while the others that need it wait.

Code belongs to the sources, the processor and the versions that it was made of and for, so it has a folder for
each of these. Numba by itself looks at the file of a function only, and not at the files of what that one calls.
"""

import fcntl
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

CONFIG: Any = numba.config  # its settings are attributes made at run time
HERE = Path(__file__).parent
SOURCES = ("simd", "kernels", "plan", "ansatz", "gates", "sweep", "interleaved")
WAIT_S = 120.0  # for another process that compiles; then it hangs, and we compile as well

seconds: list[float] = []  # how long this process compiled, or waited for one that did


def _key() -> str:
    digest = hashlib.sha256()
    for part in (
        *((HERE / f"{name}.py").read_bytes() for name in SOURCES),
        llvmlite.binding.get_host_cpu_name().encode(),
        llvmlite.binding.get_host_cpu_features().flatten().encode(),
        f"{numba.__version__} {sys.implementation.cache_tag} {CONFIG.CPU_NAME}".encode(),
    ):
        digest.update(hashlib.sha256(part).digest())
    return f"kernels-{digest.hexdigest()[:16]}"


def _homes() -> Iterator[Path]:
    """Where compiled code belongs: the user's choice, beside the sources, the user's cache."""
    if CONFIG.CACHE_DIR:
        yield Path(CONFIG.CACHE_DIR)
    yield HERE / "__pycache__"
    with suppress(RuntimeError):  # a user without an entry in /etc/passwd has no ~
        yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distqtrl"


def _temporary() -> Path:
    """A folder of this user's alone, which outlives this process; raises OSError where there is none."""
    folder = Path(tempfile.gettempdir()) / f"distqtrl-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"{folder} is not ours alone")  # code of others would be run
    return folder


def _place() -> tuple[Path | None, bool]:
    """The folder (None where nothing can be written), and whether it is a temporary one."""
    key = _key()
    for home in _homes():
        with suppress(OSError):
            return _writable(home / key), False
    with suppress(OSError):
        return _writable(_temporary() / key), True
    return None, True


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return folder


FOLDER, TEMPORARY = _place()


def inner(function: Callable[..., Any]) -> Any:
    """numba.njit for what only compiled functions call: without what Python needs to call it, it compiles faster."""
    njit: Any = numba.njit  # its declaration lacks these
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def kept(function: Callable[..., Any]) -> Any:
    """numba.njit, with the code kept in FOLDER. For what Python calls: functions that these call are a part of it."""
    before = CONFIG.CACHE_DIR
    try:
        CONFIG.CACHE_DIR = "" if FOLDER is None else str(FOLDER)
        return numba.njit(cache=FOLDER is not None, nogil=True)(function)
    finally:
        CONFIG.CACHE_DIR = before


def ready(name: str) -> bool:
    """Whether the code of this name was compiled before, and is in FOLDER."""
    return FOLDER is not None and (FOLDER / f"{name}.compiled").exists()


def once(name: str, compile: Callable[[], None]) -> None:
    """compile(), which loads what is on disk; where it is not, by one process at a time.

    A process that ends gives its turn to the next, however it ends. Raises OSError where the code cannot be kept.
    """
    if ready(name):
        compile()
        return
    began = time.monotonic()
    if FOLDER is None:
        compile()
    else:
        with (FOLDER / "lock").open("w") as lock:
            while not (ready(name) or _taken(lock.fileno()) or time.monotonic() - began > WAIT_S):
                time.sleep(0.05)
            compile()
            (FOLDER / f"{name}.compiled").touch()
    seconds.append(time.monotonic() - began)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks: all compile
        pass
    return True


def told() -> str:
    """A line that says what was compiled; empty when the code was on disk."""
    if not seconds:
        return ""
    line = f"compiled the circuit's kernels in {seconds[0]:.1f} s; "
    if FOLDER is None:
        return f"{line}every run has to, since nothing can be written: set NUMBA_CACHE_DIR to a folder that can be"
    if TEMPORARY:
        return f"{line}kept in {FOLDER.parent} only: set NUMBA_CACHE_DIR to a folder that can be written and stays"
    return f"{line}later runs find them on disk"
