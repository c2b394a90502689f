"""What a core costs: look-up tables, clocks, time, energy."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from distqtrl.errors import UserError
from distqtrl.export import tools
from distqtrl.export.options import Options
from distqtrl.export.verilog import folded, synthesis
from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize.program import Program


def _figures(folder: Path, name: str, core: dict[str, Any], program: Program, options: Options) -> dict[str, Any]:
    """What Yosys counts and, if asked, the clock that nextpnr reaches; raises UserError where the part is too small."""
    text, top = (folder / f"policy_{name}.v").read_text(), f"policy_{name}"
    try:
        used = synthesis.resources(text, top)
        if options.part and name == "folded" and (over := synthesis.lacking(used, synthesis.PARTS[options.part])):
            raise UserError(_too_large(program, Folding(core["lanes"], core["columns"]), options.part, over))
        out: dict[str, Any] = {"resources": asdict(used)}
        out["fits"] = [part for part, room in synthesis.PARTS.items() if not synthesis.lacking(used, room)]
        if options.implement:
            lanes, outputs = core["observations_per_beat"], program.outputs
            out["mhz"] = synthesis.clock_mhz(text, top, lanes * program.inputs.bits, len(outputs.low_N) * outputs.bits)
    except tools.Unchecked as error:
        return {"missing": str(error)}
    return out


def _count(about: dict[str, Any], name: str, options: Options) -> None:
    """Clocks, time and toggles of a core, from the checks; energy from the user's coefficients."""
    core = about["verilog"][name]
    for check in about["checks"]:
        if check["target"] in (f"verilog {name}", f"netlist {name}"):
            core |= check["figures"]
    if "clocks" in core:
        core["us_at_100_mhz"] = core["clocks"] / 100
        if "mhz" in core:
            core["us"] = core["clocks"] / core["mhz"]
        if options.energy and "toggles" in core:
            watts, joules = options.energy
            core["joules"] = watts * core["us_at_100_mhz"] * 1e-6 + joules * core["toggles"]
            core["energy"] = {"static_watts": watts, "joules_per_toggle": joules}


def _too_large(program: Program, folding: Folding, part: str, over: dict[str, float]) -> str:
    """What is lacking, and the folding that would fit."""
    words = ", ".join(f"{value:g} {name.upper()}" for name, value in over.items())
    smaller = folding
    while smaller.lanes > smaller.columns or smaller.columns > 2:
        columns = min(smaller.columns, max(2, smaller.lanes // 4))
        smaller = Folding(max(smaller.lanes // 2, columns), columns)
        used = synthesis.resources(folded.verilog(program, smaller), "policy_folded")
        if not synthesis.lacking(used, synthesis.PARTS[part]):
            return f"the folded core lacks {words} in {part}: --parallel {smaller.lanes}x{smaller.columns} would fit"
    return f"the folded core lacks {words} in {part}, and no --parallel fits: use fewer bits or a larger part"
