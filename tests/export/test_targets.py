"""C, ONNX, torch and Verilog against the interpreter, over random programs; no tolerance."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from quantize.programs import observations, program, programs

from distqtrl.export import c, cuda, loader, onnx, tools, verify
from distqtrl.export.verilog import folded, simulate, synthesis, unrolled
from distqtrl.export.verilog.folded import Folding
from distqtrl.quantize.program import Argmax, Program, Scale

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
COMPILERS = ("gcc", "clang")


def library(program, folder, flags=()):
    """The program's C policy, built in a folder with these flags."""
    folder.mkdir(parents=True, exist_ok=True)
    c.write(folder, program)
    words = [*STRICT, "-O1", "-shared", "-fPIC", *flags]
    subprocess.run(["cc", *words, "-o", "policy.so", "policy.c"], cwd=folder, check=True)
    return loader.Policy(library=folder / "policy.so")


@settings(max_examples=25, deadline=None)
@given(programs)
def test_c(tmp_path_factory, program):
    policy = library(program, tmp_path_factory.mktemp("c"))
    x_BO = observations(program, 500)
    np.testing.assert_equal(policy.batch(x_BO), program.run(x_BO))
    policy.observation[:] = x_BO[7]
    policy.step()
    np.testing.assert_equal(policy.action, program.run(x_BO[7:8])[0])


@settings(max_examples=10, deadline=None)
@given(programs)
def test_c_converts_observations_alike(tmp_path_factory, program):
    policy = library(program, tmp_path_factory.mktemp("c"))
    values = np.random.default_rng(1).normal(0, 1e4, (50, len(program.input_fraction_O)))
    values[:6, 0] = np.nan, np.inf, -np.inf, 0.5, -0.5, 2.0**-13
    for row in values:
        expected = program.run(program.convert(row[np.newaxis]))[0]
        assert policy.act(row).tolist() == expected.tolist()


def test_exhaustively(tmp_path):
    """Every input of a program that sees one observation: 65,536 of them; two of 8 bits would be 2**16 as well."""
    for seed in range(5):
        made = program(seed, most=1)
        x_BO = np.arange(-32768, 32768)[:, np.newaxis]
        np.testing.assert_equal(library(made, tmp_path / str(seed)).batch(x_BO), made.run(x_BO))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_c_is_clean(tmp_path, compiler):
    """No warning, and nothing for the sanitizers to find, in any of 8 programs."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}: install the Debian package {compiler}")
    for seed in range(8):
        made, folder = program(seed, factored=seed > 5), tmp_path / str(seed)
        folder.mkdir()
        c.write(folder, made)
        width = len(made.input_fraction_O)
        rows = observations(made, 50)
        (folder / "main.c").write_text(
            '#include "policy.h"\n#include <stdio.h>\n'
            f"static const policy_observation_t x[] = {{{', '.join(map(str, rows.ravel()))}}};\n"
            "int main(void) {\n    int32_t y[POLICY_ACTIONS];\n"
            f"    for (int i = 0; i < {len(rows)}; i++) {{\n        policy_act(x + i * {width}, y);\n"
            '        for (int j = 0; j < POLICY_ACTIONS; j++) printf("%d ", (int)y[j]);\n    }\n    return 0;\n}\n'
        )
        flags = [*STRICT, "-O2", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
        subprocess.run([compiler, *flags, "-o", "main", "main.c", "policy.c"], cwd=folder, check=True)
        done = subprocess.run([folder / "main"], capture_output=True, text=True, check=True)
        assert [int(word) for word in done.stdout.split()] == made.run(rows).ravel().tolist()


@settings(max_examples=25, deadline=None)
@given(programs)
def test_onnx(program):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx.model(program), providers=["CPUExecutionProvider"])
    x_BO = observations(program, 500)
    np.testing.assert_equal(session.run(None, {"observation": x_BO.astype(np.int32)})[0], program.run(x_BO))


@settings(max_examples=30, deadline=None)
@given(programs)
def test_torch(program):
    x_BO = observations(program, 200)
    np.testing.assert_equal(cuda.run(program, torch.from_numpy(x_BO)).numpy(), program.run(x_BO))


@pytest.fixture
def verilator():
    try:
        tools.verilator()
    except tools.Missing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("seed", "factored"), [(0, False), (1, False), (2, True), (11, True)])
def test_verilog(verilator, tmp_path, seed, factored):
    """Both cores, without and with a receiver and a sender that pause; Verilator's warnings are errors."""
    made = program(100 + seed, most=24, factored=factored)
    x_BO = observations(made, 400)
    lanes, columns = ((1, 1), (4, 4))[seed % 2]
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
def test_icarus_agrees(tmp_path, seed):
    """The second opinion, on more programs and foldings: it needs no C++ compiler."""
    try:
        tools.icarus()
    except tools.Missing as error:
        pytest.skip(str(error))
    made = program(200 + seed, most=24, factored=seed % 3 == 2)
    x_BO = observations(made, 40)
    columns = 1 << seed % 3
    cores = {
        "unrolled": (unrolled.verilog(made, depth=1 + seed % 4, chains=seed % 3 * 2), len(made.input_fraction_O)),
        "folded": (folded.verilog(made, Folding(columns * (1 + seed % 5), columns)), columns),
    }
    for name, (text, width) in cores.items():
        y_BA = simulate.icarus(text, f"policy_{name}", tmp_path, made, x_BO, width)
        np.testing.assert_equal(y_BA, made.run(x_BO))


@pytest.mark.parametrize("name", ["unrolled", "folded"])
def test_the_netlist_is_the_program(verilator, tmp_path, name):
    """Cells of the 7 series, simulated; what toggles is counted, the more the more differs from action to action."""
    try:
        tools.yosys()
    except tools.Missing as error:
        pytest.skip(str(error))
    made = program(302, most=5)
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


def test_a_clock_is_reached(tmp_path):
    """Place and route of a small core for ECP5: the goal is 100 MHz, the test that a number comes back."""
    try:
        tools.nextpnr()
        tools.yosys()
    except tools.Missing as error:
        pytest.skip(str(error))
    made = program(302, most=5)
    inputs, outputs = len(made.input_fraction_O) * made.inputs.bits, len(made.outputs.low_N) * made.outputs.bits
    assert 20 < synthesis.clock_mhz(unrolled.verilog(made), "policy_unrolled", inputs, outputs) < 1000


def test_all_combinations_of_levels_are_tried():
    """Two observations of 4 levels each: all 16 pairs, or none where there is no room; one observation: every value."""
    scale = Scale(np.array([1, 3]), np.array([0, 40_000]), 14, 0, 3)
    made = Program((0, 0), 16, (scale, Argmax()))
    seen_BO = np.zeros((3, 2), np.int64)
    pairs = {tuple(row) for row in scale(verify.vectors(made, seen_BO, 16, seed=0)).tolist()}
    kinds = [np.unique(scale(np.arange(-32768, 32768)[:, None].repeat(2, 1))[:, i]) for i in range(2)]
    assert pairs == {(a, b) for a in kinds[0] for b in kinds[1]}
    assert len(verify.vectors(made, seen_BO, 1000, seed=0)) == 1000
    one = Program((0,), 16, (Scale(np.array([1]), np.array([0]), 14, 0, 3), Argmax()))
    assert len(np.unique(verify.vectors(one, seen_BO[:, :1], 100_000, seed=0))) == 65_536


def test_cuda_compiles(tmp_path):
    """As C++ for the device; it is run where there is a GPU (distqtrl verify)."""
    try:
        nvcc = tools.nvcc()
    except tools.Missing as error:
        pytest.skip(str(error))
    c.write(tmp_path, program(5))
    (tmp_path / "policy.cu").write_text(cuda.SOURCE)
    tools.run(nvcc, ["-c", "-o", "policy.o", "policy.cu"], tmp_path)
