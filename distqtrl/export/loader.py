"""The C policy in Python: builds policy.c beside this file with the system's compiler and calls it through ctypes.

    from policy import Policy
    policy = Policy()
    policy.act(values)                     # units of the environment in, units of the environment out
    policy.observation[:] = integers       # the fast way: two shared arrays and a call without arguments
    policy.step()
    policy.action

Part of an export of distqtrl; needs numpy and a C compiler (cc, gcc or clang, or the one in the variable CC).
"""

import atexit
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c99", "-O3", "-march=native", "-shared", "-fPIC"]
LIMIT_S = 300  # of the compiler


class Policy:
    """observation (O,) and action (A,) are views of the library's own arrays.

    flags: the compiler's, in place of FLAGS; library: one that was built already.
    """

    def __init__(self, flags: list[str] | None = None, library: Path | None = None) -> None:
        path = str(library or _built(FLAGS if flags is None else flags))
        self.library = ctypes.CDLL(path)
        inputs, actions, self.fraction, size = (
            ctypes.c_int32.in_dll(self.library, f"policy_{name}").value
            for name in ("inputs", "actions", "fraction", "observation_size")
        )
        integer = {1: ctypes.c_int8, 2: ctypes.c_int16, 4: ctypes.c_int32}[size]
        self.observation = np.ctypeslib.as_array((integer * inputs).in_dll(self.library, "policy_observation"))
        self.action = np.ctypeslib.as_array((ctypes.c_int32 * actions).in_dll(self.library, "policy_action"))
        self.step = ctypes.PyDLL(path).policy_step  # to release the interpreter's lock would take as long again
        self.step.argtypes, self.step.restype = (), None

    def act(self, values: np.ndarray) -> np.ndarray:
        """The action (A,) for one observation (O,), both in the environment's units."""
        row = np.ascontiguousarray(values, np.float64)
        if row.shape != self.observation.shape:
            raise ValueError(f"an observation of shape {row.shape}, the policy takes {self.observation.shape}")
        self.library.policy_convert(_pointer(row), _pointer(self.observation))
        self.step()
        return np.ldexp(self.action, -self.fraction) if self.fraction else self.action.copy()

    def batch(self, observations: np.ndarray) -> np.ndarray:
        """Integer actions (B, A) of integer observations (B, O)."""
        rows = np.ascontiguousarray(observations, self.observation.dtype)
        if rows.ndim != 2 or rows.shape[1] != len(self.observation):
            raise ValueError(f"observations of shape {rows.shape}, the policy takes (B, {len(self.observation)})")
        actions = np.empty((len(rows), len(self.action)), np.int32)
        self.library.policy_batch(_pointer(rows), _pointer(actions), ctypes.c_int32(len(rows)))
        return actions


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def compiler() -> list[str]:
    """The words of the variable CC, as make reads it; where it says nothing, the first of cc, gcc, clang that is here.

    Raises ValueError where the quotes in CC do not match.
    """
    words = shlex.split(os.environ.get("CC", ""))
    return words or [next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "cc")]


def _built(flags: list[str]) -> Path:
    """The shared library: the cached one of this content, compiler, flags and kind of CPU, or a new one.

    Where the cache cannot be written, the library is in a temporary folder until Python ends.
    """
    words = [*compiler(), *flags]
    place = Path(tempfile.mkdtemp(prefix="policy-"))
    try:
        content = b"".join((HERE / name).read_bytes() for name in ("policy.h", "policy.c"))
        key = hashlib.sha256(content + repr(words).encode() + _machine(words, place)).hexdigest()[:16]
        library, cached = place / f"policy-{key}.so", _cache() / f"policy-{key}.so"
        if not _whole(cached):
            _run([*words, "-o", str(library), str(HERE / "policy.c")], place)
            if not library.exists():
                raise RuntimeError(f"{words[0]} wrote no library: repair it, or name another compiler in CC")
            with suppress(OSError):
                cached.parent.mkdir(parents=True, exist_ok=True)
                partial = cached.with_suffix(f".{place.name}")  # no other process has that, on any host
                try:
                    shutil.copyfile(library, partial)
                    partial.replace(cached)
                finally:
                    partial.unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    if _whole(cached):
        shutil.rmtree(place, ignore_errors=True)
        return cached
    atexit.register(shutil.rmtree, place, True)
    return library


def _cache() -> Path:
    """Where libraries are kept; os.devnull, where nothing can be, without HOME and without an entry in /etc/passwd."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distqtrl"
    except RuntimeError:
        return Path(os.devnull)


def _whole(library: Path) -> bool:
    """Whether a library is there that loads."""
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _machine(words: list[str], place: Path) -> bytes:
    """What says whether a library of this compiler runs here: its macros, which hold its version and what
    -march=native stands for, and the CPU's own flags."""
    found = b""
    with suppress(OSError):
        names = (b"model name", b"flags", b"Features", b"CPU part")
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        found = b"\n".join(sorted({line for line in lines if line.startswith(names)}))
    with suppress(RuntimeError):  # a compiler that has no such macros
        found += _run([*words, "-dM", "-E", "-x", "c", os.devnull], place)
    return found


def _run(command: list[str], place: Path) -> bytes:
    """What the compiler prints; raises RuntimeError, one line, where it fails. Its children end with it."""
    errors, out = place / "errors", place / "out"
    with errors.open("wb") as err, out.open("wb") as text:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=text, stderr=err, start_new_session=True,
                env={**os.environ, "TMPDIR": str(place)},
            )  # fmt: skip
        except OSError as error:
            raise RuntimeError(f"no C compiler {command[0]} ({error.strerror}): name one in CC") from None
        try:
            code = child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command[0]} did not end within {LIMIT_S} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code:
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()] or [
            "it said nothing"
        ]
        told = [line for line in lines if "error" in line] or lines[-1:]
        raise RuntimeError(f"{command[0]} failed with exit code {code}: {told[0].strip()}")
    return out.read_bytes()
