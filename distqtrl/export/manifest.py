"""What an exported folder says of itself, as far as the proof reads it: manifest.json, program.json, vectors.csv."""

import io
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field

from distqtrl.config.stages import Environment
from distqtrl.errors import UserError, shortened
from distqtrl.files import reading, schema
from distqtrl.files.schema import Names, Record, Sha256, Word
from distqtrl.policy import policy_file
from distqtrl.quantize import program as programs
from distqtrl.quantize.program import Ints, Program

FORMAT = "distqtrl export 1"
REMEDY = "export the policy again"


def _inside(name: str) -> str:
    """The name of a file in the folder."""
    if name in (".", "..") or "/" in name or "\0" in name or "\\" in name:
        raise ValueError("this is no name of a file in the folder")
    return name


File = Annotated[Word, AfterValidator(_inside)]


class Origin(Record):
    """The policy file."""

    model_config = ConfigDict(extra="ignore")

    file: str
    sha256: Sha256


class Core(Record):
    """A Verilog core."""

    model_config = ConfigDict(extra="ignore")

    observations_per_beat: int = Field(ge=1, lt=2**31)
    observation_bits: int = Field(ge=1, le=16)


class Manifest(Record):
    """manifest.json; a newer version may say more."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["distqtrl export 1"]  # FORMAT
    policy: Origin
    program: Sha256
    environment: dict[Word, Any]
    agents: Names
    targets: tuple[Literal["c", "onnx", "cuda", "verilog"], ...] = Field(min_length=1)
    files: dict[File, Sha256] = Field(min_length=1)
    verilog: dict[Literal["unrolled", "folded"], Core] = Field(default_factory=dict)


def manifest(path: Path) -> dict[str, Any]:
    """What manifest.json holds; raises UserError where it is none."""
    told, values = schema.document(path, Manifest, "manifest of an export", "give a folder made by distqtrl export")
    problem = ""
    try:
        schema.complete(Environment, told.environment, "environment", policy_file.ENVIRONMENT)
    except ValueError as error:
        problem = str(error)
    if len(told.verilog) != 2 * ("verilog" in told.targets):
        problem = "verilog does not describe the cores of the targets"
    if problem:
        raise UserError(f"{path} is no manifest of an export ({problem}): {REMEDY}")
    return values


def read(folder: Path) -> tuple[Program, Ints, Ints]:
    """The folder's program and test vectors, observations and actions; raises UserError where they cannot be read."""
    paths = folder / "program.json", folder / "vectors.csv"
    try:
        texts = [reading.text(path) for path in paths]
    except ValueError as error:
        raise UserError(f"cannot read {folder} (program.json or vectors.csv: {error}): {REMEDY}") from None
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
