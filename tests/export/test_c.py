"""C against the interpreter, over random programs; no tolerance."""

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from quantize.programs import observations, program, programs

from distqtrl.export import c, loader
from distqtrl.export.products import Layer
from distqtrl.quantize.program import Matmul, Program, Scale

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


def test_shifts_beyond_32_bits(tmp_path):
    """The numbers fit 32 bits, and what they are shifted by does not."""
    made = Program((0, 0), 16, (Scale(np.array([1, -1]), np.array([0, 5]), 40, -128, 127),))
    x_BO = np.array([[32767, 32767], [-32768, -32768]])
    np.testing.assert_equal(library(made, tmp_path).batch(x_BO), made.run(x_BO))


def test_exhaustively(tmp_path):
    """Every input of a program that sees one observation: 65,536 of them; two of 8 bits would be 2**16 as well."""
    for seed in range(5):
        made = program(seed, most=1)
        x_BO = np.arange(-32768, 32768)[:, np.newaxis]
        np.testing.assert_equal(library(made, tmp_path / str(seed)).batch(x_BO), made.run(x_BO))


@pytest.mark.parametrize(
    ("top", "levels", "outputs", "together"), [(3, 3, 62, 3), (1, 2, 9, 4), (1, 8, 9, 0), (7, 4, 16, 0)]
)
def test_pairs_of_products_do_not_carry(tmp_path, top, levels, outputs, together):
    """Greatest levels by greatest weights: rows of bytes that add up inside a word, and none where two do not fit."""
    high = (1 << levels) - 1
    ones, zeros = np.ones(50, np.int64), np.zeros(50, np.int64)
    weights_NK = np.random.default_rng(0).choice([-top, 0, top], (outputs, 50))
    weights_NK[0], weights_NK[1] = top, -top
    made = Program((0,) * 50, 16, (Scale(ones, zeros, 0, 0, high), Matmul(weights_NK)))
    _, (op, x, _) = made.steps()
    assert Layer(op, x, 1).together == together
    x_BO = np.random.default_rng(1).integers(-32768, 32768, (100, 50))
    x_BO[0] = 32767
    np.testing.assert_equal(library(made, tmp_path).batch(x_BO), made.run(x_BO))


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
