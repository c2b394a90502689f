"""What a site check finds of the scheduler: what SLURM says of itself, of this job, and does with a job of ours."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from distqtrl import slurm
from distqtrl.doctor import trials
from distqtrl.doctor.launching import Site, until
from distqtrl.doctor.verdict import Verdict, failed, not_checked, ok, warning

SCHEDULERS = {  # what they are seen by: a program, and the variable of a job
    "SLURM": ("scontrol", "SLURM_JOB_ID"),
    "PBS": ("qstat", "PBS_JOBID"),
    "LSF": ("bsub", "LSB_JOBID"),
    "Flux": ("flux", "FLUX_JOB_ID"),
}
SIGNAL = re.compile(r"^#SBATCH\s+.*--signal[= ]\S*?(?:SIG)?(?:USR1|10)(?:@(\d+))?", re.MULTILINE)
FIELD = re.compile(r"(?<!\S)([A-Z][\w:/]*)\s*=\s*(\S+)")
NOTICE_S = 50  # of a job of one minute: SLURM looks at limits every 30 s
# states of a job that is over; SLURM has others on the way there (SIGNALING, COMPLETING, STAGE_OUT, ...)
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"),
    *("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"),
}
ONLY = "only SLURM's is known; launch/README.md has recipes for others"


def scheduler(site: Site) -> Verdict:
    """Which there is, and whether this is one of its jobs."""
    for name, (program, variable) in SCHEDULERS.items():
        if job := os.environ.get(variable):
            return ok(f"{name}, inside job {job} on {os.environ.get('SLURM_JOB_NODELIST', 'its hosts')}")
        if not shutil.which(program):
            continue
        if name == "SLURM":
            try:
                _said("scontrol", "show", "config")
            except OSError as error:
                return not_checked(f"SLURM's commands are here, and no cluster answers them: {error.strerror or error}")
        return ok(f"{name}, outside of its jobs")
    return not_checked("none is here: no scontrol, qstat, bsub or flux")


def plugin(site: Site) -> Verdict:
    """srun can speak with the MPI that is installed."""
    if not shutil.which("srun"):
        return not_checked("there is no srun")
    wanted, offered = site.launcher.plugin, _said("srun", "--mpi=list").split()
    if wanted is None:
        return not_checked(f"{site.launcher.mpirun} starts the ranks, not srun")
    return ok(f"srun offers {wanted}") if wanted in offered else failed(f"srun does not offer {wanted}")


def requeue(site: Site) -> Verdict:
    """A job that was stopped may be requeued."""
    if not shutil.which("scontrol"):
        return not_checked(ONLY)
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        fields = dict(FIELD.findall(_said("scontrol", "show", "job", "--oneliner", job)))
        if fields.get("BatchFlag") == "0":
            return not_checked(f"job {job} is interactive, and only batch jobs are requeued")
        if fields.get("Requeue") == "0":
            return failed(f"job {job} may not be requeued (Requeue=0)")
        return ok(f"job {job} may be requeued, and was {fields.get('Restarts', '0')} times")
    if dict(FIELD.findall(_said("scontrol", "show", "config"))).get("JobRequeue") == "0":
        return warning(
            "JobRequeue = 0: jobs are requeued only where they ask for it",
            "sbatch --requeue, as `distqtrl slurm` has it",
        )
    return ok("JobRequeue = 1")


def notice(site: Site) -> Verdict:
    """The batch script that this runs in asks for SIGUSR1 before its time limit."""
    job = os.environ.get("SLURM_JOB_ID")
    if not shutil.which("scontrol"):
        return not_checked(ONLY)
    if not job:
        return not_checked("this is not inside a job: call it from a batch script")
    done = subprocess.run(
        ["scontrol", "write", "batch_script", job, "-"], capture_output=True, text=True, check=False, timeout=15
    )
    if done.returncode:
        return not_checked(f"job {job} has no batch script that can be read")
    match = SIGNAL.search(done.stdout)
    if match is None:
        return failed(f"the batch script of job {job} asks for no SIGUSR1 before its time limit")
    return ok(f"SIGUSR1 comes {match[1] or 60} s before the time limit of job {job}")


def time_limit(site: Site, folder: Path, limit_s: float) -> Verdict:
    """A job of one minute is told of its limit, saves, and is requeued by its script; then it is cancelled."""
    if not site.submit:
        return not_checked("it takes a job of one minute: --submit")
    if not shutil.which("sbatch"):
        return not_checked(f"there is no sbatch; {ONLY}")
    words = ["cartpole", *trials.TINY, "--train.updates", str(trials.FOREVER)]
    output = folder / "job.out"
    flags = (*site.sbatch, f"--output={output}")
    job = slurm.Job("site-check", tuple(words), str(folder), 1, site.ranks, time="1", notice_s=NOTICE_S, sbatch=flags)
    _, number = slurm.submit(job, slurm.script(job, slurm.launcher("auto"), sys.executable), None, None)
    deadline = time.monotonic() + limit_s
    try:
        return _followed(number, output, deadline)
    finally:
        with suppress(OSError):
            subprocess.run(["scancel", number], check=False, timeout=15, capture_output=True)


def _followed(number: str, output: Path, deadline: float) -> Verdict:
    fields: dict[str, str] = {}

    def settled() -> bool:
        fields.update(FIELD.findall(_said("scontrol", "show", "job", "--oneliner", number)))
        time.sleep(0.5)
        return fields["Restarts"] != "0" or fields["JobState"] in ENDED

    over = until(settled, max(0.0, deadline - time.monotonic()))
    text = output.read_text(errors="replace") if output.exists() else ""
    stopped = "stopped by SIGUSR1 after" in text
    if fields.get("Restarts", "0") != "0":
        if stopped:
            return ok(f"job {number} got SIGUSR1 before its limit, saved, and was requeued")
        return failed(f"job {number} was requeued, and had not been told of its time limit")
    if not over:
        why = fields.get("Reason", "unknown")
        return not_checked(
            f"job {number} was {fields.get('JobState', 'unknown').lower()} ({why}) until there was no time left"
        )
    code = fields.get("ExitCode", "unknown")
    what = "got no SIGUSR1 before its time limit"
    if stopped:
        what = "got SIGUSR1 and saved, and was not requeued"
    elif code.split(":")[0] == str(128 + signal.SIGUSR1):
        what = "was ended by SIGUSR1, which came before its ranks noted it"
    return failed(f"job {number} {what}: {fields['JobState']}, exit code {code}")


def _said(*command: str) -> str:
    """What a command of the scheduler prints; raises OSError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {' '.join((done.stderr or done.stdout).split())[:200]}")
    return done.stdout + done.stderr
