"""Ranks as a check starts them: by the site's launcher, with a time limit, and gone at its end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distqtrl.allreduce.connect import LAUNCHERS
from distqtrl.slurm import Launcher

TAG = "DISTQTRL_SITE_CHECK"  # a variable in the environment of everything that a check starts
OF_A_LAUNCHER = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID")
BY_USERS = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_", "OMPI_ALLOW_")  # these begin alike, and are settings
POLL_S = 0.01


@dataclass(frozen=True)
class Site:
    """What is checked: where runs are to be, how many ranks are started, and by what."""

    directory: Path
    ranks: int
    launcher: Launcher
    submit: bool = False  # whether a job may be submitted
    sbatch: tuple[str, ...] = ()  # flags for it

    @property
    def starts(self) -> str:
        """The launcher in words."""
        return f"srun --mpi={self.launcher.plugin}" if self.launcher.plugin else self.launcher.mpirun


@dataclass
class Job:
    """Ranks that were started; ``output`` has their standard output and error."""

    process: subprocess.Popen[bytes]
    output: Path
    tag: str

    def text(self) -> str:
        """What they have printed so far."""
        return self.output.read_text(errors="replace")

    def ended(self, limit_s: float) -> bool:
        """Whether the launcher and all its processes here are gone within so many seconds."""
        return until(lambda: self.process.poll() is not None and not ranks_here(self), limit_s)


def slurm_number(variable: str, without: int) -> int:
    """The number that SLURM says in a variable; ``without`` where it says none, or a shell has left it empty."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else without


def command(site: Site, words: Sequence[str]) -> list[str]:
    """The line that starts ranks of ``python *words``."""
    program = [sys.executable, *words]
    if site.launcher.plugin is None:
        return [site.launcher.mpirun, "-n", str(site.ranks), *program]
    # --overlap: the check itself may be a step of this job
    flags = [f"--mpi={site.launcher.plugin}", "--kill-on-bad-exit=1", "--overlap", f"--ntasks={site.ranks}"]
    return ["srun", *flags, f"--cpus-per-task={slurm_number('SLURM_CPUS_PER_TASK', without=1)}", *program]


def environment() -> dict[str, str]:
    """This environment, without what a launcher said of this process, and with what launch/ sets for its ranks."""
    known = {name for launcher in LAUNCHERS for name in launcher.values()}
    env = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(BY_USERS) or not (name in known or name.startswith(OF_A_LAUNCHER))
    }
    ours = {
        "OMP_NUM_THREADS": "1",
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    return ours | root | env


@contextmanager
def started(site: Site, words: Sequence[str]) -> Iterator[Job]:
    """Ranks of ``python *words``; none of them outlives the block. Raises OSError where there is no such launcher."""
    tag = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="site-check-") as folder:
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command(site, words), env=environment() | {TAG: tag}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        job = Job(process, output, tag)
        try:
            yield job
        finally:
            _end(job)


def _end(job: Job) -> None:
    """End a launcher, which ends its ranks; what is left of them here is ended, too."""
    if job.process.poll() is None:
        job.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            job.process.wait(3)
        job.process.kill()
    for pid in ranks_here(job):
        kill(pid)
    job.process.wait(5)


def ranks_here(job: Job) -> dict[int, int]:
    """Processes of the job's ranks on this host, and their ranks; nothing where there is no /proc."""
    found = {}
    variables = tuple(f"{launcher['rank']}=".encode() for launcher in LAUNCHERS)
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with suppress(OSError):
            values = (path / "environ").read_bytes().split(b"\0")  # a zombie's is empty
            told = [value.partition(b"=")[2] for value in values if value.startswith(variables)]
            ranks = [int(number) for number in told if number.isdigit()]
            if f"{TAG}={job.tag}".encode() in values and ranks:
                found[int(path.name)] = ranks[0]
    return found


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether it holds within so many seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
