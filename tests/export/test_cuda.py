"""The kernel and the batch in torch against the interpreter; no tolerance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from quantize.programs import observations, program, programs

from distqtrl.export import cuda, tools
from distqtrl.export.options import Options


@settings(max_examples=30, deadline=None)
@given(programs)
def test_torch(program):
    x_BO = observations(program, 200)
    np.testing.assert_equal(cuda.run(program, torch.from_numpy(x_BO)).numpy(), program.run(x_BO))


def test_cuda_compiles(tmp_path):
    """As C++ for the device; it is run where there is a GPU (distqtrl verify)."""
    try:
        nvcc = tools.nvcc()
    except tools.Missing as error:
        pytest.skip(str(error))
    cuda.write(tmp_path, program(5), Options(targets=("cuda",)))
    tools.run(nvcc, ["-c", "-o", "policy.o", "policy.cu"], tmp_path)
