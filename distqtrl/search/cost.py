"""What an exported policy costs: lookup tables, nanoseconds or energy of a core, or bytes of a microcontroller."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distqtrl.errors import UserError
from distqtrl.export import c, episodes, tools
from distqtrl.export.verilog import folded, simulate, synthesis, unrolled
from distqtrl.export.verilog.checks import NETLIST_VECTORS
from distqtrl.policy import policy_file
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize.program import Program

CLOCK_NS = 10.0  # at 100 MHz, the clock of arXiv 2511.07046
VECTORS = 10  # that clocks are counted over: they do not depend on them


@dataclass(frozen=True)
class Kind:
    """A kind of cost: its unit, and the tools that count it."""

    unit: str
    tools: tuple[Callable[[], object], ...]


KINDS = {
    "luts": Kind("6-input lookup tables, 7 series", (tools.yosys,)),
    "ns": Kind("ns from observation to action at 100 MHz", (tools.verilator, tools.make, tools.cxx)),
    "energy": Kind("J per action at 100 MHz", (tools.yosys, tools.verilator, tools.make, tools.cxx)),
    "memory": Kind("bytes of flash, memory and stack, Cortex-M4", (tools.arm,)),
}


def check(kind: str) -> None:
    """Raise UserError where a tool is missing that this cost is counted with."""
    for tool in KINDS[kind].tools:
        try:
            tool()
        except tools.Missing as error:
            raise UserError(f"--cost {kind}: {error}, or choose another cost") from None


def cost(kind: str, path: Path, core: str, energy: tuple[float, float] | None) -> float:
    """The cost of the policy file's integer program, in the unit of KINDS; ``core`` is folded or unrolled.

    energy: static watts and joules per toggle, for the kind energy. Raises UserError where a tool fails.
    """
    try:
        return _counted(kind, path, core, energy)
    except tools.Unchecked as error:
        raise UserError(f"--cost {kind}: {error}") from None


def _counted(kind: str, path: Path, core: str, energy: tuple[float, float] | None) -> float:
    policy = policy_file.load(path)
    program = policy.program()
    if kind == "memory":
        return _memory(program)
    text, lanes = _core(program, core)
    top = f"policy_{core}"
    if kind == "luts":
        return float(synthesis.resources(text, top).lut)
    x_BO = program.convert(_seen(policy))
    with tools.workplace() as place:
        simulator = simulate.build(text, top, place / "core")
        ns = simulate.run(simulator, program, x_BO[:VECTORS], lanes)[1] * CLOCK_NS
        if kind == "ns":
            return ns
        assert energy is not None
        simulator = simulate.build(synthesis.netlist(text, top), top, place / "netlist", tools.cells())
        simulate.run(simulator, program, x_BO, lanes)
        return energy[0] * ns * 1e-9 + energy[1] * simulate.toggles(simulator) / len(x_BO)


def _core(program: Program, core: str) -> tuple[str, int]:
    """A core's text, and how many observations it takes per beat."""
    if core == "unrolled":
        if missing := unrolled.refusal(program):
            raise UserError(f"--core unrolled: {missing}: choose folded, or smaller --widths")
        return unrolled.verilog(program), len(program.input_fraction_O)
    folding = folded.usual(program)
    return folded.verilog(program, folding), folding.columns


def _seen(policy: Policy) -> np.ndarray:
    """Observations of an episode, evenly spread, as many as an export simulates netlists with."""
    obs_BO = episodes.observations(policy, (), 1)
    return obs_BO[np.linspace(0, len(obs_BO) - 1, min(NETLIST_VECTORS, len(obs_BO))).astype(int)]


def _memory(program: Program) -> float:
    with tools.workplace() as place:
        c.write(place, program)
        return sum(c.cortex_m(place).values())
