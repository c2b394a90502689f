import numpy as np
import pytest
import torch

from distqtrl.circuit import qpu
from distqtrl.config import Circuit, Qpu, UserError


def device(num_qubits=3, ansatz="u3_cu3_ring"):
    return qpu.build(Circuit(ansatz=ansatz, layers=2), Qpu(), num_qubits)


def angles(device, seed=0):
    theta_P = np.random.default_rng(seed).uniform(-np.pi, np.pi, device.num_angles)
    return torch.from_numpy(theta_P).requires_grad_()


def test_probabilities_are_a_distribution_in_double_precision():
    d = device()
    p_S = qpu.probabilities(d, angles(d))
    assert (p_S.shape, p_S.dtype) == ((8,), torch.float64)
    assert (p_S >= 0).all()
    assert p_S.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("ansatz", ["u3_cu3_ring", "ry_cnot"])
def test_gradient_equals_finite_differences(ansatz):
    d = device(2, ansatz)
    assert torch.autograd.gradcheck(lambda theta_P: qpu.probabilities(d, theta_P), angles(d))


def test_gradient_of_a_function_that_is_not_linear_in_p():
    d = device()
    theta_P, target_S = angles(d), torch.full((8,), 1 / 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: ((qpu.probabilities(d, t) - target_S) ** 2)[:5].sum(), theta_P)


def test_gradient_belongs_to_the_execution_it_came_from():
    d = device()
    theta_P = angles(d)
    first_S = qpu.probabilities(d, theta_P)
    (expected_P,) = torch.autograd.grad(first_S[3], theta_P, retain_graph=True)
    with torch.no_grad():
        theta_P += 1  # as an optimizer does
    later_S = qpu.probabilities(d, theta_P)
    assert not torch.allclose(first_S, later_S)
    assert torch.equal(torch.autograd.grad(first_S[3], theta_P)[0], expected_P)


def test_ledger_counts_executions_and_gradients():
    d = device()
    theta_P = angles(d)
    assert (d.ledger.circuits, d.ledger.gradients) == (0, 0)
    p_S = qpu.probabilities(d, theta_P)
    qpu.probabilities(d, theta_P)
    p_S[0].backward(retain_graph=True)
    p_S[1].backward()
    p_S.detach()
    assert (d.ledger.circuits, d.ledger.gradients) == (2, 2)
    assert device().ledger.circuits == 0


@pytest.mark.parametrize(
    ("circuit", "backend", "message"),
    [
        (Circuit(), Qpu(backend="statevectr"), r"unknown qpu.backend 'statevectr': did you mean 'statevector'\?"),
        (Circuit(ansatz="u3_ring"), Qpu(), r"unknown ansatz 'u3_ring': did you mean 'u3_cu3_ring'\?"),
        (Circuit(ansatz="zzz"), Qpu(), "unknown ansatz 'zzz': known: ry_cnot, u3_cu3_ring"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(circuit, backend, message):
    with pytest.raises(UserError, match=message):
        qpu.build(circuit, backend, 3)
