"""ONNX against the interpreter, over random programs; no tolerance."""

import sys
import types

import numpy as np
import pytest
from broken import QUICK, run, verdict
from hypothesis import given, settings
from quantize.programs import observations, programs

from distqtrl.export import onnx
from distqtrl.quantize.program import Matmul, Program, Scale


@settings(max_examples=25, deadline=None)
@given(programs)
def test_onnx(program):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx.model(program), providers=["CPUExecutionProvider"])
    x_BO = observations(program, 500)
    np.testing.assert_equal(session.run(None, {"observation": x_BO.astype(np.int32)})[0], program.run(x_BO))


@pytest.mark.parametrize("weight", [127, -127])
def test_the_largest_products_are_exact(weight):
    """CPUs without VNNI saturate sums of two products of unsigned and signed bytes at 16 bits."""
    runtime = pytest.importorskip("onnxruntime")
    scale = Scale(np.full(64, 1), np.zeros(64, np.int64), 0, 0, 255)
    ends = Scale(np.array([1]), np.array([0]), 8, -32768, 32767)
    program = Program((0,) * 64, 16, (scale, Matmul(np.full((1, 64), weight)), ends))
    session = runtime.InferenceSession(onnx.model(program), providers=["CPUExecutionProvider"])
    x_BO = np.full((3, 64), 255)
    assert program.run(x_BO)[0, 0] == 64 * 255 * weight >> 8
    np.testing.assert_equal(session.run(None, {"observation": x_BO.astype(np.int32)})[0], program.run(x_BO))


def test_onnxruntime_that_raises(folder, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise RuntimeError("illegal instruction set\nsecond line")

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=refuse))
    code, out, _ = run(capfd, "verify", folder, "--target", "onnx", *QUICK)
    assert code == 3
    assert verdict(out, "onnx").startswith("not checked: onnxruntime failed: illegal instruction set: install")
