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
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib import setting
from lib.kills import END_S, Plan, awaited, files, run_in, start
from lib.remains import content, left

from distqtrl.errors import UserError

TINY = """cartpole --mapping.kind mlp --mapping.chunk 4 --policy.hidden 4 --policy.normalize_observations true
    --algorithm.value_hidden 8 --algorithm.rollout_steps 16 --algorithm.anneal true --environment.local_num 1
    --evaluate.every none --evaluate.target none --evaluate.episodes 3 --train.steps none --train.checkpoint_every 1
    --train.keep_checkpoints 1000000 --train.directory runs"""  # relative: a checkpoint knows its configuration
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


def phase_of(made: set[Path], updates: int) -> str:
    """What a job was doing, by what it had written."""
    for path in made:
        if path.suffix == ".partial":
            return PHASES[2 if path.parent.name == "checkpoints" else 3]
    if {path.name for path in made} & {f"update-{updates:06d}.safetensors", "policy.safetensors"}:
        return PHASES[4]
    return PHASES[any(path.match("update-*.safetensors") for path in made)]


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
