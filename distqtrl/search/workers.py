"""A search as work that any number of processes share: each takes the next training that nobody has.

    DIR/search.json, search.md, search.png    settings and numbers; written anew after every training
    DIR/runs/<candidate>-seed<k>/             ordinary run directories; failed.json marks one that diverged
    DIR/costs/<candidate>.json                in the mode pareto
    DIR/chosen/                               the exported policy; the last thing to appear
    DIR/locks/                                what a process works on; the kernel frees it when that process ends

Workers do not speak with each other. What is next follows from the files alone, so all of them decide alike, and a
worker that died leaves its training to the next one that looks.
"""

import io
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import OUTPUT
from distqtrl.errors import Diverged, UserError
from distqtrl.export import folder, tools
from distqtrl.files.lock import Held, locked
from distqtrl.files.replace import replace
from distqtrl.record import directory as run_directory
from distqtrl.report.figures import undrawn
from distqtrl.search import cost, files, page, rule, table
from distqtrl.search.grid import Candidate, Search, name
from distqtrl.training.build import prepare
from distqtrl.training.loop import train
from distqtrl.training.stopping import EXIT_CODES

POLL_S = 1.0
FILE, TABLES = "search.json", "tables"  # the file of a search, the lock of all its tables


@dataclass(frozen=True)
class Task:
    """A piece of work, once for all workers; ``done`` says whether it is, ``act`` returns an exit code."""

    name: str
    done: Callable[[], bool]
    act: Callable[[], int]


@dataclass
class Worker:
    """One process's view of a search: what it has read (results do not change), and whom it tells."""

    search: Search
    pending: Sequence[signal.Signals]
    say: Callable[[str], None]
    results: dict[Path, dict[str, Any]] = field(default_factory=dict)
    costs: dict[Candidate, float] = field(default_factory=dict)

    def result(self, candidate: Candidate | None, seed: int) -> dict[str, Any] | None:
        """What result.json or failed.json of a training holds; None: it is not complete."""
        run = self.search.run(candidate, seed)
        if run not in self.results and (found := files.result(run)) is not None:
            self.results[run] = found
        return self.results.get(run)

    def known(self, candidate: Candidate | None) -> list[float | None] | None:
        """The candidate's returns, seed by seed (None: it failed); None until all are known."""
        found = [self.result(candidate, seed) for seed in self.search.seeds]
        return None if None in found else [table.score(result) for result in found if result is not None]

    def decision(self) -> rule.Decision:
        """Where the search stands."""
        if self.search.mode == "rule":
            return rule.three_steps(self.search, self.known)
        for candidate in rule.every(self.search):
            if candidate not in self.costs and (cost := files.cost(_cost_file(self.search, candidate))) is not None:
                self.costs[candidate] = cost
        return rule.pareto(self.search, self.known, self.costs)


def checked(search: Search) -> None:
    """Raise UserError for what cannot be trained, before anything is written."""
    for core in dict.fromkeys(len(core) for core in search.core_bits):
        candidate = Candidate(search.widths[0], next(bits for bits in search.core_bits if len(bits) == core))
        prepare(search.configuration(candidate, search.seeds[0]), Serial()).environments.close()
    prepare(search.configuration(None, search.seeds[0]), Serial()).environments.close()


def work(worker: Worker) -> int:
    """Work until the search is complete, or a signal is pending; returns the exit code.

    Raises UserError for a directory that belongs to something else or to another search.
    """
    _begin(worker)
    waiting = ""
    while not complete(worker.search):
        held = ""
        for task in _tasks(worker):
            if code := stopped(worker.pending):
                return code
            try:
                with closing(_locked(worker.search, task.name)):
                    if not task.done() and (code := task.act()):
                        return code
                break
            except Held as error:
                held = held or f"{task.name}, which {error.holder} is doing"
        else:
            if held != waiting:
                worker.say(f"waiting for {held}")
                waiting = held
            time.sleep(POLL_S)
    return 0


def stopped(pending: Sequence[signal.Signals]) -> int:
    """The exit code of the signals that are pending; 0: there are none."""
    return next((code for s, code in EXIT_CODES.items() if s in pending), 0)


def read(directory: Path) -> dict[str, Any] | None:
    """search.json, where there is one; raises UserError where it belongs to something else."""
    return files.found(directory / FILE, "choose another -o")


def complete(search: Search) -> bool:
    """Whether the search is finished."""
    about = read(search.directory)
    return about is not None and about["status"] == "complete"


def _begin(worker: Worker) -> None:
    """Make the directory, or find it made by the same search."""
    directory = worker.search.directory
    if directory.exists() and not (directory / FILE).exists():
        foreign = {path.name for path in directory.iterdir()} - {"locks", FILE, f"{FILE}.partial"}
        if foreign and not (directory / FILE).exists():
            raise UserError(f"{directory} is not a search (it has no {FILE}): choose another -o")
    (directory / "locks").mkdir(parents=True, exist_ok=True)
    while not _written(worker):
        time.sleep(0.05)
    settings, found = worker.search.settings(), read(directory)
    assert found is not None
    for key, old, new in _differences(found["settings"], settings):
        raise UserError(
            f"{directory} was started with {key} = {old!r}, not {new!r}: give it the settings it was started with, "
            f"or choose another -o"
        )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".removeprefix(".config").lstrip("."))
    elif old != new:
        yield key, old, new


def _locked(search: Search, what: str) -> Any:
    return locked(search.directory / "locks" / what)


def _written(worker: Worker) -> bool:
    """Write search.json where there is none; False: another process writes."""
    try:
        with closing(_locked(worker.search, TABLES)):
            if not (worker.search.directory / FILE).exists():
                _write(worker, "running")
    except Held:
        return False
    return True


def _tasks(worker: Worker) -> Iterator[Task]:
    """What can be done now and is not, in order."""
    search, decision = worker.search, worker.decision()
    for candidate in decision.needed:
        for seed in search.seeds:
            if worker.result(candidate, seed) is None:
                done = partial(_known, worker, candidate, seed)
                yield Task(search.run(candidate, seed).name, done, partial(_train, worker, candidate, seed))
        if search.mode == "pareto" and candidate is not None and None not in (worker.known(candidate) or [None]):
            path = _cost_file(search, candidate)
            if not path.exists():
                yield Task(f"cost-{name(candidate)}", path.exists, partial(_count, worker, candidate))
    if decision.decided:
        yield Task(TABLES, partial(complete, search), partial(_conclude, worker))


def _known(worker: Worker, candidate: Candidate | None, seed: int) -> bool:
    return worker.result(candidate, seed) is not None


def _train(worker: Worker, candidate: Candidate | None, seed: int) -> int:
    """Start, or go on with, one training; returns the exit code of the signal that stopped it."""
    run, config = worker.search.run(candidate, seed), worker.search.configuration(candidate, seed)
    if run.exists():
        locked(run / "lock").close()  # somebody may train it by hand
    there = run_directory.found(run, config, Serial())
    if there is not None and there.changes.keys() - set(OUTPUT):
        raise UserError(
            f"{run} was extended ({', '.join(there.changes)}): move it elsewhere, as the search needs its own run there"
        )
    saved = there is not None and there.saved
    worker.say(f"{run.name}: {'resumes' if saved else 'starts'}")
    training = prepare(config, Serial(), run if saved else None)
    if there is None:
        run_directory.claim(run, config, Serial())
    try:
        result = train(training, run, worker.pending)
    except Diverged as error:
        result = {"status": "failed", "error": str(error), "env_steps": training.counters.env_steps}
        replace(run / "failed.json", (json.dumps(result, indent=2) + "\n").encode())
    finally:
        training.environments.close()
    if result["status"] == "stopped":
        worker.say(f"{run.name}: stopped by {result['signal']} after {result['update']} updates, and saved")
        return int(result["exit_code"])
    if result["status"] == "complete":
        if problem := undrawn(run):
            worker.say(problem)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # nothing is left to go on with; SAC's hold its replay
        worker.say(f"{run.name}: return {result['evaluation']['mean']:.2f}")
    else:
        worker.say(f"{run.name}: failed, {result['error']}")
    try:
        with closing(_locked(worker.search, TABLES)):
            if not complete(worker.search):
                _write(worker, "running")
    except Held:
        pass  # another one writes them
    return 0


def _cost_file(search: Search, candidate: Candidate) -> Path:
    return search.directory / "costs" / f"{name(candidate)}.json"


def _count(worker: Worker, candidate: Candidate) -> int:
    search, scores = worker.search, worker.known(candidate)
    assert search.cost is not None
    assert scores is not None
    seed = rule.median_seed(scores, search.seeds)
    assert seed is not None
    worker.say(f"{search.cost} of {name(candidate)}, seed {seed}")
    with tools.orderly(search.export.limit_s):
        found = cost.cost(search.cost, search.run(candidate, seed) / "policy.safetensors", search.core, search.energy)
    path = _cost_file(search, candidate)
    path.parent.mkdir(exist_ok=True)
    replace(path, (json.dumps({"cost": found, "kind": search.cost, "seed": seed}) + "\n").encode())
    return 0


def _conclude(worker: Worker) -> int:
    """Export what is chosen, and mark the search as complete."""
    search, decision = worker.search, worker.decision()
    chosen, scores = search.directory / "chosen", worker.known(decision.chosen)
    seed = rule.median_seed(scores or (), search.seeds) if decision.chosen is not None else None
    for left in search.directory.glob(".chosen.*"):  # of a worker that died
        shutil.rmtree(left)
    if seed is not None and not chosen.exists():
        run = search.run(decision.chosen, seed)
        worker.say(f"exports {run.name} to {chosen}")
        folder.export(run / "policy.safetensors", chosen, search.export, worker.say)
    _write(worker, "complete")
    return 0


def _write(worker: Worker, status: str) -> None:
    """The tables of what is known; search.json last, which says that they are complete."""
    directory = worker.search.directory
    about = table.about(worker.search, worker.decision(), worker.result, worker.costs, status)
    text = (json.dumps(about, indent=1) + "\n").encode()
    if not (directory / FILE).exists():
        replace(directory / FILE, text)  # makes the directory ours, before anything else is in it
    replace(directory / "search.md", page.page(about).encode())
    drawn = io.BytesIO()
    page.figure(about, drawn)
    replace(directory / "search.png", drawn.getvalue())
    replace(directory / FILE, text)
