"""The directory of one run: made by rank 0, seen by all ranks, and extended where a run is to go on for longer."""

import json
import os
import platform
import re
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, ConfigDict, Field

from distqtrl.allreduce.agreement import agreed
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.config import sources
from distqtrl.config.run import BUDGET, OUTPUT, Config, differences, flat, may_change, save
from distqtrl.errors import UserError
from distqtrl.files import schema
from distqtrl.files.lock import locked
from distqtrl.files.places import quoted
from distqtrl.files.replace import replace
from distqtrl.files.schema import Count, Record, Several, Word
from distqtrl.policy import policy_file

Return = Annotated[float, AllowInfNan(True)]  # what an environment pays is its own affair
VISIBLE_WITHIN_S = 10.0  # what a network filesystem may take to show a new directory to another host
Changes = dict[str, tuple[Any, Any]]


@dataclass
class Found:
    """A run that is there: whether it has a checkpoint, its result if it is complete, and what is to change in it."""

    saved: bool
    result: dict[str, Any] | None
    changes: Changes

    @property
    def goes_on(self) -> bool:
        """Whether there is something to do."""
        return self.result is None or bool(self.changes.keys() - set(OUTPUT))


class Summary(Record):
    """The returns of an evaluation; a newer version may say more."""

    model_config = ConfigDict(extra="ignore")

    mean: Return
    std: Return
    min: Return
    max: Return
    episodes: Several


class Spent(Record):
    """The energy of a run; a newer version may say more."""

    model_config = ConfigDict(extra="ignore")

    joules: float | None = None
    method: str = ""


class Result(Record):
    """result.json, as far as anything reads it."""

    model_config = ConfigDict(extra="ignore")

    status: Literal["complete"]
    exit_code: Literal[0] = 0
    evaluation: Summary
    agents: dict[Word, Return] = Field(default_factory=dict)
    ranks: Several
    update: Count
    env_steps: Count
    episodes: Count
    train_s: float = Field(ge=0, le=schema.LARGE)
    energy: Spent | None = None
    versions: dict[Word, Word] = Field(default_factory=dict)


def create(config: Config, name: str, comm: Communicator) -> Path:
    """A new directory below ``train.directory`` with its config.json, on every rank; a number makes the name unique."""

    def make() -> str:
        if comm.rank:
            return ""
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            directory = Path(config.train.directory) / (name + suffix)
            try:
                directory.mkdir(parents=True)
            except FileExistsError:
                if not directory.is_dir():
                    raise
                continue
            _write_config(directory, config)
            return str(directory)
        raise UserError(f"cannot find a free name for a run in {config.train.directory}: remove old runs")

    directory = Path(allgather_bytes(comm, agreed(comm, make).encode())[0].decode())
    agreed(comm, lambda: _check_visible(directory))
    return directory


def found(directory: Path, config: Config, comm: Communicator) -> Found | None:
    """The run in this very directory, as rank 0 sees it; none where there is none yet. Writes nothing.

    Raises Refused when the directory belongs to something else, when ``config`` changes what a run keeps, and when not
    all ranks see it.
    """

    def look() -> str:
        if comm.rank:
            return ""
        if not (directory / "config.json").exists():
            _check_free(directory)
            return "null"
        saved = bool(checkpoints(directory))
        changes = differences(sources.load(directory / "config.json", sources.DAMAGED), config)
        return json.dumps({"saved": saved, "result": complete(directory), "changes": changes})

    told = json.loads(allgather_bytes(comm, agreed(comm, look).encode())[0])
    if told is None:
        return None
    there = Found(**told)

    def check() -> None:
        _check_visible(directory)
        _check_changes(directory, there.changes)
        if there.result is not None:
            _check_complete(directory, config, there.result, there.changes)
        if there.result is not None and there.goes_on and not there.saved:
            raise UserError(f"{directory} is complete, and has no checkpoint to resume from: choose another --run")

    agreed(comm, check)
    return there


def claim(directory: Path, config: Config, comm: Communicator) -> None:
    """Make this very directory, in which there was no run; raises Refused when there is one now."""

    def make() -> None:
        if comm.rank:
            return
        if not (directory / "config.json").exists():
            _check_free(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with closing(locked(directory / "lock")):
            if (directory / "config.json").exists():
                raise UserError(f"another job has made {directory} meanwhile: start this one again")
            _write_config(directory, config)

    agreed(comm, make)
    agreed(comm, lambda: _check_visible(directory))


def extend(directory: Path, config: Config, there: Found, comm: Communicator) -> None:
    """Let the run go on with this configuration. A result that is no longer the last is put aside first: a run that
    dies in between is not complete, and its policies stay until new ones are written.
    """

    def change() -> None:
        if comm.rank == 0:
            with closing(locked(directory / "lock")):
                if there.result is not None and there.goes_on:
                    (directory / "result.json").replace(directory / f"result-{there.result['update']:06d}.json")
                _write_config(directory, config)

    agreed(comm, change)


def complete(directory: Path) -> dict[str, Any] | None:
    """The result of a run that is complete already; raises UserError where its file is damaged."""
    path = directory / "result.json"
    if not os.path.lexists(path):
        return None
    remedy = f"remove it, and distqtrl train --resume {quoted(directory)} evaluates the run and writes it again"
    return schema.document(path, Result, "result of a run", remedy, infinite=True)[1]


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first, of those that bear our names: a copy of somebody's is none."""
    numbers = {path: re.fullmatch(r"update-(\d+)\.safetensors", path.name) for path in (run / "checkpoints").glob("*")}
    found = {path: int(match[1]) for path, match in numbers.items() if match}
    return sorted(found, key=found.__getitem__)


def _check_free(directory: Path) -> None:
    """Raise UserError for a folder that belongs to something else."""
    begun = {"lock", "config.json.partial"}  # by a process that died here
    if directory.is_dir() and {path.name for path in directory.iterdir()} - begun - {"config.json"}:
        raise UserError(f"{directory} is not a run directory (it has no config.json): choose another --run")


def _write_config(directory: Path, config: Config) -> None:
    replace(directory / "config.json", save(config).encode())


def _check_visible(directory: Path) -> None:
    """Whether this rank sees the directory that rank 0 made."""
    path, deadline = directory / "config.json", time.monotonic() + VISIBLE_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"host {platform.node()} does not see {directory}, which rank 0 made: "
                f"put train.directory on a filesystem that all hosts share"
            )
        time.sleep(0.05)


def _check_complete(directory: Path, config: Config, result: dict[str, Any], changes: Changes) -> None:
    """Raise UserError for a complete run that has lost its policy, and for a budget that it has spent already."""
    (first, *_) = policy_file.files(directory)
    if not first.exists():
        raise UserError(
            f"{directory} is complete, and its {first.name} is gone: remove result.json, and distqtrl train --resume "
            f"{quoted(directory)} writes both again"
        )
    spent = {"train.steps": result["env_steps"], "train.updates": result["update"]}
    for key, number in spent.items():
        wanted = flat(config)[key]
        if key in changes and wanted is not None and wanted < number:
            raise UserError(f"{key} = {wanted:,}: {directory} has {number:,} already: give more, or leave it out")


def _check_changes(directory: Path, changes: Changes) -> None:
    """Raise UserError for a change of what a run keeps."""
    for key, (old, new) in changes.items():
        if not may_change(key):
            raise UserError(
                f"{directory} was started with {key} = {old!r}, not {new!r}: leave it as it was, or choose another "
                f"--run (budget, targets, evaluation, output may change: {', '.join((*BUDGET, 'evaluate.*', *OUTPUT))})"
            )
