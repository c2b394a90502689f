import dataclasses

import numpy as np
import pytest
import torch

from distqtrl.circuit import ansatz, qpu, shift
from distqtrl.circuit.ansatz import KINDS, Gate
from distqtrl.circuit.device import Device
from distqtrl.circuit.shift import Ranks
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import Diverged, UserError


def device(num_qubits=3, ansatz="u3_cu3_ring", ranks=None, **settings):
    return qpu.build(Circuit(ansatz=ansatz, layers=2), Qpu(**settings), num_qubits, ranks=ranks)


def angles(device, seed=0):
    theta_P = np.random.default_rng(seed).uniform(-np.pi, np.pi, device.num_angles)
    return torch.from_numpy(theta_P).requires_grad_()


def gradient(device, v_S, seed=0):
    theta_P = angles(device, seed)
    qpu.probabilities(device, theta_P).backward(torch.from_numpy(v_S))
    return theta_P.grad.numpy()


def test_probabilities_are_a_distribution_in_double_precision():
    d = device()
    p_S = qpu.probabilities(d, angles(d))
    assert (p_S.shape, p_S.dtype) == ((8,), torch.float64)
    assert (p_S >= 0).all()
    assert p_S.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("ansatz", ["u3_cu3_ring", "ry_cnot"])
@pytest.mark.parametrize("method", ["adjoint", "parameter-shift"])
def test_gradient_equals_finite_differences(ansatz, method):
    d = device(2, ansatz, gradient=method)
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


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_shift_rule_of_every_gate(kind, controlled):
    """Every angle with no more circuits than its frequencies need, and the result is the adjoint's."""
    target = Gate(kind, 1, 0) if controlled else Gate(kind, 1)
    program = ansatz.program(2, [Gate("u3", 0), Gate("u3", 1), target, Gate("u3", 0), Gate("u3", 1)])
    d = qpu.QPU(StateVector(program, Qpu()), Qpu(gradient="parameter-shift"), 0, Ranks())
    exact = qpu.QPU(StateVector(program, Qpu()), Qpu(), 0, Ranks())
    v_S = np.random.default_rng(1).normal(size=4)
    np.testing.assert_allclose(gradient(d, v_S), gradient(exact, v_S), rtol=0, atol=1e-12)
    assert d.circuits_per_gradient == 4 * 6 + sum(KINDS[kind].shifts if controlled else [2] * len(KINDS[kind].shifts))


def test_two_terms_are_not_enough_for_a_controlled_rotation(monkeypatch):
    monkeypatch.setitem(shift.TERMS, 4, shift.TERMS[2])
    v_S = np.random.default_rng(1).normal(size=8)
    assert abs(gradient(device(gradient="parameter-shift"), v_S) - gradient(device(), v_S)).max() > 1e-3


def test_batches_change_nothing(monkeypatch):
    v_S = np.random.default_rng(1).normal(size=8)
    expected_P = gradient(device(shots=100), v_S)
    monkeypatch.setattr(shift, "BATCH", 8 * 7)
    np.testing.assert_allclose(gradient(device(shots=100), v_S), expected_P, rtol=0, atol=1e-14)


@pytest.mark.parametrize("settings", [{"shots": 64}, {"shots": 64, "gradient": "spsa", "spsa_samples": 20}])
def test_sampled_gradients_are_right_on_average(settings):
    d, v_S = device(2, spsa_step=0.01, **{"gradient": "auto", **settings}), np.array([0.3, -1.0, 0.5, 2.0])
    rows = []
    for step in range(400):
        d.seek(step)
        rows.append(gradient(d, v_S))
    error_P = np.std(rows, axis=0) / np.sqrt(len(rows))
    assert (abs(np.mean(rows, axis=0) - gradient(device(2), v_S)) <= 5 * error_P + 1e-12).all()


def test_draws_belong_to_seed_rank_and_step():
    theta_P = angles(device()).detach().numpy()

    def drawn(step=0, rank=0, seed=0):
        d = qpu.build(Circuit(layers=2), Qpu(shots=1000), 3, seed, Ranks(rank, range(2)))
        d.seek(step)
        return d.probabilities(theta_P)[0]

    assert np.array_equal(drawn(step=5), drawn(step=5))
    assert not any(np.array_equal(drawn(), other) for other in (drawn(step=1), drawn(rank=1), drawn(seed=1)))


def test_a_rank_of_a_block_is_that_of_the_job():
    """Agents that are spread over ranks train in blocks, whose ranks count from 0."""
    settings = Qpu(shots=1000, per_rank=tuple({"shots": shots} for shots in (10, 20, 30, 40)))
    blocks = [qpu.build(Circuit(layers=2), settings, 3, 0, Ranks(1, block)) for block in ((0, 1), (2, 3))]
    assert [d.settings.shots for d in blocks] == [20, 40]
    plain = [qpu.build(Circuit(layers=2), Qpu(shots=1000), 3, 0, Ranks(1, block)) for block in ((0, 1), (2, 3))]
    first_S, second_S = (d.probabilities(angles(device()).detach().numpy())[0] for d in plain)
    assert not np.array_equal(first_S, second_S)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shared_circuits_add_up_to_the_gradient_of_the_sum(size):
    """Each rank's own v.p, every circuit run by one rank only."""
    v_RS = np.random.default_rng(2).normal(size=(size, 8))
    parts, circuits = [], 0
    for rank in range(size):
        ranks = Ranks(rank, range(size), lambda v_S: v_RS.sum(axis=0))
        d = device(shift="distributed", ranks=ranks)
        parts.append(gradient(d, v_RS[rank]))
        circuits += d.ledger.circuits - 1
    np.testing.assert_allclose(sum(parts), gradient(device(), v_RS.sum(axis=0)), rtol=0, atol=1e-12)
    assert circuits == device(gradient="parameter-shift").circuits_per_gradient


@pytest.mark.parametrize(
    ("settings", "circuits", "shots", "gradients"),
    [
        ({}, 2, 0, 1),
        ({"shots": 10}, 2 + 84, 10 * (2 + 84), 0),
        ({"gradient": "spsa", "spsa_samples": 3, "shots": 5}, 2 + 6, 5 * (2 + 6), 0),
    ],
)
def test_ledger(settings, circuits, shots, gradients):
    d = device(**settings)
    theta_P = angles(d)
    assert dataclasses.astuple(d.ledger) == (0, 0, 0)
    qpu.probabilities(d, theta_P)
    qpu.probabilities(d, theta_P)[0].backward()
    assert dataclasses.astuple(d.ledger) == (circuits, gradients, shots)
    assert d.circuits_per_gradient == circuits - 2


def test_ranks_may_hold_different_qpus():
    settings = {"per_rank": [{"shots": 100}, {"gradient": "spsa"}, {}], "gradient": "auto"}
    held = [device(ranks=Ranks(rank, range(4)), **settings) for rank in range(4)]
    assert [d.settings.shots for d in held] == [100, None, None, 100]
    assert [d.method for d in held] == ["parameter-shift", "spsa", "adjoint", "parameter-shift"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backend": "torch"},
        {"backend": "torch", "shots": 10},
        {"backend": "pennylane"},
        {"backend": "pennylane", "shots": 10},
        {"backend": "aer", "shots": 10},
        {"gradient": "spsa"},
    ],
    ids=str,
)
def test_angles_that_are_no_numbers_are_refused_before_any_device(settings, value):
    d = device(ranks=Ranks(2, range(4)), **settings)
    theta_KP = np.zeros((2, d.num_angles))
    theta_KP[1, 5] = value
    message = rf"^angle 5 of the circuit \(theta_P\[5\]\) is {value} on rank 2, not a finite number: lower algorithm"
    for ask in (lambda: d.probabilities(theta_KP[1]), lambda: d.probabilities_batch(theta_KP)):
        with pytest.raises(Diverged, match=message):
            ask()


@pytest.mark.parametrize("size", [1e6, 1e9])
@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"gradient": "parameter-shift"}, 1e-12),
        ({"backend": "torch", "precision": "float32"}, 2e-6),
        ({"backend": "pennylane", "device": "lightning.qubit"}, 1e-12),
        ({"backend": "aer"}, 1e-9),
    ],
    ids=str,
)
def test_large_angles_lose_whole_periods_and_nothing_else(settings, bound, size):
    v_S, exact, d = np.random.default_rng(1).normal(size=8), device(), device(**settings)
    theta_P = np.random.default_rng(0).uniform(-size, size, d.num_angles)
    p_S, gradient = StateVector(exact.device.program, Qpu()).differentiable(theta_P, "adjoint")  # as they are
    got_S, got = d.probabilities(theta_P)
    np.testing.assert_allclose(got_S, p_S, rtol=0, atol=bound)
    np.testing.assert_allclose(got(v_S), gradient(v_S), rtol=0, atol=10 * bound)


class Broken(Device):
    """A device whose answer is given."""

    def __init__(self, answer):
        self.program, self.answer = ansatz.build(Circuit(), 1), answer

    def probabilities(self, theta_KP, seeds_K):
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.tile(self.answer, (len(theta_KP), 1))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, 0.6], "returned an invalid distribution: sum 1.1, smallest 0.5"),
        ([1.5, -0.5], "returned an invalid distribution: sum 1, smallest -0.5"),
        ([np.nan, 1.0], "returned an invalid distribution: sum nan"),
        (RuntimeError("cryostat warm"), "qpu.backend aer, device x failed: RuntimeError: cryostat warm"),
    ],
)
def test_a_device_that_fails(answer, message):
    d = qpu.QPU(Broken(answer), Qpu(backend="aer", device="x"), 0, Ranks())
    with pytest.raises(qpu.DeviceFailure, match=message):
        d.probabilities(np.zeros(d.num_angles))


def test_small_rounding_is_left_as_it_is():
    answer = [0.5 + 1e-8, 0.5]
    d = qpu.QPU(Broken(answer), Qpu(backend="aer"), 0, Ranks())
    assert d.probabilities(np.zeros(d.num_angles))[0].tolist() == answer


@pytest.mark.parametrize(
    ("circuit", "settings", "message"),
    [
        ({}, {"backend": "statevectr"}, r"unknown qpu.backend 'statevectr': did you mean 'statevector'\?"),
        ({"ansatz": "u3_ring"}, {}, r"unknown ansatz 'u3_ring': did you mean 'u3_cu3_ring'\?"),
        ({"ansatz": "zzz"}, {}, "unknown ansatz 'zzz': known: gates, product, ry_cnot, ry_cnot_ring, ry_rz_cz, u3_cu3"),
        (
            {},
            {"gradient": "adjoint", "shots": 10},
            "adjoint does not exist for qpu.backend statevector with shots or noise: use parameter-shift, spsa",
        ),
        (
            {},
            {"gradient": "backprop"},
            "backprop does not exist for qpu.backend statevector: use adjoint, param",
        ),
        (
            {},
            {"gradient": "spsa", "shift": "distributed"},
            "distributed needs qpu.gradient = parameter-shift, not",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(circuit, settings, message):
    with pytest.raises(UserError, match=message):
        qpu.build(Circuit(**circuit), Qpu(**settings), 3)


@pytest.mark.parametrize("shots", [None, 100])
def test_shifted_circuits_of_several_sets_are_those_of_one_after_the_other(monkeypatch, shots):
    batch, single = (device(2, gradient="parameter-shift", shots=shots) for _ in range(2))
    theta_KP = np.random.default_rng(0).normal(size=(3, batch.num_angles))
    v_KS = np.random.default_rng(1).normal(size=(3, 4))
    monkeypatch.setattr(shift, "BATCH", 50 * batch.num_angles)  # a part has circuits of two sets
    p_KS, gradient = batch.probabilities_batch(theta_KP)
    asked = [single.probabilities(theta_P) for theta_P in theta_KP]
    np.testing.assert_array_equal(p_KS, np.stack([p_S for p_S, _ in asked]))
    expected_KP = np.stack([back(v_S) for (_, back), v_S in zip(asked, v_KS, strict=True)])
    np.testing.assert_allclose(gradient(v_KS), expected_KP, rtol=0, atol=1e-13)
    assert batch.ledger == single.ledger
