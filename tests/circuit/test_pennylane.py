import sys

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from strategies import circuits, seeds

from distqtrl.circuit import ansatz, pennylane, qpu, statevector
from distqtrl.circuit.ansatz import ANSATZE, KINDS, Gate
from distqtrl.circuit.pennylane import PennyLane
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

lightning = pytest.mark.skipif(
    "lightning.qubit" not in qml.plugin_devices, reason="there is no lightning.qubit: pip install pennylane-lightning"
)
LIGHTNING = pytest.param("lightning.qubit", ("adjoint",), marks=lightning)
DEVICES = [("default.qubit", ("backprop", "adjoint")), LIGHTNING, ("default.mixed", ("backprop",))]
SEEDED = ["default.qubit", pytest.param("lightning.qubit", marks=lightning), "default.mixed"]


def build(program, device=None, **fields):
    return PennyLane(program, Qpu(backend="pennylane", device=device, **fields))


def ring(n=3, layers=2):
    return ansatz.build(Circuit(layers=layers), n)


def angles(program, num=1, seed=0):
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, (num, program.num_angles))


def assert_equals_our_engine(device, program, seed=0):
    theta_KP = angles(program, 3, seed)
    cotangents = np.random.default_rng(seed).normal(size=(2, 2**program.num_qubits))
    ours = statevector.StateVector(program, Qpu())
    p_KS = device.probabilities(theta_KP, [0, 0, 0])
    assert (p_KS.dtype, p_KS.shape) == (np.float64, (3, 2**program.num_qubits))
    np.testing.assert_allclose(p_KS, ours.probabilities(theta_KP, [0, 0, 0]), rtol=0, atol=1e-10)
    for method in device.exact:
        (p_S, gradient), (our_p_S, our_gradient) = (d.differentiable(theta_KP[0], method) for d in (device, ours))
        np.testing.assert_allclose(p_S, our_p_S, rtol=0, atol=1e-10)
        for v_S in cotangents:
            np.testing.assert_allclose(gradient(v_S), our_gradient(v_S), rtol=0, atol=1e-8)
        assert p_S.dtype == gradient(v_S).dtype == np.float64


@pytest.mark.parametrize(("name", "exact"), DEVICES)
@pytest.mark.parametrize("layout", ANSATZE)
@pytest.mark.parametrize("n", [1, 3])
def test_every_ansatz_equals_our_engine(name, exact, layout, n):
    device = build(ansatz.build(Circuit(ansatz=layout, layers=2), n), name)
    assert device.exact == exact
    assert_equals_our_engine(device, device.program)


@pytest.mark.parametrize(("name", "exact"), DEVICES)
@settings(max_examples=20, deadline=None)
@given(program=circuits(), seed=seeds)
def test_any_circuit_equals_our_engine(name, exact, program, seed):
    assert_equals_our_engine(build(program, name), program, seed)


@pytest.mark.parametrize(("name", "exact"), DEVICES)
@pytest.mark.parametrize("control", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gate_equals_our_engine(name, exact, kind, control):
    around = [Gate("u3", wire) for wire in range(3)]
    program = ansatz.program(3, [*around, Gate(kind, 0, control), *around])
    assert_equals_our_engine(build(program, name), program)


def test_default_device_is_default_qubit():
    assert build(ring()).device.name == "default.qubit"


def test_backprop_leaves_torch_as_it_was():
    device = build(ring())
    device.differentiable(angles(device.program)[0], "backprop")
    assert torch.get_default_dtype() == torch.float32


@lightning
def test_a_gradient_of_lightning_is_one_sweep():
    device = build(ring(n=5, layers=3), "lightning.qubit")
    with qml.Tracker(device.device) as tracker:
        _, gradient = device.differentiable(angles(device.program)[0], "adjoint")
        gradient(np.arange(32.0))
    # lightning counts every call of its sweep twice (0.45); the shift rule would have executed more than 180 circuits
    assert (tracker.totals["executions"], tracker.totals["derivatives"]) in [(1, 1), (1, 2)]


@pytest.mark.parametrize(("name", "exact"), DEVICES)
def test_auto_takes_the_exact_method(name, exact):
    hosted = qpu.build(Circuit(layers=1), Qpu(backend="pennylane", device=name), num_qubits=2)
    assert hosted.method == exact[0]
    theta_P = torch.from_numpy(angles(hosted.device.program)[0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: qpu.probabilities(hosted, t) ** 2, theta_P)


@pytest.mark.parametrize("name", SEEDED)
def test_shots_of_a_circuit_come_from_its_own_seed(name):
    device = build(ring(), name, shots=100)
    theta_KP, seeds_K = angles(device.program, 3), [5, 6, 7]
    p_KS = device.probabilities(theta_KP, seeds_K)
    assert np.array_equal(build(ring(), name, shots=100).probabilities(theta_KP, seeds_K), p_KS)
    assert np.array_equal(device.probabilities(theta_KP[::-1], seeds_K[::-1]), p_KS[::-1])
    assert np.array_equal(device.probabilities(theta_KP[1:2], seeds_K[1:2]), p_KS[1:2])
    assert not np.array_equal(device.probabilities(theta_KP, [1, 2, 3]), p_KS)
    np.testing.assert_allclose(p_KS * 100, (p_KS * 100).round(), rtol=0, atol=1e-12)
    assert device.exact == ()


@pytest.mark.parametrize("name", SEEDED)
def test_shots_are_unbiased(name):
    device, num, shots = build(ring(), name, shots=1000), 40, 1000
    theta_P = angles(device.program)[0]
    mean_S = device.probabilities(np.tile(theta_P, (num, 1)), list(range(num))).mean(axis=0)
    p_S, _ = statevector.StateVector(device.program, Qpu()).differentiable(theta_P, "adjoint")
    assert (abs(mean_S - p_S) <= 5 * np.sqrt(p_S * (1 - p_S) / (num * shots))).all()


def test_a_device_without_exact_gradients_runs():
    device = build(ring(), "reference.qubit")
    assert device.exact == ()
    assert_equals_our_engine(device, device.program)


def test_a_device_that_takes_no_seed_draws_shots():
    device = build(ring(), shots=100_000)
    device._seeded = False  # as hardware; the devices that come with PennyLane all take one
    theta_KP = angles(device.program, 2)
    exact_KS = statevector.StateVector(device.program, Qpu()).probabilities(theta_KP, [0, 0])
    np.testing.assert_allclose(device.probabilities(theta_KP, [0, 0]), exact_KS, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "default.qubt"}, r"unknown qpu.device 'default.qubt': did you mean 'default.qubit'\?"),
        ({"options": {"shot": 3}}, r"qpu.device default.qubit with qpu.options {'shot': 3} cannot be made: .*'shot'"),
        ({"options": {"shots": 3}}, "qpu.options: 'shots' is set by qpu.shots: remove it"),
        ({"options": {"seed": 3}}, "qpu.options: 'seed' is set by train.seed: remove it"),
        ({"options": {"wires": 3}}, "qpu.options: 'wires' is set by the circuit: remove it"),
        ({"options": {"mpi": True}}, "qpu.options: 'mpi' splits a state over the ranks, .*: remove it"),
        ({"noise": "FakeManilaV2"}, "qpu.noise = 'FakeManilaV2' is for qpu.backend aer; .* also on default.mixed"),
        ({"precision": "float32"}, "qpu.precision = 'float32' has no meaning for qpu.backend pennylane: remove it"),
        ({"device": "default.gaussian"}, "qpu.device default.gaussian returns no probabilities of all wires: .*"),
        ({"device": "default.qutrit"}, "qpu.device default.qutrit returns no probabilities of all wires: .*"),
        ({"device": "null.qubit"}, "qpu.device null.qubit does not run circuits: a flipped qubit was not measured .*"),
        ({"device": "null.qubit", "shots": 10}, "qpu.device null.qubit does not run circuits: .*"),
    ],
)
def test_bad_settings_are_refused_in_one_line(fields, message):
    with pytest.raises(UserError) as error:
        build(ring(), **fields)
    assert "\n" not in str(error.value)
    error.match(f"^{message}$" if message.endswith((".*", "it")) else f"^{message}")


def test_missing_pennylane_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pennylane", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs PennyLane: pip install 'distqtrl\[pennylane\]'"):
        build(ring())


@pytest.mark.parametrize(
    ("n", "device", "needed"), [(45, "default.qubit", "2,097,152"), (23, "default.mixed", "4,194,304")]
)
def test_a_state_that_does_not_fit_is_refused(n, device, needed):
    message = rf"qpu.device {device} with probabilities needs {needed} GiB for {n} qubits, \d+ GiB are there"
    with pytest.raises(UserError, match=message):
        build(ring(n), device)


@pytest.mark.parametrize(("device", "gradient"), [("default.mixed", "auto"), ("default.qubit", "backprop")])
def test_a_method_that_does_not_fit_is_refused(device, gradient, monkeypatch):
    monkeypatch.setattr(pennylane, "HELD_PER_OPERATION", 1e12)  # as in a circuit as deep as that
    message = rf"qpu.device {device} with backprop needs [\d,]+ GiB for 3 qubits, \d+ GiB are there"
    with pytest.raises(UserError, match=message):
        build(ring(), device, gradient=gradient)


def test_what_fits_is_offered(monkeypatch):
    monkeypatch.setattr(pennylane, "HELD_PER_OPERATION", 1e12)
    assert build(ring()).exact == ("adjoint",)
    assert build(ring(), "default.mixed", gradient="parameter-shift").exact == ()


@pytest.mark.parametrize("expands", [False, True], ids=["broadcast", "one by one"])
def test_a_remote_plugin_gets_the_circuits_of_a_gradient_in_one_call(monkeypatch, expands):
    """A device without a seed, as plugins of QPUs are: one call is one job in their queue."""
    calls = []

    class Remote(qml.devices.Device):
        def execute(self, circuits, execution_config=None):
            calls.append(sum(tape.batch_size or 1 for tape in circuits))
            return qml.execute(circuits, make("default.qubit", wires=self.wires), diff_method=None)

        def preprocess_transforms(self, execution_config=None):
            pipeline = super().preprocess_transforms(execution_config)
            if expands:
                pipeline.add_transform(qml.transforms.broadcast_expand)
            return pipeline

    make = qml.device
    monkeypatch.setattr(qml, "device", lambda name, wires: Remote(wires=wires))
    monkeypatch.setitem(qml.plugin_devices, "remote", None)
    device = qpu.build(Circuit(layers=1), Qpu(backend="pennylane", device="remote", shots=10), 2)
    del calls[:]
    _, gradient = device.probabilities(np.zeros(device.num_angles))
    gradient(np.arange(4.0))
    assert calls == [1, device.circuits_per_gradient]
