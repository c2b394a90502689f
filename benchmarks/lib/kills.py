"""One job of ranks, of which one is killed at a planned moment."""

import os
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lib import setting
from lib.processes import kill, tagged, until

TAG = "DISTQTRL_CRASHES"
END_S = 10  # from the kill until every process is gone
LIMIT_S = 300  # for a job that is not killed
TRAIN_S = 3.0  # of training, that random times cover beside the start-up


@dataclass(frozen=True)
class Plan:
    """Who is killed, and when: after a share of start-up and TRAIN_S, or (not 0) at a write."""

    rank: int
    share: float
    write: int


@dataclass
class Job:
    """One mpirun; all its processes carry the tag in their environment."""

    process: subprocess.Popen
    tag: bytes
    output: Path
    began: float


@dataclass(frozen=True)
class End:
    """How a job ended."""

    hit: Path | None  # what was being written when a rank was killed (the run's place for a delay); None: none was
    after_s: float
    gone_s: float
    in_time: bool
    code: int


def awaited(job: Job, plan: Plan | None, place: Path, start_s: float, before: dict[Path, int]) -> End:
    """Kill as planned and wait until all of the job is gone; what is not gone in time is killed, too."""
    hit = None
    try:
        pid = pid_of(job, plan.rank) if plan else None
        if plan and pid and (sighted := moment(job, plan, place, start_s, before)) and kill(pid):
            hit = sighted
        at = time.time()
        in_time = until(lambda: job.process.poll() is not None and not tagged(job.tag), END_S if hit else LIMIT_S)
        gone_s = time.time() - at
    finally:
        for pid in tagged(job.tag):
            kill(pid)
        code = job.process.wait()
    return End(hit, at - job.began, gone_s, in_time, code)


def start(place: Path, ranks: int, words: list[str]) -> Job:
    """Training, started in its place."""
    place.mkdir(exist_ok=True)
    tag, output = uuid.uuid4().hex, place / f"{len(list(place.glob('*.txt'))):03d}.txt"
    env = {**os.environ, "OMP_NUM_THREADS": "1", TAG: tag}
    if ranks > (os.cpu_count() or 1):
        env["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"  # MPICH spins where it waits
    command, began = [*setting.mpirun(ranks), "-m", "distqtrl", "train", *words], time.time()
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    return Job(process, f"{TAG}={tag}".encode(), output, began)


def pid_of(job: Job, rank: int) -> int | None:
    """The rank's process as soon as there is one; None: the job ended before."""
    until(lambda: rank in tagged(job.tag).values() or job.process.poll() is not None, LIMIT_S)
    return next((pid for pid, of in tagged(job.tag).items() if of == rank), None)


def moment(job: Job, plan: Plan, place: Path, start_s: float, before: dict[Path, int]) -> Path | None:
    """Wait for the planned moment; returns what is being written (the run's place for a delay).

    None: the job ended before. Looks twice in a millisecond, so that a kill falls anywhere in a write of one or two.
    """
    if not plan.write:
        wait_s = job.began + plan.share * (start_s + TRAIN_S) - time.time()
        return None if until(lambda: job.process.poll() is not None, wait_s) else place
    seen: set[Path] = set()
    run = run_in(place)
    while job.process.poll() is None and time.time() < job.began + LIMIT_S:
        run = run if run.exists() else run_in(place)
        for path in [*partials(run), *partials(run / "checkpoints")]:
            with suppress(OSError):
                if path not in before or path.stat().st_mtime_ns != before[path]:
                    seen.add(path)
            if len(seen) == plan.write:
                return path
        time.sleep(0.0005)
    return None


def partials(folder: Path) -> list[Path]:
    """Files that are being written, or were when their writer died."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.name.endswith(".partial")]
    return []


def run_in(place: Path) -> Path:
    """The run directory; where there is none yet, a path that does not exist."""
    return next(place.glob("runs/*"), place / "none")


def files(place: Path) -> dict[Path, int]:
    """What the run wrote, and when (ns)."""
    return {path: path.stat().st_mtime_ns for path in place.glob("runs/**/*") if path.is_file()}
