import os

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import circuits, seeds

from distqtrl.circuit import ansatz, compiled, plan, statevector
from distqtrl.circuit.ansatz import ANSATZE, KINDS, Gate
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

PENNYLANE = {"rx": qml.RX, "ry": qml.RY, "rz": qml.RZ, "phase": qml.PhaseShift, "u3": qml.U3}
PENNYLANE |= {"h": qml.Hadamard, "x": qml.PauliX, "y": qml.PauliY, "z": qml.PauliZ}


@pytest.mark.parametrize("name", ANSATZE)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layers", [1, 3])
def test_probabilities_and_gradient_equal_pennylane(name, n, layers):
    program = ansatz.build(Circuit(ansatz=name, layers=layers), n)

    @qml.qnode(qml.device("default.qubit"), interface="torch", diff_method="backprop")
    def circuit(theta_P):
        angles = iter(theta_P)
        for gate in program.gates:
            taken = [next(angles) for _ in KINDS[gate.kind].shifts]
            operation = PENNYLANE[gate.kind]
            if gate.control is None:
                operation(*taken, wires=gate.target)
            else:
                qml.ctrl(operation, control=gate.control)(*taken, wires=gate.target)
        assert next(angles, None) is None
        return qml.probs(wires=range(n))

    rng = np.random.default_rng(100 * n + layers)
    theta_P, v_S = rng.uniform(-np.pi, np.pi, program.num_angles), rng.normal(size=2**n)
    theirs_P = torch.tensor(theta_P, requires_grad=True)
    theirs_S = circuit(theirs_P)
    (theirs_S @ torch.from_numpy(v_S)).backward()

    p_S, gradient = StateVector(program, Qpu()).differentiable(theta_P, "adjoint")
    np.testing.assert_allclose(p_S, theirs_S.detach(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(gradient(v_S), theirs_P.grad, rtol=0, atol=1e-10)


I2, X, Y, Z = np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])


def matrix(kind, angles):
    """A gate's 2 x 2 matrix from its definition by Pauli rotations."""

    def rotation(pauli, angle):
        return np.cos(angle / 2) * I2 - 1j * np.sin(angle / 2) * pauli

    if kind == "u3":
        t, p, l = angles  # noqa: E741
        return np.exp(1j * (p + l) / 2) * rotation(Z, p) @ rotation(Y, t) @ rotation(Z, l)
    if kind == "phase":
        return np.diag([1, np.exp(1j * angles[0])])
    if kind in ("rx", "ry", "rz"):
        return rotation({"rx": X, "ry": Y, "rz": Z}[kind], angles[0])
    return {"x": X, "y": Y, "z": Z, "h": (X + Z) / np.sqrt(2)}[kind]


def final_state(n, gates, theta_P):
    """The state, every gate applied to the axes of a tensor with n axes."""
    psi, angles = np.zeros([2] * n, dtype=complex), list(theta_P)
    psi[(0,) * n] = 1
    for gate in gates:
        num = len(KINDS[gate.kind].shifts)
        taken, angles = angles[:num], angles[num:]
        u = matrix(gate.kind, taken)
        if gate.control is not None:
            u = np.block([[I2, 0 * I2], [0 * I2, u]]).reshape(2, 2, 2, 2)
            axes = (gate.control, gate.target)
            psi = np.moveaxis(np.tensordot(u, psi, axes=((2, 3), axes)), (0, 1), axes)
        else:
            psi = np.moveaxis(np.tensordot(u, psi, axes=(1, gate.target)), 0, gate.target)
    return psi.ravel()


def check_against_matrices(program, seed, precision="float64"):
    rng = np.random.default_rng(seed)
    n, gates = program.num_qubits, program.gates
    theta_P, v_S = rng.uniform(-np.pi, np.pi, program.num_angles), rng.normal(size=2**n)
    exact = precision == "float64"

    p_S, gradient = StateVector(program, Qpu(precision=precision)).differentiable(theta_P, "adjoint")
    np.testing.assert_allclose(p_S, abs(final_state(n, gates, theta_P)) ** 2, rtol=0, atol=1e-12 if exact else 1e-5)

    steps_PP = 1e-5 * np.eye(program.num_angles)
    up_P, down_P = ([v_S @ abs(final_state(n, gates, theta_P + s * step)) ** 2 for step in steps_PP] for s in (1, -1))
    difference_P = (np.array(up_P) - np.array(down_P)) / 2e-5
    gradient_P = gradient(v_S)
    np.testing.assert_allclose(gradient_P, difference_P, rtol=0, atol=1e-8 if exact else 1e-3)
    assert np.array_equal(gradient(v_S), gradient_P)  # the state is left as it is


@settings(deadline=None)  # the first call compiles
@given(circuits(most_qubits=5, most_gates=10), seeds)
def test_any_circuit_equals_the_product_of_its_matrices(program, seed):
    check_against_matrices(program, seed)


@settings(deadline=None)  # the first call compiles
@given(circuits(most_qubits=5, most_gates=10), seeds)
def test_single_precision_is_near(program, seed):
    check_against_matrices(program, seed, precision="float32")


@settings(deadline=None)  # the first call compiles
@given(circuits(most_qubits=8, most_gates=25), seeds)
def test_blocks_change_nothing(program, seed):
    with pytest.MonkeyPatch.context() as small:  # hypothesis does not mix with the fixture
        small.setattr(plan, "WHOLE", 4)
        small.setattr(plan, "BLOCK", 7)
        small.setattr(plan, "RUN", 3)
        check_against_matrices(program, seed)


wires = st.permutations(range(5)).map(lambda order: order[:2])  # of seven, the last three are lanes of vectors
rotations = st.tuples(st.just("ry"), wires, st.booleans())
others = st.tuples(st.sampled_from(["h", "x"]), wires, st.booleans())


@settings(deadline=None)  # the first call compiles
@given(st.lists(rotations, min_size=8, max_size=12), st.lists(rotations | others, max_size=3), seeds)
def test_two_real_steps_at_once_change_nothing(first, then, seed):
    paired = [("ry", (0, 1), True), ("ry", (2, 0), True)]
    drawn = [*first, *then, *paired]
    gates = [Gate(kind, target, control if controlled else None) for kind, (target, control), controlled in drawn]
    with pytest.MonkeyPatch.context() as all_of_them:
        all_of_them.setattr(plan, "SINGLE", 0)
        check_against_matrices(ansatz.program(7, gates), seed)


@pytest.mark.parametrize(("name", "n", "paired"), [("ry_cnot", 10, 6), ("ry_cnot_ring", 8, 0), ("u3_cu3_ring", 10, 0)])
def test_which_steps_run_two_at_once(name, n, paired):
    """Of a chain on ten wires those above the vectors' lanes; where circuits are interleaved, and complex, none."""
    steps = plan.plan(ansatz.build(Circuit(ansatz=name, layers=2), n)).step_J
    assert steps["paired"].sum() == paired


@pytest.mark.parametrize("name", ["u3_cu3_ring", "ry_cnot"])
def test_blocks_of_the_real_size(name):
    """More qubits than one block holds, against a plan that is one block."""
    n = 17
    program = ansatz.build(Circuit(ansatz=name, layers=2), n)
    rng = np.random.default_rng(0)
    theta_P, v_S = rng.uniform(-np.pi, np.pi, program.num_angles), rng.normal(size=2**n)
    blocked = StateVector(program, Qpu())
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(plan, "WHOLE", 20)
        one = StateVector(program, Qpu())
    p_S, gradient = blocked.differentiable(theta_P, "adjoint")
    expected_S, expected = one.differentiable(theta_P, "adjoint")
    assert len(plan.plan(program).pass_I) > 1
    np.testing.assert_allclose(p_S, expected_S, rtol=0, atol=1e-15)
    np.testing.assert_allclose(gradient(v_S), expected(v_S), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gates", [[], [Gate("u3", 0)], [Gate("ry", 3), Gate("x", 16, 0)]])
def test_a_large_state_and_few_gates(gates):
    """One pass or none, whose block is not the state."""
    check_against_matrices(ansatz.program(17, gates), 0)


def test_wire_0_is_the_most_significant_bit():
    flip = StateVector(ansatz.program(3, [Gate("x", 0), Gate("x", 1, control=0)]), Qpu())
    assert flip.differentiable(np.empty(0), "adjoint")[0].argmax() == 0b110


def test_several_parameter_sets():
    device = StateVector(ansatz.build(Circuit(), 3), Qpu())
    theta_KP = np.random.default_rng(0).uniform(-np.pi, np.pi, (2, device.program.num_angles))
    p_KS = device.probabilities(theta_KP, [0, 0])
    assert p_KS.shape == (2, 8)
    assert np.array_equal(p_KS[1], device.differentiable(theta_KP[1], "adjoint")[0])


def test_shots_are_unbiased_and_belong_to_their_seed():
    program, shots, repeats = ansatz.build(Circuit(), 3), 100, 400
    theta_P = np.random.default_rng(0).uniform(-np.pi, np.pi, program.num_angles)
    device = StateVector(program, Qpu(shots=shots))
    p_KS = device.probabilities(np.tile(theta_P, (repeats, 1)), list(range(repeats)))
    assert np.array_equal(device.probabilities(theta_P[None], [7]), p_KS[7:8])
    assert not np.array_equal(p_KS[6], p_KS[7])
    counts = p_KS * shots
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    np.testing.assert_allclose(p_KS.sum(axis=1), 1, atol=1e-12)
    exact_S = StateVector(program, Qpu()).differentiable(theta_P, "adjoint")[0]
    error_S = np.sqrt(exact_S * (1 - exact_S) / (shots * repeats))
    assert (abs(p_KS.mean(axis=0) - exact_S) <= 5 * error_S).all()


@pytest.mark.parametrize("field", [{"device": "lightning.qubit"}, {"noise": "FakeManilaV2"}, {"options": {"a": 1}}])
def test_fields_without_meaning_are_refused(field):
    with pytest.raises(UserError, match=f"qpu.{next(iter(field))} = .* has no meaning for qpu.backend statevector"):
        StateVector(ansatz.build(Circuit(), 2), Qpu(**field))


def rows_of_jacobian(n, layers, probes):
    """dp/d theta_P of the ring at random angles: all of it, or random combinations of its rows."""
    rng = np.random.default_rng(0)
    program = ansatz.build(Circuit(layers=layers), n)
    theta_P = rng.uniform(-np.pi, np.pi, program.num_angles)
    cotangents = np.eye(2**n) if probes is None else rng.normal(size=(probes, 2**n))
    gradient = StateVector(program, Qpu()).differentiable(theta_P, "adjoint")[1]
    return np.array([gradient(v_S) for v_S in cotangents])


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


def test_gates_on_one_target_are_one_step():
    """Of a ring of 5 wires' U3 and CU3 only wire 0's U3 is alone: its next gate has it as control."""
    ring = plan.plan(ansatz.program(5, ansatz.u3_cu3_ring(5, 1)))
    assert (ring.step_J["end"] - ring.step_J["first"]).tolist() == [1, 2, 2, 2, 2, 1]
    assert ring.step_J["idle"].tolist() == [False] * 5 + [True]


def test_a_control_in_between_keeps_gates_apart():
    """The second CNOT's control is turned after the first one, and wire 1 is a control before its second RY."""
    gates = [("x", 1, 0), ("ry", 0), ("x", 1, 0), ("x", 2, 1), ("ry", 1)]
    p = plan.plan(ansatz.program(3, [Gate(*gate) for gate in gates]))
    assert (p.step_J["end"] - p.step_J["first"]).tolist() == [1] * 5


def refused(_):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("affinity", [None, refused])  # macOS, and a container's filter of system calls
def test_cores_that_nobody_tells_are_all(monkeypatch, affinity):
    monkeypatch.setattr(os, "sched_getaffinity", affinity) if affinity else monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert statevector.threads() == 1


def test_without_compilation_there_is_no_engine(monkeypatch):
    monkeypatch.setattr(compiled.CONFIG, "DISABLE_JIT", 1)
    statevector._compile.cache_clear()
    with pytest.raises(UserError, match="NUMBA_DISABLE_JIT is set, and circuits run compiled: unset it"):
        StateVector(ansatz.program(1, [Gate("ry", 0)]), Qpu()).differentiable(np.zeros(1), "adjoint")
