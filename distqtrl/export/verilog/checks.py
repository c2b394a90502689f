"""The checks of the Verilog cores: simulated by Verilator and by Icarus, and as netlists."""

from distqtrl.export import tools
from distqtrl.export.check import EQUAL, Check, Comparison, Question, equal
from distqtrl.export.verilog import simulate, synthesis
from distqtrl.export.verilog.cores import CORES
from distqtrl.quantize.program import Ints

FEW_VECTORS = 1000  # that Icarus compares, and Verilator with senders and receivers that pause
NETLIST_VECTORS = 100  # of a synthesized netlist, whose every change of a net is counted


def _verilator(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        text, lanes = _core(q, core)
        simulator = simulate.build(text, f"policy_{core}", q.place)
        found, clocks = simulate.run(simulator, q.program, q.x_BO, lanes)
        equal(found, q.y_BA)
        few_x, few_y = _few(q.x_BO, q.y_BA)
        equal(simulate.run(simulator, q.program, few_x, lanes, stall=3)[0], few_y)
        words = f"Verilator, {clocks} clocks from observation to action"
        return Check(name, EQUAL, vectors=len(q.x_BO), detail=words, figures={"clocks": clocks})

    return Comparison((f"policy_{core}.v",), run, proves=(f"policy_{core}.v",))


def _icarus(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        x, y = _few(q.x_BO, q.y_BA)
        text, lanes = _core(q, core)
        equal(simulate.icarus(text, f"policy_{core}", q.place, q.program, x, lanes), y)
        return Check(name, EQUAL, vectors=len(x), detail="Icarus")

    return Comparison((f"policy_{core}.v",), run, proves=(f"policy_{core}.v",))


def _netlist(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        text, lanes = _core(q, core)
        top, x = f"policy_{core}", q.seen_BO[:NETLIST_VECTORS]
        netlist = synthesis.netlist(text, top)
        simulator = simulate.build(netlist, top, q.place, tools.cells())
        equal(simulate.run(simulator, q.program, x, lanes)[0], q.program.run(x))
        toggles = simulate.toggles(simulator) / len(x)
        words = f"7 series, {toggles:,.0f} toggles per action"
        return Check(name, EQUAL, vectors=len(x), detail=words, figures={"toggles": toggles})

    return Comparison((f"policy_{core}.v",), run)


def _core(q: Question, core: str) -> tuple[str, int]:
    """A core's text, and how many observations it takes per beat; raises Unchecked where it was not written."""
    if "unwritten" in q.facts[core]:
        raise tools.Unchecked(q.facts[core]["unwritten"])
    return (q.place / f"policy_{core}.v").read_text(), q.facts[core]["observations_per_beat"]


def _few(x: Ints, y: Ints) -> tuple[Ints, Ints]:
    """At most FEW_VECTORS observations and their actions, evenly spread."""
    step = -(-len(x) // FEW_VECTORS)
    return x[::step], y[::step]


CHECKS = {f"verilog {core}": _verilator(core) for core in CORES} | {f"icarus {core}": _icarus(core) for core in CORES}
NETLISTS = {f"netlist {core}": _netlist(core) for core in CORES}
