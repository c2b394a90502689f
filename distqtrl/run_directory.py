"""The directory of one run: made by rank 0, seen by all ranks."""

import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, ConfigDict, Field

from distqtrl import config as configuration
from distqtrl import schema, tensorfile
from distqtrl.allreduce.communicator import Communicator, agreed, allgather_bytes
from distqtrl.config import Config, UserError
from distqtrl.schema import Count, Record, Several, Word

REMEDY = "the run is damaged, train it again, or remove this file and go on from the last checkpoint (train --resume)"
Return = Annotated[float, AllowInfNan(True)]  # what an environment pays is its own affair
VISIBLE_WITHIN_S = 10.0  # what a network filesystem may take to show a new directory to another host


class Summary(Record):
    """Of the returns of an evaluation; a newer version may say more."""

    model_config = ConfigDict(extra="ignore")

    mean: Return
    std: Return
    min: Return
    max: Return
    episodes: Several


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


def create(config: Config, name: str, comm: Communicator) -> Path:
    """A new directory below ``train.directory`` with its config.json, on every rank; a number makes the name free."""

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
    agreed(comm, lambda: _check_visible(directory, config))
    return directory


def claim(directory: Path, config: Config, comm: Communicator) -> bool:
    """Make this very directory, or find it made for the same configuration; returns whether it has a checkpoint.

    Raises Refused when it belongs to another configuration, or not all ranks see it.
    """

    def make() -> None:
        if comm.rank == 0 and not (directory / "config.json").exists():
            begun = {"lock", "config.json.partial"}  # by a process that died here
            if directory.is_dir() and {path.name for path in directory.iterdir()} - begun:
                raise UserError(f"{directory} is no run directory, it has no config.json: choose another --run")
            directory.mkdir(parents=True, exist_ok=True)
            _write_config(directory, config)

    agreed(comm, make)
    agreed(comm, lambda: _check_visible(directory, config))
    return bool(list((directory / "checkpoints").glob("update-*.safetensors")))


def complete(directory: Path) -> dict[str, Any] | None:
    """The result of a run that is complete already; raises UserError where its file is damaged."""
    path = directory / "result.json"
    if not os.path.lexists(path):
        return None
    return schema.document(path, Result, "result of a run", REMEDY, infinite=True)[1]


def _write_config(directory: Path, config: Config) -> None:
    tensorfile.replace(directory / "config.json", configuration.save(config).encode())


def _check_visible(directory: Path, config: Config) -> None:
    """Whether this rank sees the directory that rank 0 made, with this configuration."""
    path, deadline = directory / "config.json", time.monotonic() + VISIBLE_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"host {platform.node()} does not see {directory}, which rank 0 made: "
                f"put train.directory on a filesystem that all hosts share"
            )
        time.sleep(0.05)
    changed = configuration.differences(configuration.load(path), config)
    changed.pop("train.directory", None)
    for key, (old, new) in changed.items():
        raise UserError(
            f"{directory} was started with {key} = {old!r}, not {new!r}: go on with the configuration it was "
            f"started with (train --resume {directory}), or choose another --run"
        )
