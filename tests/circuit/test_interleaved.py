"""Circuits of a batch are what they are alone, to the bit, however many there are and whatever runs them."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import circuits, seeds

from distqtrl.circuit import ansatz, compiled, interleaved, memory, qpu, shift, statevector, sweep
from distqtrl.circuit.ansatz import KINDS, Gate
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

REAL = [kind for kind, facts in KINDS.items() if facts.real]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Code for batches is compiled for the first of them."""
    monkeypatch.setattr(statevector, "PATIENCE", 0)


def drawn(program, num, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-7, 7, (num, program.num_angles)), rng.normal(size=(num, 2**program.num_qubits))


def batch(device, theta_KP, v_KS):
    p_KS, gradient = device.differentiable_batch(theta_KP)
    found = p_KS, gradient(v_KS)
    assert np.array_equal(gradient(v_KS), found[1], equal_nan=True)  # the states are left as they are
    return found


def alone(device, theta_KP, v_KS):
    pairs = [device.differentiable(theta_P, "adjoint") for theta_P in theta_KP]
    gradients = [gradient(v_S) for (_, gradient), v_S in zip(pairs, v_KS, strict=True)]
    return np.stack([p_S for p_S, _ in pairs]), np.stack(gradients)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype == np.float64
        assert np.array_equal(ours, theirs)


def only_real(program):
    """Gates of real matrices in the place of the others."""
    gates = [gate if gate.kind in REAL else gate._replace(kind="ry") for gate in program.gates]
    return ansatz.program(program.num_qubits, gates)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_batch_is_bitwise_what_its_circuits_are_alone(precision, real):
    @settings(deadline=None, max_examples=60)  # the first call compiles
    @given(circuits(most_qubits=6, most_gates=12), st.integers(1, 20), seeds)
    def any_program(program, num, seed):
        device = StateVector(only_real(program) if real else program, Qpu(precision=precision))
        theta_KP, v_KS = drawn(device.program, num, seed)
        p_KS, gradient_KP = batch(device, theta_KP, v_KS)
        assert_same((p_KS, gradient_KP), alone(device, theta_KP, v_KS))
        assert np.array_equal(device.probabilities(theta_KP, [0] * num), p_KS)
        np.testing.assert_allclose(p_KS.sum(axis=1), 1, rtol=0, atol=1e-12 if precision == "float64" else 1e-5)

    any_program()


@pytest.mark.parametrize("control", [None, 0, 2, 4])
@pytest.mark.parametrize("target", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gate(kind, target, control):
    around = [Gate("u3", wire) for wire in range(5)]
    device = StateVector(ansatz.program(5, [*around, Gate(kind, target, control), *around]), Qpu())
    theta_KP, v_KS = drawn(device.program, 9)
    assert_same(batch(device, theta_KP, v_KS), alone(device, theta_KP, v_KS))


@pytest.mark.parametrize(("name", "n"), [("ry_cnot_ring", 6), ("u3_cu3_ring", 4), ("u3_cu3_ring", 9)])
def test_neighbours_do_not_matter(name, n):
    device = StateVector(ansatz.build(Circuit(ansatz=name, layers=2), n), Qpu())
    theta_KP, v_KS = drawn(device.program, 11)
    p_KS, gradient_KP = batch(device, theta_KP, v_KS)
    order = np.random.default_rng(1).permutation(11)
    assert_same(batch(device, theta_KP[order], v_KS[order]), (p_KS[order], gradient_KP[order]))
    theta_KP[:5], v_KS[6:] = np.nan, np.nan
    found_KS, found_KP = batch(device, theta_KP, v_KS)
    assert np.array_equal(found_KS[5:], p_KS[5:])
    assert np.array_equal(found_KP[5], gradient_KP[5])


@pytest.mark.parametrize("num", [1, 2, 7, 8, 9, 100])
def test_neither_do_threads_nor_parts(num, monkeypatch):
    device = StateVector(ansatz.build(Circuit(layers=2), 4), Qpu())
    theta_KP, v_KS = drawn(device.program, num)
    expected = alone(device, theta_KP, v_KS)
    monkeypatch.setattr(statevector, "WORK", 0)
    for threads, part in ((3, 1 << 16), (3, 256), (1, 256)):
        monkeypatch.setattr(statevector, "threads", lambda threads=threads: threads)
        monkeypatch.setattr(statevector, "PART", part)
        assert_same(batch(device, theta_KP, v_KS), expected)
    monkeypatch.setattr(shift, "BATCH", 0)  # states are made again for the gradient
    assert_same(batch(device, theta_KP, v_KS), expected)


def test_threads_are_those_of_torch_and_of_the_cores(monkeypatch):
    monkeypatch.setattr(statevector, "torch", SimpleNamespace(get_num_threads=lambda: 4))
    for cores, expected in ((1, 1), (2, 2), (8, 4)):
        monkeypatch.setattr(statevector.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert statevector.threads() == expected


@settings(deadline=None, max_examples=10)
@given(circuits(most_qubits=4, most_gates=8), seeds)
def test_gradients_equal_the_parameter_shift_rule(program, seed):
    theta_KP, v_KS = drawn(program, 5, seed)
    device = StateVector(program, Qpu())
    exact, shifted = (
        qpu.QPU(device, Qpu(gradient=method), 0, shift.Ranks()) for method in ("adjoint", "parameter-shift")
    )
    (p_KS, gradient), (expected_KS, expected) = (q.probabilities_batch(theta_KP) for q in (exact, shifted))
    np.testing.assert_allclose(p_KS, expected_KS, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient(v_KS), expected(v_KS), rtol=0, atol=1e-10)
    assert (exact.ledger.circuits, exact.ledger.gradients) == (5, 5)
    assert shifted.ledger.circuits == 5 + 5 * shifted.circuits_per_gradient


def test_what_runs_a_circuit(monkeypatch):
    """Eight at a time while they are small and there are some; a remainder of few goes one by one."""
    small, large = (StateVector(ansatz.build(Circuit(layers=1), n), Qpu()) for n in (6, 10))
    modules = lambda device, num: [(part.module, part.end - part.first) for part in device._parts(num)]  # noqa: E731
    assert modules(small, 2) == [(sweep, 2)]
    assert modules(small, 6) == [(interleaved, 6)]
    assert modules(small, 17) == [(interleaved, 16), (sweep, 1)]
    assert modules(small, 23) == [(interleaved, 23)]
    assert modules(large, 16) == [(sweep, 16)]


def test_code_for_batches_waits_for_some(monkeypatch):
    monkeypatch.setattr(statevector, "PATIENCE", 20)
    monkeypatch.setattr(compiled, "ready", lambda name: "interleaved" not in name)
    device = StateVector(ansatz.build(Circuit(layers=1), 3), Qpu())
    assert [device._parts(8)[0].module for _ in range(3)] == [sweep, sweep, interleaved]


@pytest.mark.parametrize("num", [1, 4, 100])
def test_no_part_of_a_batch_is_empty(num):
    device = StateVector(ansatz.build(Circuit(layers=1), 18), Qpu())
    parts = device._parts(num)
    assert [part.first for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert all(part.first < part.end for part in parts)
    assert parts[-1].end == num


def test_a_batch_that_does_not_fit_is_refused(monkeypatch):
    hosted = qpu.build(Circuit(layers=1), Qpu(), 10)
    monkeypatch.setattr(statevector, "machine_memory", lambda: 2.0**30)
    message = r"^a batch of 65,536 circuits needs 2 GiB for 10 qubits, 1 GiB are there: raise mapping.chunk$"
    with pytest.raises(UserError, match=message):
        hosted.probabilities_batch(np.zeros((65_536, hosted.num_angles)))


def test_a_state_that_does_not_fit_is_refused():
    message = r"qpu.backend statevector needs 1,048,576 GiB for 44 qubits, \d+ GiB are there: raise mapping.chunk"
    with pytest.raises(UserError, match=message):
        StateVector(ansatz.build(Circuit(layers=1), 44), Qpu())
    assert memory.machine_memory() < 2**50


def test_limits_of_jobs_and_shells_count(monkeypatch):
    measured = memory.machine_memory.__wrapped__
    monkeypatch.setattr(memory.cgroup, "memory", lambda: 2**20)
    assert measured() == 2**20
    monkeypatch.setattr(memory.resource, "getrlimit", lambda what: (2**19, 2**30))
    assert measured() == 2**19
