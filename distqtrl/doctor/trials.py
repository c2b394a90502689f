"""Tiny trainings of a site check: one to its end, one that is killed and goes on, one that is asked to stop."""

import json
import signal
from pathlib import Path
from typing import Any

from distqtrl.doctor.launching import Job, Site, kill, ranks_here, started, until
from distqtrl.doctor.verdict import Verdict, failed, not_checked, ok

FLAGS = {
    "mapping.kind": "mlp",
    "mapping.chunk": 4,
    "policy.hidden": 4,
    "algorithm.value_hidden": 8,
    "algorithm.rollout_steps": 16,
    "environment.local_num": 1,
    "evaluate.every": "none",
    "evaluate.target": "none",
    "evaluate.episodes": 2,
    "train.steps": "none",
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 3,
    "allreduce.timeout_s": 60,
}
TINY = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
UPDATES, FOREVER = 30, 1_000_000
START_S = 90.0  # until the first checkpoint; kernels may have to be compiled first
GONE_S = 30.0  # from a kill or a signal until every rank is gone
TIMES = (  # what differs from run to run: clocks, joules
    *("wall_s", "steps_per_s", "profile_s", "setup_s", "train_s", "cpu_s", "wait_s", "received_bytes"),
    *("metered", "energy"),
)


def words(run: Path, updates: int = UPDATES) -> list[str]:
    """The training, started or gone on with."""
    return ["-m", "distqtrl", "train", "cartpole", "--run", str(run), *TINY, "--train.updates", str(updates)]


def training(site: Site, run: Path) -> Verdict:
    """A training comes to its end, and can be compared with."""
    with started(site, words(run)) as job:
        if not job.ended(START_S + GONE_S):
            return failed(f"not complete in {START_S + GONE_S:.0f} s: {_last(job)}")
        code = job.process.returncode
        if code or not (run / "result.json").exists():
            return failed(f"exit code {code}: {_last(job)}")
    result = json.loads((run / "result.json").read_text())
    return ok(f"{result['update']} updates on {result['ranks']} ranks, {result['train_s']:.1f} s of training")


def killed(site: Site, run: Path, whole: Path) -> Verdict:
    """A rank is killed: the others are gone soon, and the same line goes on to the whole run's result, bit for bit."""
    with started(site, words(run)) as job:
        if problem := _unsaved(job, run):
            return failed(problem)
        here = ranks_here(job)
        if not here:
            return not_checked("no rank runs on this host (or the run was over at once), so none can be killed")
        rank = max(here.values())
        kill(min(pid for pid, of in here.items() if of == rank))
        if not job.ended(GONE_S):
            return failed(f"{GONE_S:.0f} s after rank {rank} was killed the job still waits for it")
        if (run / "result.json").exists():
            return not_checked("the run was over before a rank could be killed")
        code = job.process.returncode
    if code == 0:
        return failed(f"rank {rank} was killed, and the launcher says 0")
    with started(site, words(run)) as job:
        if not job.ended(START_S) or job.process.returncode:
            return failed(f"after rank {rank} was killed, the run does not resume: {_last(job)}")
    for name in ("policy", "metrics"):
        if left(run)[name] != left(whole)[name]:
            return failed(f"after rank {rank} was killed and the run went on, its {name} is not that of a whole run")
    return ok(f"rank {rank} killed, launcher ended with {code}, policy and metrics bit for bit those of the whole run")


def stopped(site: Site, run: Path) -> Verdict:
    """SIGUSR1 to the launcher reaches the ranks, which save and leave with 75."""
    with started(site, words(run, FOREVER)) as job:
        if problem := _unsaved(job, run):
            return failed(problem)
        job.process.send_signal(signal.SIGUSR1)
        if not job.ended(GONE_S):
            return failed(f"{GONE_S:.0f} s after {site.starts} got SIGUSR1 the ranks train on, it does not reach them")
        code, text = job.process.returncode, job.text()
    if "stopped by SIGUSR1 after" not in text:
        return failed(f"{site.starts} got SIGUSR1 and ended with {code}, its ranks saved nothing")
    if code != 75:
        return failed(f"the ranks left with 75, {site.starts} ended with {code}: a batch script would not requeue")
    return ok(f"all ranks saved and left, {site.starts} ended with 75")


def _unsaved(job: Job, run: Path) -> str:
    """Wait for the first checkpoint of a job that goes on; returns why there is none, or nothing."""

    def saved() -> bool:
        return any(run.glob("checkpoints/update-*.safetensors"))

    if not until(lambda: saved() or job.process.poll() is not None, START_S):
        return f"no checkpoint in {START_S:.0f} s: {_last(job)}"
    return "" if saved() else f"ended with {job.process.poll()} before a first checkpoint: {_last(job)}"


def _last(job: Job) -> str:
    """The last line of its output that says something."""
    lines = [line.strip() for line in job.text().splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("distqtrl: ")]
    return ((ours or lines or ["nothing was said"])[-1])[:300]


def left(run: Path) -> dict[str, Any]:
    """What a whole run leaves, without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"policy": (run / "policy.safetensors").read_bytes(), "metrics": [without_times(row) for row in rows]}


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """Its entries but for TIMES."""
    return {name: value for name, value in record.items() if name not in TIMES}
