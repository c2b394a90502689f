"""Both cores against the interpreter, over random programs; no tolerance."""

import numpy as np
import pytest
from quantize.programs import observations, program

from distqtrl.errors import UserError
from distqtrl.export import tools
from distqtrl.export.verilog import folded, simulate, synthesis, unrolled
from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize.program import Lookup, Matmul, Program, Scale


@pytest.fixture
def verilator():
    try:
        tools.verilator()
    except tools.Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def icarus():
    try:
        tools.icarus()
    except tools.Missing as error:
        pytest.skip(str(error))


def test_what_is_chosen_is_never_more_than_can_be_used():
    for seed in range(200):
        made = program(seed)
        folded.check(made, folded.usual(made))
        neurons = max(len(op.weights_NK) for op in made.ops if isinstance(op, Matmul))
        folded.check(made, Folding(max(neurons, 32), 1))
        with pytest.raises(UserError, match=rf"have {neurons} neurons .* use \d+x4"):
            folded.check(made, Folding(max(neurons, 32) + 1, 1))


@pytest.mark.parametrize(("seed", "factored"), [(1, False), (2, True), (11, True)])
def test_verilog(verilator, tmp_path, seed, factored):
    """Both cores, without and with a receiver and a sender that pause; Verilator's warnings are errors."""
    made = program(100 + seed, most=24, factored=factored)
    x_BO = observations(made, 400)
    lanes, columns = ((1, 1), (4, 4), (16, 8), (4, 4))[seed % 4]
    cores = {
        "unrolled": (unrolled.verilog(made, depth=1 + seed % 2, chains=2 * seed), len(made.input_fraction_O)),
        "folded": (folded.verilog(made, Folding(lanes, columns)), columns),
    }
    for name, (text, width) in cores.items():
        simulator = simulate.build(text, f"policy_{name}", tmp_path / name)
        for stall in (0, 3):
            y_BA, _ = simulate.run(simulator, made, x_BO, width, stall)
            np.testing.assert_equal(y_BA, made.run(x_BO))


@pytest.mark.parametrize("seed", range(8))
def test_icarus_agrees(icarus, tmp_path, seed):
    """The second opinion, on more programs and foldings: it needs no C++ compiler."""
    made = program(200 + seed, most=24, factored=seed % 3 == 2)
    x_BO = observations(made, 40)
    columns = 1 << seed % 4
    cores = {
        "unrolled": (unrolled.verilog(made, depth=1 + seed % 4, chains=seed % 3 * 2), len(made.input_fraction_O)),
        "folded": (folded.verilog(made, Folding(columns * (1 + seed % 5), columns)), columns),
    }
    for name, (text, width) in cores.items():
        y_BA = simulate.icarus(text, f"policy_{name}", tmp_path, made, x_BO, width)
        np.testing.assert_equal(y_BA, made.run(x_BO))


@pytest.mark.parametrize(("seed", "most"), [(1, 15), (6, 14)], ids=["Argmax", "Gaussian"])
def test_as_many_layers_as_the_folded_core_counts(icarus, tmp_path, seed, most):
    made, more = (program(seed, 4, layers=layers) for layers in (most, most + 1))
    x_BO = observations(made, 40)
    y_BA = simulate.icarus(folded.verilog(made, Folding(4, 2)), "policy_folded", tmp_path, made, x_BO, 2)
    np.testing.assert_equal(y_BA, made.run(x_BO))
    folded.check(made, folded.usual(made))
    with pytest.raises(UserError, match=f"at most {most} layers, this network has {most + 1}: "):
        folded.check(more, folded.usual(more))


@pytest.mark.parametrize("ordered", [False, True], ids=["any table", "an ordered table of few values"])
def test_a_scaling_after_a_table(icarus, tmp_path, ordered):
    """The unrolled core takes it into the table, other for every output, where levels are looked up or compared."""
    rng = np.random.default_rng(3)
    table = rng.integers(0, 1 << 15, 256)
    ends = Scale(np.array([32770, -5]), np.array([-536854528, 9]), 15, -16000, 16000)
    if ordered:
        table, ends = np.sort(table) >> 12, Scale(np.array([3, 1]), np.array([0, 2]), 1, 0, 10)
    levels = Scale(np.array([3, 40]), np.array([9, 1000]), 8, 0, 255)
    made = Program((0, 0), 16, (levels, Lookup(table), ends))
    x_BO = observations(made, 300)
    y_BA = simulate.icarus(unrolled.verilog(made), "policy_unrolled", tmp_path, made, x_BO, 2)
    np.testing.assert_equal(y_BA, made.run(x_BO))


@pytest.mark.parametrize("tabled", [False, True])
@pytest.mark.parametrize("ends", [(0, 7), (1, 9)])
@pytest.mark.parametrize("last", [(-8, 7), (-5, 6), (0, 15), (3, 3)])
def test_sums_beside_the_ends_are_clipped(icarus, tmp_path, tabled, ends, last):
    """The folded core looks at the bits above a level, and compares where a clip does not end with them."""
    one = np.ones(1, np.int64)
    levels = Scale(one, 0 * one, 2, 0, 7)
    hidden = Scale(3 * one, -2 * one, 1, *ends)
    table = [Lookup(np.array([9, 4, 15, 0, 12, 1, 7, 30, 3, 22]))] if tabled else []
    made = Program((0,), 16, (levels, Matmul(one[np.newaxis]), hidden, *table, Scale(3 * one, -14 * one, 1, *last)))
    x_BO = np.arange(-10, 50)[:, np.newaxis]
    y_BA = simulate.icarus(folded.verilog(made, Folding(1, 1)), "policy_folded", tmp_path, made, x_BO, 1)
    np.testing.assert_equal(y_BA, made.run(x_BO))


@pytest.mark.parametrize("name", ["unrolled", "folded"])
def test_the_netlist_is_the_program(verilator, tmp_path, name):
    """Cells of the 7 series, simulated; what toggles is counted, the more the more differs from action to action."""
    try:
        tools.yosys()
    except tools.Missing as error:
        pytest.skip(str(error))
    made = program(308, most=3)
    width = len(made.input_fraction_O) if name == "unrolled" else 1
    text = unrolled.verilog(made) if name == "unrolled" else folded.verilog(made, Folding(1, 1))
    simulator = simulate.build(synthesis.netlist(text, f"policy_{name}"), f"policy_{name}", tmp_path, tools.cells())
    x_BO = observations(made, 50)
    counted = []
    for rows in (x_BO, np.repeat(x_BO[:1], 50, axis=0)):
        y_BA, _ = simulate.run(simulator, made, rows, width)
        np.testing.assert_equal(y_BA, made.run(rows))
        counted.append(simulate.toggles(simulator))
    assert counted[0] > counted[1]


def test_toggles_are_changed_bits(tmp_path):
    """Without the first values and the clock: 3 bits of b, then 1 of a."""
    dump = "$var wire 1 ! clk $end\n$var wire 1 a a $end\n$var wire 4 b b [3:0] $end\n$enddefinitions $end\n"
    (tmp_path / "trace.vcd").write_text(dump + "#0\n0!\n0a\nb0001 b\n#1\n1!\nb0110 b\n#2\n0!\n1a\n")
    assert simulate.toggles(tmp_path / "simulator") == 4
