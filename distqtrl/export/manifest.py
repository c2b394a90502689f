"""What an exported folder says of itself, as far as the proof reads it: manifest.json, program.json, vectors.csv."""

import io
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, create_model

from distqtrl.config.stages import Environment
from distqtrl.errors import UserError, shortened
from distqtrl.export.targets import TARGETS
from distqtrl.files import reading, schema
from distqtrl.files.schema import Names, Record, Sha256, Word
from distqtrl.policy import policy_file
from distqtrl.quantize import program as programs
from distqtrl.quantize.program import Ints, Program

FORMAT = "distqtrl export 1"
MANIFEST, PROGRAM, VECTORS = "manifest.json", "program.json", "vectors.csv"
PARTNER = "partner-"  # how the names of the other agents' policy files begin
REMEDY = "export the policy again"


def _inside(name: str) -> str:
    """The name, unless it is not that of a file in the folder."""
    if name in (".", "..") or "/" in name or "\0" in name or "\\" in name:
        raise ValueError("this is not the name of a file in the folder")
    return name


File = Annotated[Word, AfterValidator(_inside)]


class Origin(Record):
    """The policy file that was exported."""

    model_config = ConfigDict(extra="ignore")

    file: str
    sha256: Sha256


def _target(name: str) -> str:
    """The name, unless it is not that of a target."""
    if name not in TARGETS:
        *first, last = map(repr, TARGETS)
        raise ValueError(f"Input should be {', '.join(first)} or {last}")
    return name


class Manifest(Record):
    """manifest.json, but for what targets say of themselves; a newer version may say more."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["distqtrl export 1"]  # FORMAT
    policy: Origin
    program: Sha256
    environment: dict[Word, Any]
    agents: Names
    targets: tuple[Annotated[str, AfterValidator(_target)], ...] = Field(min_length=1)
    files: dict[File, Sha256] = Field(min_length=1)


def _model() -> type[Manifest]:
    """manifest.json with the parts of all targets: of Verilog, its cores."""
    parts: dict[str, Any] = {}
    for name, target in TARGETS.items():
        if target.parts:
            parts[name] = (dict[Literal[target.parts], target.part], Field(default_factory=dict))  # type: ignore[name-defined]
    return create_model("Manifest", __base__=Manifest, **parts)


def manifest(path: Path) -> dict[str, Any]:
    """The contents of manifest.json; raises UserError where it is not the manifest of an export."""
    told, values = schema.document(path, _model(), "manifest of an export", "give a folder made by distqtrl export")
    problem = ""
    try:
        schema.complete(Environment, told.environment, "environment", policy_file.ENVIRONMENT)
    except ValueError as error:
        problem = str(error)
    for name, target in TARGETS.items():
        if target.parts and len(getattr(told, name)) != len(target.parts) * (name in told.targets):
            problem = f"{name} does not describe the cores of the targets"
    if problem:
        raise UserError(f"{path} is not a manifest of an export ({problem}): {REMEDY}")
    return values


def read(folder: Path) -> tuple[Program, Ints, Ints]:
    """The folder's program and test vectors, observations and actions; raises UserError where they cannot be read."""
    paths = folder / PROGRAM, folder / VECTORS
    try:
        texts = [reading.text(path) for path in paths]
    except ValueError as error:
        raise UserError(f"cannot read {folder} ({PROGRAM} or {VECTORS}: {error}): {REMEDY}") from None
    program = programs.loads(texts[0], str(paths[0]))
    x, y = program.inputs, program.outputs
    try:
        if not texts[1].strip():
            raise ValueError("it is empty")
        rows = np.loadtxt(io.StringIO(texts[1]), np.int64, delimiter=",", ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise UserError(f"cannot read {paths[1]} ({shortened(str(error))}): {REMEDY}") from None
    width = len(x.low_N)
    if rows.shape[1] != width + len(y.low_N):
        raise UserError(f"{paths[1]} has {rows.shape[1]} columns, not the program's: {REMEDY}")
    if (rows[:, :width] < x.low_N).any() or (rows[:, :width] > x.high_N).any():
        raise UserError(f"{paths[1]} holds observations that do not fit {program.input_bits} bits: {REMEDY}")
    return program, rows[:, :width], rows[:, width:]
