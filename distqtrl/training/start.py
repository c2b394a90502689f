"""Start a training, or go on with one, on all replicas of this process: for the command line and ``distqtrl.train``."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.allreduce import threads
from distqtrl.allreduce.agreement import Refused, agreed
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.rendezvous import Rendezvous
from distqtrl.circuit import compiled, statevector
from distqtrl.circuit.qpu import QPU
from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.record import directory as run_directory
from distqtrl.training import shared_qpu, stopping
from distqtrl.training.build import compare, prepare
from distqtrl.training.loop import train
from distqtrl.training.run import Run
from distqtrl.training.updates import prediction

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is to be trained, and where: in ``directory``, or in a new one called ``name`` below train.directory.

    resume: only go on with a run that has a checkpoint.
    """

    config: Config
    directory: Path | None
    name: str
    resume: bool = False


@dataclass(frozen=True)
class Beginning:
    """What is known when a training begins; ``asked`` is what the QPUs of all ranks will be asked for."""

    directory: Path
    updates: int  # that are done already
    ranks: int
    replicas: int  # of every rank
    batched: bool  # whether the replicas' circuits run as one batch
    qpu: QPU | None
    asked: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The run directory, the result of the run, and whether there was anything left to do."""

    directory: Path
    result: dict[str, Any]
    trained: bool


def start(
    request: Request,
    comm: Communicator,
    *,
    began: Callable[[Beginning], None],
    confirm: Callable[[str], bool],
    say: Say,
) -> Outcome:
    """Train, go on with an unfinished run, extend a complete one, or return the result of one that is complete.

    All ranks call this with the same request. Nothing is written before every rank has made its environments: a try
    that cannot run owns no directory. ``began`` is called on rank 0 when a training begins, ``say`` with lines for
    people on the rank that they are about. Where circuits would leave this machine, rank 0 asks ``confirm`` with a line
    that says how many, before anything is sent or written. Raises UserError, which is Refused where all ranks raise it.
    """
    directory, config = request.directory, request.config
    comm.limit(config.allreduce.timeout_s)
    there = run_directory.found(directory, config, comm) if directory else None
    if there is not None and not there.goes_on:
        assert directory is not None
        assert there.result is not None
        if there.changes:
            _extend(directory, config, there, comm, say)
        return Outcome(directory, there.result, trained=False)
    with stopping.collected() as pending:
        outcome = _trained(request, comm, there, pending, began=began, confirm=confirm, say=say)
        if outcome.result.get("signal") == signal.SIGUSR1.name:
            stopping.requeued()
        return outcome


def _trained(
    request: Request,
    comm: Communicator,
    there: run_directory.Found | None,
    pending: Sequence[signal.Signals],
    *,
    began: Callable[[Beginning], None],
    confirm: Callable[[str], bool],
    say: Say,
) -> Outcome:
    """The outcome of the training that this process takes part in, with all its replicas."""
    config, directory = request.config, request.directory
    meet, circuits = Rendezvous(config.qpu.replicas), Rendezvous(config.qpu.replicas)
    resume = directory if request.resume or (there is not None and there.saved) else None
    home = Path.cwd()
    runs = _prepared(config, comm, threads.members(comm, meet), resume)
    os.chdir(home)  # where paths are meant from: an environment may have gone elsewhere
    asked = threads.each(runs, prediction, [meet, circuits])[0]
    _confirm(comm, runs, asked, confirm)
    if directory is None:
        directory = run_directory.create(config, request.name, comm)
    elif there is None:
        run_directory.claim(directory, config, comm)
    elif there.changes:
        _extend(directory, config, there, comm, say)
    shown, made = directory, directory.absolute()
    qpus = [run.learner.generator.qpu for run in runs if run.learner.generator.qpu is not None]
    batched = len(qpus) > 1 and shared_qpu.share(qpus, circuits)

    def trained(run: Run) -> dict[str, Any]:
        if run.restarted:
            say(f"distqtrl: environments {run.restarted} cannot be replayed, they start their next episode")
        if run.comm.rank == 0:
            done, qpu = run.counters.update, run.learner.generator.qpu
            began(Beginning(shown, done, ranks=comm.size, replicas=len(runs), batched=batched, qpu=qpu, asked=asked))
        return train(run, made, pending)

    try:
        result = threads.each(runs, trained, [meet, circuits])[0]
    except BaseException as error:
        if isinstance(error, Refused) or comm.size == 1:  # else the job ends, and soon
            _close(runs)
        raise
    else:
        _close(runs)
    finally:
        with suppress(FileNotFoundError):  # removed meanwhile: what was trained is in the run
            os.chdir(home)
    return Outcome(directory, result, trained=True)


def _prepared(config: Config, comm: Communicator, members: Sequence[Communicator], resume: Path | None) -> list[Run]:
    """The runs of this process's replicas, once all ranks have made theirs and found the same environment."""
    limit_s = config.allreduce.timeout_s
    if limit_s is not None and not statevector.ready(config.qpu.precision):
        comm.limit(limit_s + compiled.WAIT_S)  # some may have nothing to compile, and wait for those that do
    runs = agreed(comm, lambda: [prepare(config, member, resume) for member in members])
    comm.limit(limit_s)
    compare(comm, runs[0])
    return runs


def _confirm(comm: Communicator, runs: list[Run], asked: dict[str, Any], confirm: Callable[[str], bool]) -> None:
    """Let the QPUs of all ranks send circuits, once somebody agreed to what will be asked of those that are billed."""
    qpus = [run.learner.generator.qpu for run in runs if run.learner.generator.qpu is not None]
    billed = next((qpu for qpu in qpus if qpu.billed), None)
    if not comm.allgather(np.array([float(billed is not None)])).any():
        return

    def step() -> None:
        line = qpu_line(billed or qpus[0], asked)
        if comm.rank == 0 and not confirm(line):
            raise UserError(
                f"nothing was sent: {line}: confirm it at a terminal, with --yes, or with yes = True of distqtrl.train"
            )

    agreed(comm, step)
    for qpu in qpus:
        qpu.confirm()


def qpu_line(qpu: QPU | None, asked: dict[str, Any]) -> str:
    """What rank 0's QPU is, and what will be asked of all ranks' QPUs."""
    if qpu is None:
        return "no QPU"
    facts = qpu.facts()
    name = " ".join(str(facts[key]) for key in ("backend", "device", "noise") if facts[key])
    how = f"{facts['shots']:,} shots" if facts["shots"] else "exact"

    def amount(x: dict[str, Any]) -> str:
        shots = f", {x['shots']:,} shots, {x['qpu_s']:,.1f} s of QPU time" if x["shots"] else ""
        return f"{x['circuits']:,} circuits{shots}"

    total = f"; {amount(asked['run'])} in the whole budget of {asked['updates']:,} updates" if asked["run"] else ""
    return f"QPU {name}, {how}, gradient {facts['gradient']}: {amount(asked['update'])} per update{total}"


def _extend(directory: Path, config: Config, there: run_directory.Found, comm: Communicator, say: Say) -> None:
    run_directory.extend(directory, config, there, comm)
    for key, (old, new) in there.changes.items() if comm.rank == 0 else ():
        say(f"distqtrl: {directory} resumes with {key} {old} -> {new}")


def _close(runs: list[Run]) -> None:
    for run in runs:
        run.environments.close()
