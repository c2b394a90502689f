"""ONNX against the interpreter, over random programs; no tolerance."""

import sys
import types

import numpy as np
import pytest
from broken import QUICK, run, verdict
from hypothesis import given, settings
from quantize.programs import observations, programs

from distqtrl.export import onnx


@settings(max_examples=25, deadline=None)
@given(programs)
def test_onnx(program):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx.model(program), providers=["CPUExecutionProvider"])
    x_BO = observations(program, 500)
    np.testing.assert_equal(session.run(None, {"observation": x_BO.astype(np.int32)})[0], program.run(x_BO))


def test_onnxruntime_that_raises(folder, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise RuntimeError("illegal instruction set\nsecond line")

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=refuse))
    code, out, _ = run(capfd, "verify", folder, "--target", "onnx", *QUICK)
    assert code == 3
    assert verdict(out, "onnx").startswith("not checked: onnxruntime failed: illegal instruction set: install")
