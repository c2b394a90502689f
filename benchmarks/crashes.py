"""Any rank killed at any moment, many times: does a job ever hang, is a file ever wrong, does resume always work?

    python benchmarks/crashes.py                  100 kills, 3 ranks, 12 minutes; writes results/crashes/crashes.*
    python benchmarks/crashes.py --seed 1         another schedule of kills
    python benchmarks/crashes.py --quick          4 kills, 2 ranks, under a minute; writes nothing unless -o is given

A tiny run with a checkpoint after every update is trained without interruption. Then the same run is started, one of
its ranks gets SIGKILL, it is resumed, killed again and so on; a run that reaches its end is compared and begun anew,
the last one is left to finish. Every other kill comes after a random time of start-up and training, to any rank alike;
the others come while a file is being written (a `*.partial` is there), half of them to rank 0, which writes. After
every kill all processes must be gone within 10 s, and every checkpoint must equal that of the uninterrupted run bit
for bit, times excepted; at the end policy, metrics and result must, too. Needs Linux (/proc). The exit code is 1 when
anything is found, and the runs are kept then.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib import setting

from distqtrl.errors import UserError
from distqtrl.files import tensors as tensorfile
from distqtrl.record.checkpoint import FORMAT

TINY = """cartpole --mapping.kind mlp --mapping.chunk 4 --policy.hidden 4 --policy.normalize_observations true
    --algorithm.value_hidden 8 --algorithm.rollout_steps 16 --algorithm.anneal true --environment.local_num 1
    --evaluate.every none --evaluate.target none --evaluate.episodes 3 --train.steps none --train.checkpoint_every 1
    --train.keep_checkpoints 1000000 --train.directory runs"""  # relative: a checkpoint knows its configuration
TIMES = ("wall_s", "steps_per_s", "profile_s", "setup_s", "train_s", "cpu_s", "wait_s", "received_bytes")
TAG = "DISTQTRL_CRASHES"
RANK = (b"PMI_RANK=", b"OMPI_COMM_WORLD_RANK=")  # MPICH, Open MPI
END_S = 10  # from the kill until every process is gone
LIMIT_S = 300  # for a job that is not killed
TRAIN_S = 3.0  # of training, that random times cover beside the start-up
WRITES = 8  # a kill at a write comes at the latest at the so-manieth that was seen
PHASES = ("start-up", "training", "writing a checkpoint", "writing another file", "the end")
FINDINGS = {
    "hangs": f"jobs not gone within {END_S} s",
    "wrong": "files that load and are wrong",
    "unreadable": "checkpoints under their final name that do not load",
    "failed": "starts and resumes that failed",
    "older": "resumes from an older checkpoint than the newest",
    "ends": "differences at the end (policy, metrics, result, checkpoints)",
}


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


@dataclass
class Tally:
    """What happened so far."""

    start_s: float = 0.0  # from mpirun to the first checkpoint, the last that was seen
    kills: list[dict[str, Any]] = field(default_factory=list)
    begun_anew: int = 0  # runs killed before their first checkpoint
    resumes: int = 0
    went_on: int = 0  # resumes that got to another checkpoint or to the end before the next kill
    ends: int = 0  # killed runs that got to their end
    findings: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in FINDINGS})

    def note(self, name: str, found: str) -> None:
        if found not in self.findings[name]:
            self.findings[name].append(found)
            print(f"FOUND among {FINDINGS[name]}: {found}", file=sys.stderr)


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--kills", type=int, help="default 100, with --quick 4")
    parser.add_argument("--updates", type=int, help="of a whole run; default 4 for every kill, at least 20")
    parser.add_argument("--ranks", type=int, help="default 3, with --quick 2")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule of kills")
    args = parser.parse_args()
    args.kills, args.ranks = args.kills or (4 if args.quick else 100), args.ranks or (2 if args.quick else 3)
    args.updates = args.updates or max(20, 4 * args.kills)
    folder, began, tally = Path(tempfile.mkdtemp(prefix="crashes-")), time.time(), Tally()
    session(args, folder / "whole", None, None, tally)
    if not any(tally.findings.values()):
        expected_s = args.kills * (0.75 * tally.start_s + 2) + 1.5 * tally.start_s
        print(f"{time.time() - began:.0f} s without interruption; about {expected_s:.0f} s to go", file=sys.stderr)
        killed(args, folder, left(run_in(folder / "whole")), tally)
    used = {name: getattr(args, name) for name in ("seed", "ranks", "updates")}
    made = {**setting.facts("torch", "numba", "numpy", "safetensors", "mpi4py", "mpich"), **used, "flags": TINY.split()}
    results = {**made, "took_s": time.time() - began, **asdict(tally)}
    setting.save(args, "crashes/crashes", results, table(results))
    if any(tally.findings.values()):
        sys.exit(f"the runs are kept in {folder}")
    shutil.rmtree(folder)


def killed(args: argparse.Namespace, folder: Path, whole: dict[str, Any], tally: Tally) -> None:
    """Kill and resume as often as asked, then let the run finish."""
    rng, number = random.Random(args.seed), 0
    while len(tally.findings["failed"]) < 3:
        place, more = folder / f"{number:03d}", len(tally.kills) < args.kills
        session(args, place, planned(rng, args.ranks, len(tally.kills) % 2 == 1) if more else None, whole, tally)
        run = run_in(place)
        if (run / "result.json").exists():
            compare(run, whole, tally)
            number += 1
            if len(tally.kills) == args.kills:
                return
        elif not list(run.glob("checkpoints/update-*.safetensors")):
            tally.begun_anew += 1
            number += 1


def planned(rng: random.Random, ranks: int, at_write: bool) -> Plan:
    """The next kill; rank 0 writes, so half of those at a write are its."""
    if not at_write:
        return Plan(rng.randrange(ranks), rng.random(), 0)
    return Plan(0 if rng.random() < 0.5 or ranks == 1 else rng.randrange(1, ranks), 0.0, rng.randint(1, WRITES))


def session(
    args: argparse.Namespace, place: Path, plan: Plan | None, whole: dict[str, Any] | None, tally: Tally
) -> None:
    """Start the run in its place, or resume it; kill it as planned; look at what is left."""
    run, before = run_in(place), files(place)
    resumed = run.exists()
    new = [*TINY.split(), "--train.updates", str(args.updates)]
    job = start(place, args.ranks, ["--resume", str(run.relative_to(place))] if resumed else new)
    end = awaited(job, plan, place, tally.start_s, before)
    made = {path for path, written in files(place).items() if before.get(path) != written}
    checkpoints = {path for path in made if path.match("update-*.safetensors")}
    if end.hit and not end.in_time:
        tally.note("hangs", f"{job.output}, {plan}")
    if not end.hit and (end.code or not end.in_time):
        tally.note("failed", f"{job.output}: exit code {end.code} after {end.after_s + end.gone_s:.0f} s")
    for path in checkpoints & before.keys():
        tally.note("older", f"{path} was written again by {job.output}")
    if checkpoints:
        tally.start_s = min(path.stat().st_mtime for path in checkpoints) - job.began
    tally.resumes += resumed
    tally.went_on += resumed and bool(checkpoints or not (end.hit or end.code))
    if whole:
        check(run_in(place), whole, tally)
    if plan and end.hit:
        phase, partials = phase_of(made | {end.hit}, args.updates), sum(path.suffix == ".partial" for path in made)
        row = {"rank": plan.rank, "phase": phase, "after_s": end.after_s, "gone_s": end.gone_s, "partials": partials}
        tally.kills.append(row)
        print(f"kill {len(tally.kills)} of {args.kills}: {row}", file=sys.stderr)


def awaited(job: Job, plan: Plan | None, place: Path, start_s: float, before: dict[Path, int]) -> End:
    """Kill as planned and wait until all of the job is gone; what is not gone in time is killed, too."""
    hit = None
    try:
        pid = pid_of(job, plan.rank) if plan else None
        if plan and pid and (sighted := moment(job, plan, place, start_s, before)) and kill(pid):
            hit = sighted
        at = time.time()
        in_time = until(lambda: job.process.poll() is not None and not tagged(job), END_S if hit else LIMIT_S)
        gone_s = time.time() - at
    finally:
        for pid in tagged(job):
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


def tagged(job: Job) -> dict[int, int | None]:
    """The job's living processes (a zombie's environment is empty) and their ranks."""
    found: dict[int, int | None] = {}
    for pid in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(OSError):
            values = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if job.tag in values:
                found[pid] = next((int(value.split(b"=")[1]) for value in values if value.startswith(RANK)), None)
    return found


def pid_of(job: Job, rank: int) -> int | None:
    """The rank's process as soon as there is one; None: the job ended before."""
    until(lambda: rank in tagged(job).values() or job.process.poll() is not None, LIMIT_S)
    return next((pid for pid, of in tagged(job).items() if of == rank), None)


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


def phase_of(made: set[Path], updates: int) -> str:
    """What a job was doing, by what it had written."""
    for path in made:
        if path.suffix == ".partial":
            return PHASES[2 if path.parent.name == "checkpoints" else 3]
    if {path.name for path in made} & {f"update-{updates:06d}.safetensors", "policy.safetensors"}:
        return PHASES[4]
    return PHASES[any(path.match("update-*.safetensors") for path in made)]


def kill(pid: int) -> bool:
    """SIGKILL; whether the process was there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline:
            return False
        time.sleep(0.01)
    return True


def run_in(place: Path) -> Path:
    """The run directory; where there is none yet, a path that does not exist."""
    return next(place.glob("runs/*"), place / "none")


def files(place: Path) -> dict[Path, int]:
    """What the run wrote, and when (ns)."""
    return {path: path.stat().st_mtime_ns for path in place.glob("runs/**/*") if path.is_file()}


def check(run: Path, whole: dict[str, Any], tally: Tally) -> None:
    """Checkpoints and policy file, under their final names, are those of the uninterrupted run."""
    for path in sorted(run.glob("checkpoints/update-*.safetensors")):
        try:
            if content(path) != whole["checkpoints"].get(path.name):
                tally.note("wrong", str(path))
        except UserError as error:
            tally.note("unreadable", str(error))
            path.rename(path.with_suffix(".unreadable"))  # the remedy: resume from the one before
    policy = run / "policy.safetensors"
    if policy.exists() and policy.read_bytes() != whole["policy"]:
        tally.note("wrong", str(policy))


def compare(run: Path, whole: dict[str, Any], tally: Tally) -> None:
    """A run that got to its end is as the uninterrupted one."""
    tally.ends += 1
    try:
        found = left(run)
    except (OSError, ValueError, UserError) as error:
        tally.note("ends", f"{run}: {error}")
        return
    for name in (name for name in whole if found[name] != whole[name]):
        tally.note("ends", f"{name} in {run}")


def content(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    about, tensors = tensorfile.read(checkpoint, FORMAT, "it is kept")
    return without_times(about), {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}


def left(run: Path) -> dict[str, Any]:
    """What a whole run leaves, without times; checkpoints by name."""
    return {
        "policy": (run / "policy.safetensors").read_bytes(),
        "metrics": [without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "result": without_times(json.loads((run / "result.json").read_text())),
        "checkpoints": {path.name: content(path) for path in run.glob("checkpoints/update-*.safetensors")},
    }


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    kills, ranks = results["kills"], range(results["ranks"])
    found = sum(len(texts) for texts in results["findings"].values())
    lines = [
        f"# {len(kills)} ranks killed: {f'**{found} findings**' if found else 'nothing found'}",
        "",
        f"{len(ranks)} ranks, {results['updates']} updates, a checkpoint after each. {setting.line(results)}",
        "",
        f"| killed during | {' | '.join(f'rank {rank}' for rank in ranks)} | all | all gone after, slowest |",
        "|---|" + "--:|" * (len(ranks) + 2),
    ]
    for name in (*PHASES, "**anything**"):
        of = [kill for kill in kills if kill["phase"] == name or name not in PHASES]
        counts = [str(sum(kill["rank"] == rank for kill in of)) for rank in ranks]
        slowest = f"{max(kill['gone_s'] for kill in of):.2f} s" if of else ""
        lines.append(f"| {' | '.join([name, *counts, str(len(of)), slowest])} |")
    lines += ["", "| found | number |", "|---|--:|"]
    lines += [f"| {FINDINGS[name]} | {len(texts)} |" for name, texts in results["findings"].items()]
    lines += [
        "",
        f"{results['resumes']} resumes, of which {results['went_on']} got to another checkpoint or the end before the "
        f"next kill; {results['begun_anew']} runs begun anew, because they were killed before their first checkpoint; "
        f"{results['ends']} killed runs at their end. {sum(kill['partials'] > 0 for kill in kills)} kills left a "
        f"`*.partial` behind. From mpirun to the first checkpoint {results['start_s']:.1f} s (the last time), "
        f"all in all {results['took_s']:.0f} s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
