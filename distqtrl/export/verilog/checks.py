"""The Verilog cores beside the interpreter."""

from distqtrl.export import tools
from distqtrl.export.check import EQUAL, Check, Comparison, Question, equal
from distqtrl.export.verilog import simulate, synthesis
from distqtrl.quantize.program import Ints

NETLIST_VECTORS = 100  # of a synthesized netlist, whose every change of a net is counted


ICARUS_VECTORS = 1000


def _verilog(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        lanes = q.per_beat[core]
        simulator = simulate.build((q.place / f"policy_{core}.v").read_text(), f"policy_{core}", q.place)
        found, clocks = simulate.run(simulator, q.program, q.x_BO, lanes)
        equal(found, q.y_BA)
        few_x, few_y = _few(q.x_BO, q.y_BA)
        equal(simulate.run(simulator, q.program, few_x, lanes, stall=3)[0], few_y)
        words = f"Verilator, {clocks} clocks from observation to action"
        return Check(name, EQUAL, len(q.x_BO), words, {"clocks": clocks})

    return Comparison((f"policy_{core}.v",), run)


def _icarus(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        x, y = _few(q.x_BO, q.y_BA)
        text = (q.place / f"policy_{core}.v").read_text()
        equal(simulate.icarus(text, f"policy_{core}", q.place, q.program, x, q.per_beat[core]), y)
        return Check(name, EQUAL, len(x), "Icarus")

    return Comparison((f"policy_{core}.v",), run)


def _netlist(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        top, x = f"policy_{core}", q.seen_BO[:NETLIST_VECTORS]
        netlist = synthesis.netlist((q.place / f"{top}.v").read_text(), top)
        simulator = simulate.build(netlist, top, q.place, tools.cells())
        equal(simulate.run(simulator, q.program, x, q.per_beat[core])[0], q.program.run(x))
        toggles = simulate.toggles(simulator) / len(x)
        return Check(name, EQUAL, len(x), f"7 series, {toggles:,.0f} toggles per action", {"toggles": toggles})

    return Comparison((f"policy_{core}.v",), run)


def _few(x: Ints, y: Ints) -> tuple[Ints, Ints]:
    """No more than ICARUS_VECTORS of them, evenly spread."""
    step = -(-len(x) // ICARUS_VECTORS)
    return x[::step], y[::step]


CORES = ("folded", "unrolled")


NETLISTS = {f"netlist {core}": _netlist(core) for core in CORES}
