"""The two Verilog cores of an export: their files, and what the manifest says about them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from distqtrl.export.options import Options
from distqtrl.export.verilog import folded, unrolled
from distqtrl.files.schema import Record
from distqtrl.quantize.program import Program

CORES = ("folded", "unrolled")
FILES = tuple(f"policy_{core}.v" for core in CORES)
Facts = Mapping[str, Mapping[str, Any]]  # of every core


class Core(Record):
    """What the manifest says about a core, as far as the proof reads it."""

    model_config = ConfigDict(extra="ignore")

    observations_per_beat: int = Field(ge=1, lt=2**31)
    observation_bits: int = Field(ge=1, le=16)


def write(folder: Path, program: Program, options: Options) -> Facts:
    """Write both cores; returns how each of them takes observations, and why one is missing.

    In place of an unrolled core that would be too large there is a comment that says so.
    """
    folding = options.folding or folded.usual(program)
    folded.check(program, folding)
    missing = unrolled.refusal(program)
    (folder / "policy_unrolled.v").write_text(f"// {missing}\n" if missing else unrolled.verilog(program))
    (folder / "policy_folded.v").write_text(folded.verilog(program, folding))
    common = {"observation_bits": program.input_bits}
    whole = {"observations_per_beat": len(program.input_fraction_O), **common}
    return {
        "unrolled": whole | ({"unwritten": missing} if missing else {}),
        "folded": {"observations_per_beat": folding.columns, **common, **asdict(folding)},
    }
