"""Versions of Python and of the packages that matter."""

import platform
from importlib import metadata

PACKAGES = (
    "distqtrl",
    "torch",
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
    """Versions of python and the packages that matter."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def version(package: str) -> str:
    """The installed version of a package, or 'not installed'."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
