import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.circuit import ansatz, statevector
from distqtrl.circuit.ansatz import NUM_ANGLES, Gate


def pennylane_layer(name, n, angles):
    """One layer in PennyLane's own gates; angles is an iterator."""
    for wire in range(n):
        if name == "u3_cu3_ring":
            qml.U3(next(angles), next(angles), next(angles), wires=wire)
        else:
            qml.RY(next(angles), wires=wire)
    if name == "u3_cu3_ring" and n > 1:
        for wire in range(n):
            qml.ctrl(qml.U3, control=wire)(next(angles), next(angles), next(angles), wires=(wire + 1) % n)
    if name == "ry_cnot":
        for wire in range(n - 1):
            qml.CNOT(wires=[wire, wire + 1])


@pytest.mark.parametrize("name", ["u3_cu3_ring", "ry_cnot"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_probabilities_and_gradient_equal_pennylane(name, n, layers):
    @qml.qnode(qml.device("default.qubit"), interface="torch", diff_method="backprop")
    def circuit(theta_P):
        angles = iter(theta_P)
        for _ in range(layers):
            pennylane_layer(name, n, angles)
        assert next(angles, None) is None
        return qml.probs(wires=range(n))

    rng = np.random.default_rng(100 * n + layers)
    program = ansatz.build(name, n, layers)
    theta_P, v_S = rng.uniform(-np.pi, np.pi, program.num_angles), rng.normal(size=2**n)
    theirs_P = torch.tensor(theta_P, requires_grad=True)
    theirs_S = circuit(theirs_P)
    (theirs_S @ torch.from_numpy(v_S)).backward()

    psi_S = statevector.state(program, theta_P)
    np.testing.assert_allclose(statevector.probabilities(psi_S), theirs_S.detach(), rtol=0, atol=1e-10)
    gradient_P = statevector.gradient(program, theta_P, psi_S, v_S)
    np.testing.assert_allclose(gradient_P, theirs_P.grad, rtol=0, atol=1e-10)


X, Y, Z = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])


def rotation(pauli, angle):
    return np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * pauli


def unitary(n, gate, angles):
    """The full 2^n x 2^n matrix of a gate, as a sum of Kronecker products."""
    if gate.kind == "u3":
        t, p, l = angles  # noqa: E741
        u = np.exp(1j * (p + l) / 2) * rotation(Z, p) @ rotation(Y, t) @ rotation(Z, l)
    else:
        u = rotation(Y, *angles) if gate.kind == "ry" else X
    terms = [{gate.target: u}]
    if gate.control is not None:
        terms = [{gate.control: np.diag([1, 0])}, {gate.control: np.diag([0, 1]), gate.target: u}]
    total = 0
    for factors in terms:
        product = np.eye(1)
        for wire in range(n):
            product = np.kron(product, factors.get(wire, np.eye(2)))
        total = total + product
    return total


def state(n, gates, theta_P):
    psi_S, angles = np.eye(2**n)[0], list(theta_P)
    for gate in gates:
        taken, angles = angles[: NUM_ANGLES[gate.kind]], angles[NUM_ANGLES[gate.kind] :]
        psi_S = unitary(n, gate, taken) @ psi_S
    return psi_S


@st.composite
def circuits(draw):
    n = draw(st.integers(1, 4))
    wires = st.permutations(range(n))
    gates = []
    for kind, controlled in draw(st.lists(st.tuples(st.sampled_from(list(NUM_ANGLES)), st.booleans()), max_size=8)):
        target, *others = draw(wires)
        gates.append(Gate(kind, target, others[0] if controlled and others else None))
    return n, gates, draw(st.integers(0, 2**32 - 1))


@given(circuits())
def test_any_circuit_equals_the_product_of_its_matrices(circuit):
    n, gates, seed = circuit
    rng = np.random.default_rng(seed)
    program = ansatz.program(n, gates)
    theta_P, v_S = rng.uniform(-np.pi, np.pi, program.num_angles), rng.normal(size=2**n)

    psi_S = statevector.state(program, theta_P)
    np.testing.assert_allclose(psi_S, state(n, gates, theta_P), rtol=0, atol=1e-12)
    p_S = statevector.probabilities(psi_S)
    np.testing.assert_allclose(p_S, abs(psi_S) ** 2, rtol=0, atol=1e-15)

    steps_PP = 1e-5 * np.eye(program.num_angles)
    up_P, down_P = ([v_S @ abs(state(n, gates, theta_P + s * step)) ** 2 for step in steps_PP] for s in (1, -1))
    difference_P = (np.array(up_P) - np.array(down_P)) / 2e-5
    gradient_P = statevector.gradient(program, theta_P, psi_S, v_S)
    np.testing.assert_allclose(gradient_P, difference_P, rtol=0, atol=1e-8)
    assert np.array_equal(statevector.gradient(program, theta_P, psi_S, v_S), gradient_P)  # psi_S is left as it is


def test_wire_0_is_the_most_significant_bit():
    flip = ansatz.program(3, [Gate("x", 0), Gate("x", 1, control=0)])
    assert statevector.probabilities(statevector.state(flip, np.empty(0))).argmax() == 0b110


def rows_of_jacobian(n, layers, probes):
    """dp/d theta_P of the ring at random angles: all of it, or random combinations of its rows."""
    rng = np.random.default_rng(0)
    program = ansatz.build("u3_cu3_ring", n, layers)
    theta_P = rng.uniform(-np.pi, np.pi, program.num_angles)
    cotangents = np.eye(2**n) if probes is None else rng.normal(size=(probes, 2**n))
    psi_S = statevector.state(program, theta_P)
    return np.array([statevector.gradient(program, theta_P, psi_S, v_S) for v_S in cotangents])


# QTRL's ring: 2n-1 angles never matter, and the rest has rank (5L-3)n from L = 3 on
@pytest.mark.parametrize(
    ("n", "layers", "rank", "probes"),
    [(7, 3, 84, None), (7, 4, 119, None), (10, 1, 21, None), (10, 3, 120, None), (10, 5, 220, 310), (13, 3, 156, 240)],
)
def test_redundant_angles_of_the_ring(n, layers, rank, probes):
    jacobian = rows_of_jacobian(n, layers, probes)
    assert (abs(jacobian).max(axis=0) < 1e-12).sum() == 2 * n - 1
    assert np.linalg.matrix_rank(jacobian) == rank


@pytest.mark.parametrize(("n", "layers"), [(2, 1), (4, 3)])
def test_angles_of_the_ring_that_never_matter(n, layers):
    assert (abs(rows_of_jacobian(n, layers, None)).max(axis=0) < 1e-12).sum() == 2 * n - 1
