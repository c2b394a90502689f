import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import circuits, seeds

from distqtrl.circuit import ansatz, batched, qpu, shift, statevector
from distqtrl.circuit.ansatz import ANSATZE, KINDS, Gate
from distqtrl.circuit.batched import Batched
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
WHERE = ["cpu", pytest.param("cuda", marks=cuda)]
# of p and of a gradient of cotangents of size 1: float32 has 2^-24 of rounding per gate
BOUND = {torch.float64: 1e-10, torch.float32: 2e-5}


def ring(n=3, layers=2):
    return ansatz.build(Circuit(layers=layers), n)


def sets(program, num, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-np.pi, np.pi, (num, program.num_angles)), rng.normal(size=(num, 2**program.num_qubits))


def ours(program, theta_KP, v_KS):
    device = statevector.StateVector(program, Qpu())
    pairs = [device.differentiable(theta_P, "adjoint") for theta_P in theta_KP]
    gradients = [gradient(v_S) for (_, gradient), v_S in zip(pairs, v_KS, strict=True)]
    return np.stack([p_S for p_S, _ in pairs]), np.stack(gradients)


def assert_equals_our_engine(program, num, seed=0, dtype=torch.float64, where="cpu"):
    theta_KP, v_KS = sets(program, num, seed)
    p_KS, gradient_KP = ours(program, theta_KP, v_KS)
    theirs_KP = torch.tensor(theta_KP, dtype=dtype, device=where, requires_grad=True)
    theirs_KS = batched.probabilities(program, theirs_KP)
    assert (theirs_KS.dtype, theirs_KS.shape) == (dtype, p_KS.shape)
    np.testing.assert_allclose(theirs_KS.detach().cpu(), p_KS, rtol=0, atol=BOUND[dtype])
    for factor in (1, 2):  # the graph is kept: the final states are left as they are
        v = torch.tensor(factor * v_KS, dtype=dtype, device=where)
        (got_KP,) = torch.autograd.grad(theirs_KS, theirs_KP, v, retain_graph=True)
        np.testing.assert_allclose(got_KP.cpu(), factor * gradient_KP, rtol=0, atol=factor * BOUND[dtype])


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("layout", ANSATZE)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_ansatz_equals_the_engine(n, layout, dtype):
    assert_equals_our_engine(ansatz.build(Circuit(ansatz=layout, layers=3), n), 4, dtype=dtype)


@cuda
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_every_kind_of_gate_equals_the_engine_on_a_gpu(dtype):
    gates = [Gate(kind, 1, control) for kind in KINDS for control in (None, 0, 2)]
    assert_equals_our_engine(ansatz.program(3, gates), 4, dtype=dtype, where="cuda")


@settings(deadline=None)
@given(circuits(), st.integers(1, 5), seeds)
def test_any_circuit_equals_the_engine(program, num, seed):
    assert_equals_our_engine(program, num, seed)


@pytest.mark.parametrize("control", [None, 0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gate_equals_the_engine(kind, control):
    around = [Gate("u3", wire) for wire in range(3)]
    assert_equals_our_engine(ansatz.program(3, [*around, Gate(kind, 1, control), *around]), 2)


def test_gradient_equals_finite_differences():
    program = ring(2, 1)
    theta_KP = torch.from_numpy(sets(program, 3)[0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: batched.probabilities(program, t) ** 2, theta_KP)


def test_memory_of_a_gradient_does_not_grow_with_depth():
    program = ring(4, 50)
    theta_KP = torch.from_numpy(sets(program, 2)[0]).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        batched.probabilities(program, theta_KP)
    assert sorted(kept) == [2 * 2**4, theta_KP.numel()]  # one state and the angles


@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize("name", WHERE)
def test_device_equals_the_engine(precision, bound, name):
    device = Batched(ring(), Qpu(backend="torch", precision=precision, device=name))
    theta_KP, v_KS = sets(device.program, 3)
    p_KS, gradient_KP = ours(device.program, theta_KP, v_KS)
    assert device.exact == ("adjoint",)
    got_KS = device.probabilities(theta_KP, [0, 0, 0])
    assert got_KS.dtype == np.float64
    np.testing.assert_allclose(got_KS, p_KS, rtol=0, atol=bound)
    p_S, gradient = device.differentiable(theta_KP[1], "adjoint")
    np.testing.assert_allclose(p_S, p_KS[1], rtol=0, atol=bound)
    for factor in (1, 2):
        np.testing.assert_allclose(gradient(factor * v_KS[1]), factor * gradient_KP[1], rtol=0, atol=factor * bound)
    assert p_S.dtype == gradient(v_KS[1]).dtype == np.float64


def test_single_precision_is_single():
    device = Batched(ring(), Qpu(backend="torch", precision="float32"))
    theta_KP, v_KS = sets(device.program, 3)
    error = abs(device.probabilities(theta_KP, [0, 0, 0]) - ours(device.program, theta_KP, v_KS)[0]).max()
    assert 1e-9 < error < 1e-6


@pytest.mark.parametrize("size", [1e6, 1e9])
def test_large_angles_are_not_rounded_to_single_precision(size):
    """Their sines are taken in float64, as the engine's are; in float32 an angle of 10^6 is off by up to 0.03."""
    gates = [Gate(kind, 1, control) for kind in KINDS for control in (None, 0)]
    program = ansatz.program(2, [Gate("u3", 0), *gates, Gate("u3", 0)])
    double, single = (Batched(program, Qpu(backend="torch", precision=name)) for name in ("float64", "float32"))
    theta_KP, v_KS = sets(program, 3)
    theta_KP = theta_KP + size
    p_KS, gradient_KP = ours(program, theta_KP, v_KS)
    for device, bound in ((double, 1e-12), (single, 1e-6)):
        got_KS, gradients = device.differentiable_batch(theta_KP)
        np.testing.assert_allclose(got_KS, p_KS, rtol=0, atol=bound)
        np.testing.assert_allclose(device.probabilities(theta_KP, [0] * 3), p_KS, rtol=0, atol=bound)
        np.testing.assert_allclose(gradients(v_KS), gradient_KP, rtol=0, atol=10 * bound)


def test_many_sets_are_done_in_parts(monkeypatch):
    device = Batched(ring(), Qpu(backend="torch"))
    theta_KP, _ = sets(device.program, 7)
    at_once_KS = device.probabilities(theta_KP, [0] * 7)
    monkeypatch.setattr(shift, "BATCH", 3 * 2**3)
    np.testing.assert_allclose(device.probabilities(theta_KP, [0] * 7), at_once_KS, rtol=0, atol=1e-15)


def test_shots_are_drawn_from_the_exact_distribution():
    device = Batched(ring(), Qpu(backend="torch", shots=100))
    theta_KP, v_KS = sets(device.program, 3)
    p_KS, _ = ours(device.program, theta_KP, v_KS)
    assert device.exact == ()
    drawn_KS = device.probabilities(theta_KP, [4, 5, 6])
    assert np.array_equal(drawn_KS, statevector.sampled(p_KS, 100, [4, 5, 6]))


def test_auto_takes_the_adjoint_sweep():
    hosted = qpu.build(Circuit(layers=1), Qpu(backend="torch"), num_qubits=2)
    assert hosted.method == "adjoint"
    theta_P = torch.from_numpy(sets(hosted.device.program, 1)[0][0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: qpu.probabilities(hosted, t) ** 2, theta_P)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "gpu"}, "qpu.device = 'gpu' is not a device of qpu.backend torch: use cpu, cuda or cuda:1"),
        ({"device": "cuda:99"}, r"qpu.device = cuda:99: torch sees \d+ GPUs here: use cpu"),
        ({"noise": "x.json"}, "qpu.noise = 'x.json' has no meaning for qpu.backend torch: remove it"),
        ({"options": {"a": 1}}, "qpu.options = {'a': 1} has no meaning for qpu.backend torch: remove it"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        Batched(ring(), Qpu(backend="torch", **fields))


def test_a_state_that_does_not_fit_is_refused():
    message = r"qpu.backend torch on cpu needs 1,572,864 GiB for 44 qubits, \d+ GiB are there: raise mapping.chunk"
    with pytest.raises(UserError, match=message):
        Batched(ring(44, 1), Qpu(backend="torch"))
