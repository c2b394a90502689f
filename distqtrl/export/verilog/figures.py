"""What a core costs: look-up tables, clocks, time, energy; and how that is printed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distqtrl.errors import UserError
from distqtrl.export import tools
from distqtrl.export.options import Options
from distqtrl.export.verilog import folded, synthesis
from distqtrl.export.verilog.cores import CORES
from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize.program import Program

Core = dict[str, Any]  # what the manifest says about one
COLUMNS = {
    "LUT": "lut", "FF": "ff", "BRAM36": "bram", "DSP": "dsp", "fits": "fits", "clocks": "clocks",
    "us at 100 MHz": "us_at_100_mhz", "ECP5 MHz": "mhz", "us at it": "us",
    "toggles per action": "toggles", "J per action": "joules",
}  # fmt: skip


def measured(
    pool: Executor, folder: Path, program: Program, options: Options, cores: Mapping[str, Core]
) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[str]]:
    """Start to count what the cores of a folder cost, beside the checks.

    What is returned is given the checks, waits, adds the figures to ``cores``, and says a line about each of them.
    Raises UserError where ``options.part`` is too small: before anything else, there may be nothing to prove.
    """
    todo = {}
    for name in CORES:
        todo[name] = pool.submit(_synthesized, folder, name, cores[name], program, options)
        if options.part and name == "folded":
            todo[name].result()

    def found(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        for name, future in todo.items():
            cores[name].update(future.result())
            _count(cores[name], name, checks, options)
            yield line(name, cores[name])

    return found


def _synthesized(folder: Path, name: str, core: Core, program: Program, options: Options) -> Core:
    """What Yosys counts and, if asked, the clock that nextpnr reaches; raises UserError where the part is too small."""
    text, top = (folder / f"policy_{name}.v").read_text(), f"policy_{name}"
    if "unwritten" in core:
        return {"missing": core["unwritten"]}
    try:
        used = synthesis.resources(text, top)
        if options.part and name == "folded" and (over := synthesis.lacking(used, synthesis.PARTS[options.part])):
            raise UserError(_too_large(program, Folding(core["lanes"], core["columns"]), options.part, over))
        out: dict[str, Any] = {"resources": asdict(used)}
        out["fits"] = [part for part, room in synthesis.PARTS.items() if not synthesis.lacking(used, room)]
        if options.implement:
            lanes, outputs = core["observations_per_beat"], program.outputs
            in_bits, out_bits = lanes * program.inputs.bits, len(outputs.low_N) * outputs.bits
            out["mhz"] = synthesis.clock_mhz(text, top, in_bits=in_bits, out_bits=out_bits)
    except tools.Unchecked as error:
        return {"missing": str(error)}
    return out


def _count(core: Core, name: str, checks: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Add clocks, time and toggles of a core, which the checks counted; and energy from the user's coefficients."""
    for check in checks:
        if check["target"] in (f"verilog {name}", f"netlist {name}"):
            core.update(check["figures"])
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


def page(cores: Mapping[str, Core]) -> list[str]:
    """The section of the folder's README about its cores.

    Resources are Yosys' for the 7 series, inverters counted as tables; the clock is nextpnr's on an ECP5-85F.
    """
    words = ["core", "observations per beat", *COLUMNS]
    lines = ["## Cores", "", f"| {' | '.join(words)} |", "|---|" + "--:|" * (len(words) - 1)]
    for name, core in cores.items():
        flat = {**core, **core.get("resources", {})}
        cells = [_cell(flat[key]) if key in flat else "" for key in ("observations_per_beat", *COLUMNS.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = sorted({core["missing"] for core in cores.values() if "missing" in core})
    if any("resources" in core for core in cores.values()):
        lines += ["", "LUT: Yosys' tables for the 7 series, its inverters (INV) among them."]
    lines += ["", *(f"Not counted: {note}." for note in notes)]
    for core in cores.values():
        if "energy" in core:
            e = core["energy"]
            lines += [f"Energy: {e['static_watts']:g} W * time at 100 MHz + {e['joules_per_toggle']:g} J * toggles."]
            break
    return lines


def line(name: str, core: Core) -> str:
    """A core's figures in words."""
    flat = {**core, **core.get("resources", {})}
    words = [f"{_cell(flat[key])} {word}" for word, key in COLUMNS.items() if key in flat and key != "fits"]
    return f"{f'core {name}':<17} {core.get('missing') or ', '.join(words)}"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "no part known here"
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
