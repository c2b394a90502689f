"""The kernel on Numba's simulated GPU, in a process of its own, and what is said where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_simulated
import numba.cuda.dispatcher
import pytest
from numba import cuda as numba_cuda
from numba.cuda.cudadrv.error import NvvmSupportError

from distqtrl.circuit import ansatz, cuda, gpu, qpu
from distqtrl.circuit.cuda import Cuda
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

pytestmark = pytest.mark.xdist_group("simulated")  # one process simulates for all of them
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
gpu_is_here = pytest.mark.skipif(not cuda.available(), reason="there is no GPU: only the simulator was asked")


@pytest.fixture(scope="module")
def simulated():
    script = Path(cuda_simulated.__file__)
    found = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", cuda_simulated.NAMES)
def test_equals_the_exact_engine_in_shared_and_global_memory(simulated, name):
    found = simulated["cases"][name]
    limit = TOLERANCE[name.split()[-1]]
    assert found.pop("p") <= limit
    assert found.pop("gradient") <= limit
    assert all(found.values()), found  # the same bits in one launch or two, alone or in a batch


def test_sums_over_many_threads_and_large_angles_in_single_precision(simulated):
    assert simulated["wide"] <= 1e-10
    assert simulated["large"] <= 1e-5


def test_shots_follow_their_seeds(simulated):
    (first, again, other), exact = simulated["shots"]
    assert first == again
    assert first[0] == other[1]
    assert first[0] != first[1]
    assert exact == []


def test_what_cannot_be_simulated_or_held_is_one_line(simulated):
    large, batch, absent = simulated["refused"]
    assert (
        "simulates at most 6 qubits, the circuit has 10: unset it where there is a GPU, else use qpu.backend" in large
    )
    assert "needs 512.0 GiB for 1,073,741,824 circuits of 4 qubits, 1.0 GiB are free: lower qpu.replicas" in batch
    assert absent == "qpu.device = cuda:3: Numba sees 1 GPU here: use cuda:0"


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "available", lambda: False)
    with pytest.raises(UserError, match=r"finds no GPU that Numba can use .*: use qpu.backend statevector, or torch$"):
        qpu.build(Circuit(), Qpu(backend="cuda"), 3)


@pytest.fixture
def one_gpu(monkeypatch):
    """One GPU that is too old, and is never used."""
    monkeypatch.setattr(cuda, "available", lambda: True)
    monkeypatch.setattr(numba_cuda, "gpus", [SimpleNamespace(compute_capability=(5, 2))])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "needs a GPU of compute capability 6.0, this one has 5.2: use qpu.backend statevector, or torch"),
        ({"device": "cuda:1"}, "qpu.device = cuda:1: Numba sees 1 GPU here: use cuda:0"),
        ({"device": "gpu"}, "qpu.device = 'gpu' is not a device of qpu.backend cuda: use cuda or cuda:1"),
        ({"noise": "FakeManilaV2"}, "has no meaning for qpu.backend cuda: remove it"),
        ({"options": {"threads": 8}}, "has no meaning for qpu.backend cuda: remove it"),
    ],
)
def test_bad_input_is_one_line(one_gpu, fields, line):
    with pytest.raises(UserError) as caught:
        Cuda(ansatz.build(Circuit(), 3), Qpu(backend="cuda", **fields))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_kernel_compiles_for_a_gpu_that_is_not_there(monkeypatch, precision, shared):
    """To PTX, by Numba and NVIDIA's own compiler, where that is installed."""
    capability = 8, 0
    monkeypatch.setattr(
        numba.cuda.dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=capability)
    )
    try:
        code, _ = numba_cuda.compile_ptx(gpu.source(precision, shared), gpu.signature(precision), cc=capability)
    except NvvmSupportError:
        pytest.skip("there is no NVVM: CUDA's toolkit brings it")
    assert ("ld.shared" in code) == shared
    assert "fma.rn.f64" in code
    assert ("fma.rn.f32" in code) == (precision == "float32")


@gpu_is_here
@pytest.mark.parametrize("name", cuda_simulated.NAMES)
def test_a_real_gpu_equals_the_exact_engine(name):
    program, precision = cuda_simulated.cases()[name.rsplit(" ", 1)[0]], name.split()[-1]
    found = cuda_simulated.compared(program, precision)
    assert max(found.pop("p"), found.pop("gradient")) <= TOLERANCE[precision]
    assert all(found.values()), found


@gpu_is_here
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("n", [6, 10, 13])
def test_a_real_gpu_equals_the_exact_engine_at_size(n, precision):
    """With states in shared memory, beyond the 48 KiB that need no asking, and in global memory."""
    found = cuda_simulated.compared(ansatz.build(Circuit(layers=2), n), precision)
    assert max(found.pop("p"), found.pop("gradient")) <= TOLERANCE[precision]
