"""Jobs of a cluster killed, preempted, requeued and told of their limit, many times: is a run ever lost, or different?

    python benchmarks/requeues.py                 1,000 events on a SLURM of its own; writes results/requeues/requeues.*
    python benchmarks/requeues.py --minutes 60    as many as that allows
    python benchmarks/requeues.py --quick         8 events; writes nothing unless -o is given

A private SLURM with a node for each of some jobs runs them at the same time, each a tiny training with a checkpoint
after every update, by the batch script that `distqtrl slurm` writes. At a random moment after its start a job meets one
of four events: a rank gets SIGKILL (and the failed job is requeued by hand), a job of a partition with priority takes
its node (SLURM requeues it), `scontrol requeue`, or SIGUSR1 as before a time limit (its script requeues it). A job that
ends complete must have left what an uninterrupted one leaves, bit for bit, times excepted; then its node begins
another. Ranks are forks of a process that has loaded everything, so that most of the time is training and not
imports; what happens while libraries load is benchmarks/crashes.py's. Needs SLURM, Linux.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from crashes import TINY
from lib import setting
from lib.kills import run_in
from lib.remains import left

from distqtrl.slurm import Job, Launcher, script

sys.path.append(str(setting.ROOT / "tests"))

import private_slurm
import runs

KINDS = ("a rank killed", "preempted by priority", "requeued", "told of its limit (SIGUSR1)")
WITHIN_S = 2.0  # events come so long after a start, at a random moment
STUCK_S = 120.0  # without a change of its state a job is lost
RANKS, UPDATES = 2, 100


@dataclass
class Slot:
    """A node and the job that is on it."""

    node: str
    folder: Path
    job: int = 0
    state: str = ""
    restarts: int = 0
    since: float = 0.0  # the state's last change
    event: tuple[str, float] | None = None  # what is to come, and when
    waits_for: str = ""  # an event that came, until its job has started again
    met: int = 0  # events of this run


@dataclass
class Tally:
    """What happened so far."""

    events: list[dict[str, Any]] = field(default_factory=list)
    ends: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def note(self, name: str, text: str) -> None:
        getattr(self, name).append(text)
        print(f"FOUND {name}: {text}", file=sys.stderr)


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--events", type=int, help="default 1000, with --quick 8")
    parser.add_argument("--jobs", type=int, help="at the same time; default 6, with --quick 2")
    parser.add_argument("--minutes", type=float, default=240, help="begin no event after so many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.events, args.jobs = args.events or (8 if args.quick else 1000), args.jobs or (2 if args.quick else 6)
    folder, began, tally = Path(tempfile.mkdtemp(prefix="requeues-")), time.time(), Tally()
    options = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "KillWait": "30"}
    with (
        _server(folder) as python,
        private_slurm.cluster(folder / "slurm", nodes=args.jobs, cores=RANKS, options=options) as slurm,
    ):
        urgent = slurm.run("scontrol", "create", "PartitionName=urgent", "Nodes=ALL", "PriorityTier=9", "State=UP")
        assert urgent.returncode == 0, urgent.stderr
        whole = left(_uninterrupted(slurm, folder / "whole", python))
        try:
            _events(args, slurm, folder, python, whole, tally)
        except KeyboardInterrupt:
            print("stopped; what there is is written", file=sys.stderr)
    used = {"seed": args.seed, "jobs": args.jobs, "ranks": RANKS, "updates": UPDATES, "flags": TINY.split()}
    made = setting.facts("torch", "numba", "numpy", "safetensors", "mpi4py", "mpich")
    results = {**made, **used, "took_s": time.time() - began, **vars(tally)}
    setting.save(args, "requeues/requeues", results, table(results))
    if tally.lost or tally.different:
        sys.exit(f"the runs are kept in {folder}")
    shutil.rmtree(folder)


@contextmanager
def _server(folder: Path) -> Any:
    """A python whose programs are forks of one that has loaded everything (tests/rank_server.py)."""
    env = {**os.environ, "PYTHONPATH": f"{setting.ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    with runs.rank_server(env) as socket:
        python = folder / "python"
        program = f'exec {sys.executable} {runs.RANK_SERVER} {socket} "$@"'
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
        yield python


def _submitted(slurm: private_slurm.Slurm, folder: Path, python: Path, *flags: str) -> int:
    folder.mkdir()
    words = (*TINY.split(), "--train.updates", str(UPDATES))
    job = Job("cartpole", words, "runs", 1, RANKS, memory="1G", notice_s=120, sbatch=("--exclusive", *flags))
    path = folder / "job.sbatch"
    path.write_text(script(job, Launcher("pmi2"), str(python)))
    return slurm.submit(path, cwd=folder)


def _uninterrupted(slurm: private_slurm.Slurm, folder: Path, python: Path) -> Path:
    slurm.wait(_submitted(slurm, folder, python), timeout=600)
    return run_in(folder)


def _events(
    args: argparse.Namespace, slurm: private_slurm.Slurm, folder: Path, python: Path, whole: Any, tally: Tally
) -> None:
    """Start jobs, let events happen to them, until there were enough; then let all come to their end."""
    rng, began, number = random.Random(args.seed), time.time(), 0
    slots = [Slot(node, folder) for node in slurm.nodes]
    while len(tally.lost) + len(tally.different) < 5:
        more = len(tally.events) < args.events and time.time() < began + 60 * args.minutes
        if not more and not any(slot.job for slot in slots):
            return
        for slot in slots:
            if not slot.job and more:
                number += 1
                slot.folder = folder / f"{number:04d}"
                slot.job = _submitted(slurm, slot.folder, python, f"--nodelist={slot.node}")
                slot.state, slot.restarts, slot.since, slot.event, slot.met = "", 0, time.time(), None, 0
            if slot.job:
                _look(slurm, slot, rng, more, whole, tally)
        time.sleep(0.05)


def _look(slurm: private_slurm.Slurm, slot: Slot, rng: random.Random, more: bool, whole: Any, tally: Tally) -> None:
    """What became of a slot's job, and what is to happen next."""
    now, job = time.time(), slurm.job(slot.job)
    state, restarts = job["JobState"], int(job["Restarts"])
    if (state, restarts) != (slot.state, slot.restarts):
        began_again = state == "RUNNING"
        slot.state, slot.restarts, slot.since = state, restarts, now
        if began_again:
            slot.waits_for = ""
            slot.event = (rng.choice(KINDS), now + rng.uniform(0, WITHIN_S)) if more else None
    if state == "COMPLETED":
        _compare(slot, whole, tally)
        slot.job = 0
    elif state in private_slurm.ENDED:
        if slot.waits_for != KINDS[0]:
            tally.note(
                "lost", f"{slot.folder}: {state}, exit code {job['ExitCode']}, after {slot.waits_for or 'nothing'}"
            )
            slot.job = 0
        else:
            slurm.run("scontrol", "requeue", slot.job)  # refused until the job has left its node: asked again
    elif state == "RUNNING" and slot.event and now >= slot.event[1]:
        kind, slot.event = slot.event[0], None
        if _happens(slurm, slot, kind, rng):
            slot.waits_for, slot.met = kind, slot.met + 1
            tally.events.append({"kind": kind, "after_s": now - slot.since, "updates": _updates(slot)})
            if len(tally.events) % 20 == 0:
                counts = Counter(event["kind"] for event in tally.events)
                print(f"{len(tally.events)} events, {tally.ends} ends: {dict(counts)}", file=sys.stderr, flush=True)
    if slot.job and now > slot.since + STUCK_S:
        tally.note("lost", f"{slot.folder}: {state} for {STUCK_S:.0f} s, after {slot.waits_for or 'nothing'}")
        slurm.cancel(slot.job)
        slot.job = 0


def _happens(slurm: private_slurm.Slurm, slot: Slot, kind: str, rng: random.Random) -> bool:
    """Let it happen; whether there was still somebody to whom it could."""
    if kind == KINDS[0]:
        ranks = _ranks(slot.job)
        if not ranks:
            return False
        rng.choice(ranks).kill()
        return True
    if kind == KINDS[1]:
        command = ["sbatch", "--partition=urgent", f"--nodelist={slot.node}", "--exclusive", "--output=/dev/null"]
        return slurm.run(*command, "--wrap", "sleep 0.1").returncode == 0
    if kind == KINDS[2]:
        return slurm.run("scontrol", "requeue", slot.job).returncode == 0
    if len(_ranks(slot.job)) < RANKS:
        return False  # env has not begun on every rank: a notice two minutes before a limit does not come so early
    return slurm.run("scancel", "--signal=USR1", slot.job).returncode == 0


def _ranks(job: int) -> list[psutil.Process]:
    """The processes of a job's ranks, in their order; with them the forks that stand for them die."""
    found = {}
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        env, words = process.info["environ"] or {}, process.info["cmdline"] or []
        if env.get("SLURM_JOB_ID") == str(job) and "PMI_FD" in env and any("rank_server" in word for word in words):
            found[int(env["SLURM_PROCID"])] = process
    return [found[rank] for rank in sorted(found)]


def _updates(slot: Slot) -> int:
    """How many updates the run had saved."""
    names = [path.stem for path in run_in(slot.folder).glob("checkpoints/update-*.safetensors")]
    return max((int(name.removeprefix("update-")) for name in names), default=0)


def _compare(slot: Slot, whole: Any, tally: Tally) -> None:
    """A run that came to its end is as the uninterrupted one."""
    tally.ends += 1
    run = run_in(slot.folder)
    try:
        found = left(run)
    except (OSError, ValueError) as error:
        tally.note("lost", f"{run}: {error}")
        return
    names = [name for name in whole if found[name] != whole[name]]
    if names:
        tally.note("different", f"{', '.join(names)} in {run} after {slot.met} events")
    else:
        shutil.rmtree(slot.folder)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    events, counts = results["events"], Counter(event["kind"] for event in results["events"])
    lines = [
        f"# {len(events):,} events on a cluster: {len(results['lost'])} lost, {len(results['different'])} different",
        "",
        f"{results['jobs']} jobs of {results['ranks']} ranks at the same time, {results['updates']} updates each, a "
        f"checkpoint after each. {setting.line(results)}",
        "",
        "| what happened to a job | times | of these before its first checkpoint |",
        "|---|--:|--:|",
    ]
    for kind in KINDS:
        early = sum(event["kind"] == kind and event["updates"] == 0 for event in events)
        lines.append(f"| {kind} | {counts[kind]} | {early} |")
    lines += [
        f"| **all** | {len(events)} | {sum(event['updates'] == 0 for event in events)} |",
        "",
        f"{results['ends']} runs came to their end, each compared with an uninterrupted one: policy, metrics, result "
        f"and checkpoints. {results['took_s'] / 60:.0f} minutes.",
        *(f"* lost: {text}" for text in results["lost"]),
        *(f"* different: {text}" for text in results["different"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
