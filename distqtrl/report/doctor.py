"""The state of an installation, and of one rank."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

PACKAGES = (
    "distqtrl",
    "torch",
    "torch-geometric",
    "gymnasium",
    "numba",
    "numpy",
    "mpi4py",
    "mpich",
    "pennylane",
    "pennylane-lightning",
    "qiskit-aer",
    "qiskit-ibm-runtime",
)


def versions() -> dict[str, str]:
    """Versions of python and the packages that matter; 'not installed' for optional ones that are absent."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def rank_facts() -> dict[str, Any]:
    """Host, process, cores and threads of this rank."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    caps = os.environ.get("OMP_NUM_THREADS", "unset")
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "cores": ",".join(str(c) for c in cores),
        "threads": f"torch {torch.get_num_threads()}, OMP_NUM_THREADS {caps}",
    }
