"""A training run as a SLURM job: the batch script, and its submission by sbatch.

The script goes on with its run directory after every requeue (``train --run``). What it believes is
``result.json``, not the launcher's exit status. It asks to be requeued on exit code 75, which SIGUSR1 leads to, and
where its ranks alone got SIGTERM, which is how a preemption with a grace time begins; a cancelled job gets SIGTERM as
a whole, ends with 143 and stays cancelled.
"""

import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from distqtrl.allreduce.connect import library
from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.files.replace import replace

TIME = re.compile(r"(?:[0-9]{1,9}-)?(?:(?:[0-9]{1,9}:)?[0-9]{1,9}:)?[0-9]{1,9}")
MEMORY = re.compile(r"([1-9][0-9]{0,8})([KMGT]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM. ``words`` follow ``distqtrl train``; ``time`` is SLURM's (minutes, h:m:s, d-h:m:s).

    name: may be anything; the job, its log and its run directories are named by ``label``.
    """

    name: str
    words: tuple[str, ...]
    directory: str  # where the run directories are
    nodes: int = 1
    ranks_per_node: int = 4
    threads: int = 1
    time: str = "60"
    memory: str = "2G"  # of one rank
    notice_s: int = 120  # SIGUSR1 comes so long before the time limit
    seeds: tuple[int, ...] = ()  # a job array
    ranks: tuple[int, ...] = ()  # a job array, too
    requeue: bool = True
    sbatch: tuple[str, ...] = ()  # further flags

    @property
    def label(self) -> str:
        """The name in characters that mean nothing in a path, to SLURM (%) or to a shell."""
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", self.name).strip("-.")[:60] or "distqtrl"

    @property
    def path(self) -> str:
        """How names of the job's run directories start; a relative directory is never taken for a flag."""
        return f"{'./' if self.directory.startswith('-') else ''}{self.directory}/{self.label}"

    @property
    def memory_per_cpu(self) -> str:
        """SLURM counts memory per node or per CPU, and a rank has ``threads`` CPUs; rounded up."""
        match = MEMORY.fullmatch(self.memory)
        if match is None:
            raise UserError(f"--memory {self.memory!r}: write the memory of one rank, such as 2G or 500M")
        if self.threads == 1:
            return self.memory.upper()
        megabytes = int(match[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2].upper()]
        return f"{math.ceil(megabytes / self.threads)}M"

    @property
    def size(self) -> int:
        """Ranks of the whole allocation."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Launcher:
    """How ranks are started inside a job: by srun with this MPI plugin or, where it is None, by mpirun."""

    plugin: str | None
    mpirun: str = "mpirun"


def checked(job: Job, config: Config) -> Job:
    """The job; raises UserError for numbers that do not fit one another or the configuration."""
    if TIME.fullmatch(job.time) is None:
        raise UserError(f"--time {job.time!r}: write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    if job.notice_s >= seconds(job.time):
        raise UserError(
            f"--notice {job.notice_s} must be less than --time {job.time}: the signal comes that many seconds before it"
        )
    for count in job.ranks:
        if not 1 <= count <= job.size:
            raise UserError(f"--array-ranks {count}: {job.nodes} nodes x {job.ranks_per_node} ranks are {job.size}")
    for seed in job.seeds:
        if seed >= 2**32:
            raise UserError(f"--array-seeds {seed}: a seed is at most {2**32 - 1}")
    for flag in job.sbatch:
        if not flag.startswith("-") or not flag.isprintable():
            raise UserError(f"--sbatch {flag!r}: write a flag of sbatch in one line, such as --sbatch=--account=abc")
    fewest = min(job.ranks, default=job.size)
    if len(config.qpu.per_rank) > fewest:
        raise UserError(
            f"qpu.per_rank has {len(config.qpu.per_rank)} entries, the job has {fewest} ranks: remove entries, or "
            f"raise --nodes or --ranks-per-node"
        )
    return job


def seconds(time: str) -> int:
    """Seconds of a time limit as SLURM writes it: one number is minutes, two are m:s, or hours after days.

    >>> seconds("90"), seconds("1:30:00"), seconds("2-12"), seconds("2-12:30")
    (5400, 5400, 216000, 217800)
    """
    days, _, rest = time.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, secs = [*numbers, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + secs
    hours, minutes, secs = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    return (hours * 60 + minutes) * 60 + secs


def launcher(wanted: str) -> Launcher:
    """What starts ranks of the MPI that is installed here: srun where it speaks with that MPI, else its mpirun.

    MPICH and Intel MPI speak PMI-2. Open MPI needs SLURM's PMIx plugin of its own version: ``auto`` leaves that to
    its mpirun, which asks SLURM by itself.
    """
    beside = Path(sys.executable).with_name("mpirun")
    mpirun, mpi = str(beside if beside.exists() else "mpirun"), library()
    if wanted == "mpirun" or (wanted == "auto" and mpi.startswith("Open MPI")):
        return Launcher(None, mpirun)
    plugin = "pmix" if mpi.startswith("Open MPI") else "pmi2"
    if shutil.which("srun"):
        listed = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, check=False)
        if listed.returncode == 0 and plugin not in (listed.stdout + listed.stderr).split():
            if wanted == "srun":
                raise UserError(f"srun has no plugin {plugin}, which {mpi} needs (srun --mpi=list): --launcher mpirun")
            return Launcher(None, mpirun)
    return Launcher(plugin, mpirun)


def script(job: Job, launch: Launcher, python: str) -> str:
    """The text of the batch script."""
    array = len(job.seeds or (0,)) * len(job.ranks or (0,)) if job.seeds or job.ranks else 0
    by_step = launch.plugin is not None
    directives = [
        f"--job-name={job.label}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.ranks_per_node}",
        f"--cpus-per-task={job.threads}",
        f"--mem-per-cpu={job.memory_per_cpu}",
        f"--time={job.time}",
        f"--output={'%x-%A_%a' if array else '%x-%j'}.out",
        "--open-mode=append",
        f"--signal={'' if by_step else 'B:'}USR1@{job.notice_s}",
        "--requeue" if job.requeue else "--no-requeue",
        *([f"--array=0-{array - 1}"] if array else []),
        *job.sbatch,
    ]
    lines = ["#!/usr/bin/env bash", *(f"#SBATCH {_quoted(flag)}" for flag in directives)]
    if any(char in word for word in (job.path, *job.words) for char in "$`"):
        lines += ["# shellcheck disable=SC2016  # what stands in single quotes is meant as it is"]
    lines += ["set -uo pipefail"]
    lines += [f"export OMP_NUM_THREADS={job.threads}"]
    run, n, own = "", str(job.size), ""
    if array:
        lines += [
            f"seeds=({' '.join(map(str, job.seeds or ('',)))})",
            f"ranks=({' '.join(map(str, job.ranks or (job.size,)))})",
            "n=${ranks[SLURM_ARRAY_TASK_ID % ${#ranks[@]}]}",
        ]
        n, run = '"$n"', "-job$SLURM_ARRAY_JOB_ID"
        if job.seeds:
            lines += ["seed=${seeds[SLURM_ARRAY_TASK_ID / ${#ranks[@]}]}"]
            own = ' --train.seed "$seed"'
            run += "-seed$seed"
        if job.ranks:
            run += "-n$n"
    else:
        run = "-job$SLURM_JOB_ID"
    command = f'"${{held[@]}}" {shlex.quote(python)} -m distqtrl train {shlex.join(job.words)}{own} --run "$run"'
    lines += [f'run={shlex.quote(job.path)}"{run}"', HELD, ""]
    if by_step:
        # MPICH's UCX puts addresses that SLURM's PMI-2 was seen to garble, in the second start of a requeued job
        lines += ['export MPIR_CVAR_CH4_NETMOD="${MPIR_CVAR_CH4_NETMOD-ofi}"'] if launch.plugin == "pmi2" else []
        # since 22.05 srun does not take --cpus-per-task from its job
        flags = f"--mpi={launch.plugin} --kill-on-bad-exit=1 --ntasks={n} --cpus-per-task={job.threads}"
        lines += [f"srun {flags} {command}", "code=$?"]
    else:
        lines += [*MPIRUN_BEFORE, f"{shlex.quote(launch.mpirun)} -n {n} {command} &", *MPIRUN_AFTER]
    return "\n".join([*lines, *DONE, *(REQUEUE if job.requeue else []), *END]) + "\n"


def _quoted(flag: str) -> str:
    """A flag as sbatch reads it from a script: in a shell's quotes where it has spaces, or a # that starts a comment.

    >>> _quoted("--array=0-9%2"), _quoted("--comment=two words")
    ('--array=0-9%2', "'--comment=two words'")
    """
    return flag if re.fullmatch(r"[^\s#'\"\\]+", flag) else shlex.quote(flag)


# blocked, a signal that comes before Python runs waits for it (``stopping.note_requeue``); env knows how since 2019
HELD = "held=(env); ! env --block-signal=USR1 true 2> /dev/null || held+=(--block-signal=USR1)  # until Python listens"
MPIRUN_BEFORE = [
    "# mpirun hands SIGUSR1 on to its ranks; Open MPI's must not bind more ranks than it thinks there are cores",
    "export PRTE_MCA_hwloc_default_binding_policy=none",
    "launched='' signalled=''",
    """trap 'signalled=1; kill -USR1 "$launched"' USR1""",
]
MPIRUN_AFTER = [
    "launched=$!",
    "while true; do",
    '    wait "$launched"',
    "    code=$?",
    '    [ -n "$signalled" ] || break  # the signal ended the wait, not the ranks',
    "    signalled=''",
    "done",
]
DONE = ['[ ! -e "$run/result.json" ] || exit 0  # the mark of a complete training, whatever the launcher says']
REQUEUE = [
    "# a SIGTERM that left this script running was for the ranks alone: a preemption with a grace time, no scancel",
    """[ "$code" != 143 ] || [ "$(squeue -h -o %T -j "$SLURM_JOB_ID")" != RUNNING ] || code=75""",
    '[ "$code" != 75 ] || scontrol requeue "$SLURM_JOB_ID"  # stopped by SIGUSR1, and saved',
]
END = [
    'if [ "$code" = 0 ]; then',
    '    echo "the launcher says 0, but $run has no result.json: the training is not complete" >&2',
    "    code=1",
    "fi",
    'exit "$code"',
]


def submit(job: Job, text: str, nodelist: str | None, partition: str | None) -> tuple[Path, str]:
    """Write the script below ``directory`` and hand it to sbatch; returns its path and the job's number.

    Raises UserError for what SLURM refuses, and for a job that asks for more nodes than there are.
    """
    if not shutil.which("sbatch"):
        raise UserError("there is no sbatch here: go to a host of the cluster, or print the script with --dry-run")
    if nodelist is not None:
        hosts = _said("scontrol", "show", "hostnames", nodelist).split()
        if len(hosts) > job.nodes:
            raise UserError(f"--nodelist {nodelist} names {len(hosts)} nodes, --nodes are {job.nodes}: name fewer")
    where = ("--partition", partition) if partition else ()
    counts = _said("sinfo", "--noheader", "--format=%P %D", *where).split()
    available = max((int(count) for count in counts[1::2]), default=0)
    if job.nodes > available:
        raise UserError(f"--nodes {job.nodes}: the largest partition{' asked for' * bool(partition)} has {available}")
    if "%" in str(Path.cwd()) and not any(flag.startswith(("-o", "--output")) for flag in job.sbatch):
        raise UserError(
            f"{Path.cwd()} has a %, which SLURM replaces in the log's name: go to another folder, or give "
            "--sbatch=--output=FILE"
        )
    folder = Path(job.directory).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.label}.sbatch"
    replace(path, text.encode())
    return path, _said("sbatch", "--parsable", str(path)).strip().partition(";")[0]


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout
