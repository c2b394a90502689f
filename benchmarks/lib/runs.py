"""Many training runs, each a real `distqtrl train`: started once, kept, resumed where they were stopped.

A run's folder is named by what it is (preset, all settings, ranks, seed), so scripts share runs and a second start of a
script does only what is missing. A run that fails leaves its last words and is reported, never dropped. A run on one
rank is a fork of a process that has loaded everything, which saves it four seconds of a core.
"""

import argparse
import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distqtrl.config.sources import preset, with_flags
from distqtrl.report.runs import Run, read
from distqtrl.report.statistics import interval, iqm
from lib import setting

PRESETS = {"cartpole": "qtrl-cartpole", "minigrid": "qtrl-minigrid"}
SEEDS = {"cartpole": 10, "minigrid": 5}
UNITS = {"cartpole": "CartPole-v1 without its end at 500 steps", "minigrid": "MiniGrid-Empty-5x5"}
OF_DIST_QTRL = UNITS | {"minigrid": "MiniGrid-Empty-5x5 (inferred)"}  # its environment is not known to us
QUICK = ("--train.updates", "12", "--evaluate.episodes", "2", "--environment.max_episode_steps", "20")
QUICK_SAC = {  # a few steps of soft actor-critic
    "train.steps": "480",
    "algorithm.rollout_steps": "60",
    "algorithm.learning_starts": "240",
    "evaluate.every": "1",
    "evaluate.episodes": "2",
    "evaluate.validation_episodes": "1",
    "environment.id": "InvertedPendulum-v5",
}
CAUTION = (
    "Every sentence is at 95 % by itself: with no difference at all, about one in twenty (with 5 seeds, one in ten) "
    "would claim one. Runs that failed are in no mean."
)
SAC_OF_PEER = {  # stable-baselines3's defaults as our flags, whatever a preset says
    "policy.hidden": "256 256",
    "environment.local_num": "1",
    "evaluate.every": "none",
    "evaluate.keep": "last",
    "algorithm.value_hidden": "256 256",
    "algorithm.critic_norm": "none",
    "algorithm.learning_rate": "0.0003",
    "algorithm.value_learning_rate": "0.0003",
    "algorithm.policy_every": "1",
    "algorithm.policy_steps": "none",
    "algorithm.temperature": "1",
    "algorithm.batch_size": "256",
    "algorithm.adam_beta1": "0.9",
    "algorithm.adam_epsilon": "1e-8",
    "algorithm.rollout_steps": "100",
    "policy.normalize_observations": "false",
}
PACKAGES = ("torch", "numba", "numpy", "gymnasium", "minigrid", "mpi4py", "mpich")


@dataclass(frozen=True)
class Job:
    """One training run."""

    preset: str
    seed: int
    ranks: int = 1
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.preset}-n{self.ranks}-{_digest(self.preset, self.flags)}-seed{self.seed}"


@cache
def _digest(name: str, flags: tuple[str, ...]) -> str:
    """Of all settings, so that no run of an earlier state of a preset is taken for one of today's."""
    resolved = with_flags(preset(name), fields(flags)).model_dump_json()
    return hashlib.sha256(resolved.encode()).hexdigest()[:8]


def parser(doc: str | None, usual: Mapping[str, int] = SEEDS) -> argparse.ArgumentParser:
    """The options of every script that compares runs; usual: its tasks and their numbers of seeds."""
    out = setting.parser(doc)
    out.set_defaults(usual=usual)
    out.add_argument("--task", choices=usual, default=next(iter(usual)))
    default = ", ".join(f"{number} for {task}" for task, number in usual.items())
    out.add_argument("--seeds", type=int, help=f"how many; default {default}; with --quick 2")
    out.add_argument("--first-seed", type=int, default=0)
    out.add_argument("--runs", type=Path, default=setting.ROOT / "benchmarks" / "runs", help="where runs are kept")
    return out


def seeds(args: argparse.Namespace, times: int = 1) -> range:
    """The seeds asked for; where nothing is asked, so many times the usual number."""
    count = args.seeds or (2 if args.quick else times * args.usual[args.task])
    return range(args.first_seed, args.first_seed + count)


def jobs(
    args: argparse.Namespace, flags: tuple[str, ...], ranks: int = 1, preset: str = "", times: int = 1
) -> list[Job]:
    """A case's job for every seed, of the task's preset or another."""
    every = flags + (QUICK if args.quick else ())
    return [Job(preset or PRESETS[args.task], seed, ranks, every) for seed in seeds(args, times)]


def words(flags: Mapping[str, str]) -> tuple[str, ...]:
    """Flags as a command line."""
    return tuple(word for key, value in flags.items() for word in (f"--{key}", *value.split()))


def fields(words: Iterable[str]) -> dict[str, list[str]]:
    """Flags of a command line by their fields: what ``with_flags`` takes."""
    out: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            out[word.removeprefix("--")] = values = []
        else:
            values.append(word)
    return out


def done(wanted: list[Job], folder: Path, cores: int | None = None, hosts: Path | None = None) -> dict[Job, Run | str]:
    """Every job's run, or why it has none, after running what is missing: as many at a time as the cores can hold.

    hosts: a machine file for mpirun; the cores are then all of its hosts' for jobs of several ranks.
    """
    cores, commit = cores or os.cpu_count() or 1, setting.commit()
    missing = [job for job in dict.fromkeys(wanted) if not _complete(folder / job.name)]
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("runs", total=len(missing))
        for ranks in sorted({job.ranks for job in missing}):
            waiting = [job for job in missing if job.ranks == ranks]
            running: dict[Job, subprocess.Popen | BaseProcess] = {}
            number, count = 0, len(waiting)
            while waiting or running:
                while waiting and len(running) < max(1, cores // ranks):
                    job = waiting.pop(0)
                    running[job] = _started(job, folder / job.name, commit, hosts)
                time.sleep(0.01)
                for job in [job for job, process in running.items() if _code(process) is not None]:
                    _ended(folder / job.name, _code(running.pop(job)))
                    number += 1
                    bar.update(task, advance=1, description=job.name)
                    if not console.is_terminal:
                        print(f"{ranks} ranks, {number} of {count}: {job.name}", file=sys.stderr)
    return {job: _outcome(folder / job.name) for job in wanted}


def by_case(wanted: Mapping[str, list[Job]], folder: Path) -> tuple[dict[Job, Run | str], dict[str, list[Job]]]:
    """What ``done`` returns for the jobs of all cases, and the cases that have a whole run."""
    found = done([job for jobs in wanted.values() for job in jobs], folder)
    return found, {name: jobs for name, jobs in wanted.items() if whole(found, jobs)}


def whole(runs: dict[Job, Run | str], wanted: list[Job]) -> list[Run]:
    """Those of the jobs that have a whole run."""
    return [run for job in wanted if not isinstance(run := runs[job], str)]


def scored(whole: list[Run], wanted: list[Job]) -> dict:
    """How the runs of a case scored."""
    scores = np.array([run.last_tenth for run in whole])
    return {
        "runs": len(whole),
        "of": len(wanted),
        "scores": scores.tolist(),
        "iqm": iqm(scores),
        "interval": interval(iqm, scores),
        "greedy": [run.result["evaluation"]["mean"] for run in whole],
    }


def score_cells(case: dict) -> list[str]:
    """IQM with its interval, and the extremes."""
    low, high = case["interval"]
    scores = case["scores"]
    return [f"{case['iqm']:.3g} ({low:.3g} to {high:.3g})", f"{min(scores):.3g} to {max(scores):.3g}"]


def commits(jobs: Iterable[Job], folder: Path) -> list[str]:
    """Of the checkouts that made these runs."""
    places = [folder / job.name / "commit" for job in jobs]
    return sorted({place.read_text() for place in places if place.exists()})


def facts(args: argparse.Namespace, runs: dict[Job, Run | str]) -> dict:
    """Where and how the runs were made, and a line for every job without one."""
    return {
        **setting.facts(*PACKAGES),
        "run_commits": commits(runs, args.runs),
        "task": args.task,
        "failed": [f"{job.name}: {run}" for job, run in runs.items() if isinstance(run, str)],
    }


def line(made: dict, *more: str) -> list[str]:
    """The same as lines of Markdown."""
    lost = made["failed"]
    failed = "No run failed." if not lost else f"**{len(lost)} runs failed**: " + "; ".join(lost) + "."
    return [setting.line(made), " ".join([f"Runs made at {', '.join(made['run_commits'])}.", *more, failed])]


def _complete(place: Path) -> bool:
    return bool(list(place.glob("*/result.json")))


def _started(job: Job, place: Path, commit: str, hosts: Path | None) -> subprocess.Popen | BaseProcess:
    """A process that begins the run, or goes on with its last checkpoint; what it says is in place/said."""
    place.mkdir(parents=True, exist_ok=True)
    words = ["train", job.preset, "--train.seed", str(job.seed), *job.flags, "--run", str(place / "run")]
    if not list(place.glob("run/checkpoints/*")):
        (place / "commit").write_text(commit)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if job.ranks > (os.cpu_count() or 1) and hosts is None:
        env["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"  # MPICH spins where it waits
    if job.ranks > 1:
        command = [*setting.mpirun(job.ranks, hosts), "-m", "distqtrl", *words]
        with (place / "said").open("w") as said:
            return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said)
    _load()
    fork = multiprocessing.get_context("fork").Process(target=_forked, args=(words, place / "said"))
    fork.start()
    return fork


def _load() -> None:
    """Import what trainings import. With one thread: a pool of them would be missing in forks."""
    import matplotlib.figure  # noqa: F401
    import torch

    from distqtrl.cli import main  # noqa: F401
    from distqtrl.training import loop, shared_qpu  # noqa: F401

    torch.set_num_threads(1)


def _forked(words: list[str], said: Path) -> None:
    """The training in a fork of this process, with its words in a file."""
    from distqtrl.cli import main

    os.environ["OMP_NUM_THREADS"] = "1"
    with Path(os.devnull).open("w") as nowhere, said.open("w") as file:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with redirect_stdout(nowhere), redirect_stderr(file):
            sys.exit(main.main(words))


def _code(process: subprocess.Popen | BaseProcess) -> int | None:
    """The exit code; None: it runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def _ended(place: Path, code: int | None) -> None:
    (place / "failed").unlink(missing_ok=True)
    said = (place / "said").read_text()
    if code:
        (place / "failed").write_text((said.strip().splitlines() or ["it said nothing"])[-1])


def _outcome(place: Path) -> Run | str:
    if _complete(place):
        run = read(next(place.glob("*/result.json")).parent)
        return run.problem or run
    told = place / "failed"
    return told.read_text() if told.exists() else "did not run"
