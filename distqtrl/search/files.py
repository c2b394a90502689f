"""The files of a search as its workers read them: search.json, failed.json, costs."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from distqtrl.errors import UserError
from distqtrl.files import schema
from distqtrl.files.schema import Count, Record, Word
from distqtrl.record import directory as run_directory


class Row(Record):
    """A candidate, as far as the summary reads it."""

    model_config = ConfigDict(extra="ignore")

    name: Word
    mean: float | None
    gap: float | None
    gap_percent: float | None
    passes: bool | None


class Step(Record):
    """A step of the rule."""

    what: Word
    tried: tuple[Word, ...]
    passing: tuple[Word, ...]
    kept: Word


class Chosen(Record):
    """A candidate and the seed of its median return."""

    name: Word
    seed: int = Field(ge=0, lt=2**32)


class Found(Record):
    """search.json, as far as anything reads it; a newer version may say more."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["distqtrl search 1"]
    status: Literal["running", "complete"]
    settings: dict[Word, Any]
    candidates: tuple[Row, ...]
    steps: tuple[Step, ...]
    front: tuple[Word, ...] = ()
    chosen: Chosen | None
    problem: str


class Failed(Record):
    """failed.json: a training that diverged."""

    status: Literal["failed"]
    error: str
    env_steps: Count


class Cost(Record):
    """costs/NAME.json."""

    cost: float = Field(ge=0)
    kind: Word
    seed: int = Field(ge=0, lt=2**32)


def found(path: Path, remedy: str) -> dict[str, Any] | None:
    """search.json, where there is one; raises UserError where it belongs to something else."""
    if not os.path.lexists(path):
        return None
    told, values = schema.document(path, Found, "search of ours", remedy)
    if told.chosen and told.chosen.name not in {row.name for row in told.candidates}:
        raise UserError(f"{path} is not a search of ours (chosen.name is not a candidate): {remedy}")
    return values


def result(run: Path) -> dict[str, Any] | None:
    """What result.json or failed.json of a training holds; none: it is not complete. Raises UserError."""
    complete = run_directory.complete(run)
    failed = run / "failed.json"
    if complete is None and os.path.lexists(failed):
        return schema.document(failed, Failed, "note of a failed training", "remove it to train again")[1]
    return complete


def cost(path: Path) -> float | None:
    """The cost of a candidate, None where it is not known; raises UserError for a damaged file."""
    if not os.path.lexists(path):
        return None
    return schema.document(path, Cost, "cost of a candidate", "remove it to count again")[0].cost
