import numpy as np
import pytest

from distqtrl.circuit import ansatz, decomposition
from distqtrl.circuit.ansatz import KINDS, Gate
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu


def value_and_gradient(program, theta_P, v_S):
    p_S, gradient = StateVector(program, Qpu()).differentiable(theta_P, "adjoint")
    return p_S, gradient(v_S)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_gate(kind):
    mix = [Gate("u3", wire) for wire in range(3)] + [Gate("u3", 1, 0), Gate("u3", 2, 1)]
    check(ansatz.program(3, [*mix, Gate(kind, 0, 2), Gate(kind, 2, 0), *mix]))


@pytest.mark.parametrize("name", ansatz.ANSATZE)
def test_parts_are_the_circuit(name):
    check(ansatz.build(Circuit(ansatz=name), 4))


def check(whole):
    rng = np.random.default_rng(0)
    theta_P, v_S = rng.uniform(-np.pi, np.pi, whole.num_angles), rng.normal(size=2**whole.num_qubits)
    parts, spread_DP = decomposition.decomposed(whole)
    p_S, gradient_P = value_and_gradient(whole, theta_P, v_S)
    parts_S, gradient_D = value_and_gradient(parts, spread_DP @ theta_P, v_S)
    np.testing.assert_allclose(parts_S, p_S, rtol=0, atol=1e-13)
    np.testing.assert_allclose(gradient_D @ spread_DP, gradient_P, rtol=0, atol=1e-12)
    assert all(gate.control is None or not KINDS[gate.kind].shifts for gate in parts.gates)
