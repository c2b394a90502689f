"""The C policy in Python: builds policy.c beside this file with the system's compiler and calls it through ctypes.

    from policy import Policy
    policy = Policy()
    policy.act(values)                     # units of the environment in, units of the environment out
    policy.observation[:] = integers       # the fast way: two shared arrays and a call without arguments
    policy.step()
    policy.action

Part of an export of distqtrl; needs numpy and a C compiler (cc, or the one in the variable CC).
"""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c99", "-O3", "-march=native", "-shared", "-fPIC"]


class Policy:
    """observation (O,) and action (A,) are views of the library's own arrays."""

    def __init__(self, flags: list[str] | None = None) -> None:
        path = str(_built(FLAGS if flags is None else flags))
        self.library = ctypes.CDLL(path)
        inputs, actions, self.fraction, size = (
            ctypes.c_int32.in_dll(self.library, f"policy_{name}").value
            for name in ("inputs", "actions", "fraction", "observation_size")
        )
        integer = {2: ctypes.c_int16, 4: ctypes.c_int32}[size]
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


def _built(flags: list[str]) -> Path:
    """The shared library, built once for every content and set of flags."""
    compiler = os.environ.get("CC", "cc")
    content = b"".join((HERE / name).read_bytes() for name in ("policy.h", "policy.c"))
    key = hashlib.sha256(content + " ".join([compiler, *flags]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distqtrl"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"policy-{key}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *flags, "-o", str(partial), str(HERE / "policy.c")], check=True)
        partial.replace(library)
    return library
