import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import QuantumCircuit, transpile
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

from distqtrl.circuit import ansatz, qpu
from distqtrl.circuit.aer import Aer
from distqtrl.circuit.ansatz import ANSATZE, KINDS, Gate
from distqtrl.circuit.shift import Ranks
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

DEPOLARIZING = {"depolarizing": {"one_qubit": 0.02, "two_qubit": 0.1}}
READOUT = {"readout": {"0to1": 0.05, "1to0": 0.2}}
RELAXATION = {"t1_us": 10.0, "t2_us": 6.0, "one_qubit_us": 0.5, "two_qubit_us": 2.0}
SLOW_DEPHASING = {**RELAXATION, "t2_us": 18.0}  # T2 > T1, which Qiskit writes in another way
NOISES = {
    "depolarizing": DEPOLARIZING,
    "readout": READOUT,
    "relaxation": {"thermal_relaxation": RELAXATION},
    "slow_dephasing": {"thermal_relaxation": SLOW_DEPHASING},
    "all": {**DEPOLARIZING, **READOUT, "thermal_relaxation": RELAXATION},
}


def aer(program, **fields):
    return Aer(program, Qpu(backend="aer", **fields))


@pytest.fixture
def noise_file(tmp_path):
    def path(description):
        file = tmp_path / "noise.json"
        file.write_text(description if isinstance(description, str) else json.dumps(description))
        return str(file)

    return path


def angles(program, num=1, seed=0):
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, (num, program.num_angles))


def ideal(program, theta_KP):
    return StateVector(program, Qpu()).probabilities(theta_KP, [])


def every_kind():
    """All kinds with and without control, between gates that make each of them matter."""
    mixed = [Gate("u3", wire) for wire in range(3)]
    return [
        *mixed,
        *(gate for kind in KINDS for gate in (Gate(kind, 0), Gate(kind, 1, 2), *mixed, Gate(kind, 2, 0), Gate("h", 1))),
    ]


@pytest.mark.parametrize("method", [None, "statevector", "density_matrix"])
@pytest.mark.parametrize("name", ANSATZE)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_probabilities_equal_the_statevector_s(name, n, method):
    program = ansatz.build(Circuit(ansatz=name, layers=2), n)
    theta_KP = angles(program, num=3)
    p_KS = aer(program, device=method).probabilities(theta_KP, [])
    np.testing.assert_allclose(p_KS, ideal(program, theta_KP), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("two_qubit", "tolerance"), [(0.0, 1e-10), (4e-7, 1e-4)], ids=["statevector", "density_matrix"]
)
def test_pulses_of_every_kind_are_its_gate(two_qubit, tolerance, noise_file):
    """With a noise file that describes no noise, and with one that has hardly any."""
    program = ansatz.program(3, every_kind())
    theta_KP = angles(program, num=3)
    noise = noise_file({"depolarizing": {"two_qubit": two_qubit}})
    p_KS, ideal_KS = aer(program, noise=noise).probabilities(theta_KP, []), ideal(program, theta_KP)
    np.testing.assert_allclose(p_KS, ideal_KS, rtol=0, atol=tolerance)
    assert two_qubit == 0 or abs(p_KS - ideal_KS).max() > 1e-9


def random_gates(n):
    wires = st.permutations(range(n))
    gate = st.tuples(st.sampled_from(list(KINDS)), wires, st.booleans())
    return st.lists(gate.map(lambda g: Gate(g[0], g[1][0], g[1][1] if g[2] else None)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(gates=random_gates(3), seed=st.integers(0, 99))
def test_random_circuits_equal_the_statevector(gates, seed):
    program = ansatz.program(3, gates)
    theta_KP = angles(program, num=2, seed=seed)
    np.testing.assert_allclose(aer(program).probabilities(theta_KP, []), ideal(program, theta_KP), rtol=0, atol=1e-10)


@pytest.mark.parametrize("noise", [None, DEPOLARIZING, "FakeManilaV2"], ids=["ideal", "file", "backend"])
@pytest.mark.parametrize("shots", [None, 4096])
@pytest.mark.parametrize("wire", [0, 1, 2])
def test_wire_0_is_the_most_significant_bit(noise, shots, wire, noise_file):
    noise = noise_file(noise) if isinstance(noise, dict) else noise
    p_KS = aer(ansatz.program(3, [Gate("x", wire)]), noise=noise, shots=shots).probabilities(np.empty((1, 0)), [5])
    assert p_KS.argmax() == 4 >> wire
    assert p_KS[0, 4 >> wire] > 0.8


SX = np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2
X = np.array([[0, 1], [1, 0]])
CX = np.eye(4)[[0, 1, 3, 2]]
SWAP = np.eye(4)[[0, 2, 1, 3]]


class Reference:
    """Two qubits' density matrix under pulses with noise, from the channels' definitions."""

    def __init__(self, noise):
        self.depolarizing = noise.get("depolarizing", {"one_qubit": 0, "two_qubit": 0})
        self.relaxation = noise.get("thermal_relaxation")
        self.readout = noise.get("readout", {"0to1": 0, "1to0": 0})
        self.rho = np.zeros((4, 4), dtype=complex)
        self.rho[0, 0] = 1

    def rz(self, wire, angle):
        self._unitary(self._on(wire, np.diag(np.exp([-0.5j * angle, 0.5j * angle]))))

    def u3(self, wire, t, p, l):  # noqa: E741
        self.rz(wire, l)
        self.pulse(wire, SX)
        self.rz(wire, t + np.pi)
        self.pulse(wire, SX)
        self.rz(wire, p + np.pi)

    def pulse(self, wire, matrix):
        self._unitary(self._on(wire, matrix))
        lost = self.depolarizing["one_qubit"]
        rest = self.rho.reshape(2, 2, 2, 2).trace(axis1=wire, axis2=wire + 2)
        mixed = np.kron(np.eye(2) / 2, rest) if wire == 0 else np.kron(rest, np.eye(2) / 2)
        self.rho = (1 - lost) * self.rho + lost * mixed
        self._relax([wire], "one_qubit_us")

    def cx(self, control):
        self._unitary(CX if control == 0 else SWAP @ CX @ SWAP)
        lost = self.depolarizing["two_qubit"]
        self.rho = (1 - lost) * self.rho + lost * np.eye(4) / 4
        self._relax([0, 1], "two_qubit_us")

    def probabilities(self):
        up, down = self.readout["0to1"], self.readout["1to0"]
        read = np.array([[1 - up, down], [up, 1 - down]])
        return np.kron(read, read) @ self.rho.diagonal().real

    def _on(self, wire, matrix):
        return np.kron(matrix, np.eye(2)) if wire == 0 else np.kron(np.eye(2), matrix)

    def _unitary(self, u):
        self.rho = u @ self.rho @ u.conj().T

    def _relax(self, wires, duration):
        if self.relaxation is None:
            return
        kept = np.exp(-self.relaxation[duration] / self.relaxation["t1_us"])
        coherent = np.exp(-self.relaxation[duration] / self.relaxation["t2_us"])
        for wire in wires:
            rho = np.moveaxis(self.rho.reshape(2, 2, 2, 2), (wire, wire + 2), (0, 1)).copy()
            rho[0, 0] += (1 - kept) * rho[1, 1]
            rho[1, 1] *= kept
            rho[0, 1] *= coherent
            rho[1, 0] *= coherent
            self.rho = np.moveaxis(rho, (0, 1), (wire, wire + 2)).reshape(4, 4)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_of_a_file_equals_a_density_matrix_by_hand(noise, noise_file):
    gates = [Gate("h", 0), Gate("u3", 1), Gate("x", 1, 0), Gate("ry", 0, 1), Gate("x", 0), Gate("rz", 0), Gate("h", 0)]
    program = ansatz.program(2, gates)
    theta_KP = angles(program, num=2)
    p_KS = aer(program, noise=noise_file(noise)).probabilities(theta_KP, [])
    for (t, p, l, turn, z), p_S in zip(theta_KP, p_KS, strict=True):  # noqa: E741
        hand = Reference(noise)
        for step in (hand.rz, hand.pulse, hand.rz):  # h
            step(0, SX if step == hand.pulse else np.pi / 2)
        hand.u3(1, t, p, l)
        hand.cx(0)
        hand.u3(0, turn / 2, 0, 0)
        hand.cx(1)
        hand.u3(0, -turn / 2, 0, 0)
        hand.cx(1)
        hand.pulse(0, X)
        hand.rz(0, z + np.pi / 2)
        hand.pulse(0, SX)
        np.testing.assert_allclose(p_S, hand.probabilities(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("part", ["depolarizing", "readout", "relaxation", "all"])
def test_noise_of_a_file_matters(part, noise_file):
    program = ansatz.program(2, ansatz.u3_cu3_ring(2, 2))
    theta_KP = angles(program)
    p_KS = aer(program, noise=noise_file(NOISES[part])).probabilities(theta_KP, [])
    assert abs(p_KS - ideal(program, theta_KP)).max() > 0.01


def test_fake_backend_equals_qiskit_s_own_simulator_of_it():
    """On a circuit that is pulses already, so that Qiskit puts it on the same qubits."""
    num, backend = 200_000, FakeManilaV2()
    circuit = QuantumCircuit(3)
    circuit.x(2)
    circuit.cx(2, 0)
    circuit.cx(0, 1)
    routed = transpile(circuit, target=backend.target, optimization_level=3, seed_transpiler=0)
    routed.measure_all(add_bits=True)
    places = routed.layout.final_index_layout()
    counts = AerSimulator.from_backend(backend, seed_simulator=1).run(routed, shots=num).result().get_counts()
    theirs_S = np.zeros(8)
    for bits, count in counts.items():  # the last bit is qubit 0
        theirs_S[int("".join(bits[::-1][place] for place in places), 2)] += count / num

    program = ansatz.program(3, [Gate("x", 2), Gate("x", 0, 2), Gate("x", 1, 0)])
    p_S = aer(program, noise="FakeManilaV2").probabilities(np.empty((1, 0)), [])[0]
    assert p_S.argmax() == 7
    assert (abs(p_S - theirs_S) <= 5 * np.sqrt(p_S * (1 - p_S) / num)).all()


@pytest.mark.parametrize("name", ["FakeManilaV2", "FakeLondonV2", "FakeSherbrooke"])  # cx, u1 u2 u3, ecr of 127 qubits
def test_fake_backend_pulls_a_state_towards_the_mixed_one(name):
    """The more so, the more gates there are: angles of 0 leave |000> as it is, but not the noise of their pulses."""
    probabilities = []
    for layers in (1, 4):
        program = ansatz.program(3, ansatz.u3_cu3_ring(3, layers))
        p_S = aer(program, noise=name).probabilities(np.zeros((1, program.num_angles)), [])[0]
        assert p_S.sum() == pytest.approx(1, abs=1e-9)
        probabilities.append(p_S[0])
    assert 0.125 < probabilities[1] < probabilities[0] - 0.01
    assert probabilities[0] < 0.999


def test_probabilities_with_very_improbable_errors_sum_to_one():
    """Aer leaves out what has less than 1e-8, here 1.7e-8 in all, which adds up in deep circuits."""
    program = ansatz.program(3, ansatz.u3_cu3_ring(3, 2))
    p_KS = aer(program, noise="FakeSantiagoV2").probabilities(angles(program), [])
    assert p_KS.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["FakeManilaV2", "FakeLondonV2"])
def test_fake_backend_follows_the_angles(name):
    program = ansatz.program(3, ansatz.u3_cu3_ring(3, 1))
    theta_KP = angles(program, num=3)
    noisy_KS, ideal_KS = aer(program, noise=name).probabilities(theta_KP, []), ideal(program, theta_KP)
    distance_KK = abs(noisy_KS[:, None] - ideal_KS).sum(axis=-1)
    assert (distance_KK.argmin(axis=1) == range(3)).all()
    assert distance_KK.diagonal().min() > 0.01
    assert distance_KK.diagonal().max() < 0.5


@pytest.mark.parametrize(
    ("noise", "device", "shots"),
    [(None, None, 20_000), (NOISES["all"], None, 20_000), (NOISES["all"], "statevector", 2_000)],
    ids=["ideal", "density_matrix", "trajectories"],
)
def test_shots_follow_their_seed_and_the_exact_distribution(noise, device, shots, noise_file):
    program = ansatz.program(2, ansatz.u3_cu3_ring(2, 1))
    theta_KP = angles(program, num=2)
    noise = noise and noise_file(noise)
    exact_KS = aer(program, noise=noise).probabilities(theta_KP, [])
    sampler = aer(program, noise=noise, device=device, shots=shots)
    p_KS = sampler.probabilities(theta_KP, [3, 2**31 - 1])
    assert ((p_KS * shots).round(6) % 1 == 0).all()
    assert (abs(p_KS - exact_KS) <= 5 * np.sqrt(exact_KS * (1 - exact_KS) / shots)).all()
    np.testing.assert_array_equal(sampler.probabilities(theta_KP[1:], [2**31 - 1]), p_KS[1:])  # whatever the batch is
    assert (sampler.probabilities(theta_KP[1:], [4]) != p_KS[1:]).any()


def test_few_shots_of_many_qubits_with_noise_are_trajectories(noise_file):
    """A density matrix of 11 qubits holds 64 MiB."""
    program = ansatz.program(11, [Gate("x", 10)])
    p_KS = aer(program, noise=noise_file({**DEPOLARIZING, **READOUT}), shots=50).probabilities(np.empty((1, 0)), [1])
    assert p_KS.sum() == pytest.approx(1)
    assert 5 < np.count_nonzero(p_KS) <= 50


@pytest.mark.parametrize("noise", [None, DEPOLARIZING])
@pytest.mark.parametrize("gates", [[Gate("h", 0), Gate("x", 1, 0)], [Gate("h", 0), Gate("rz", 1), Gate("phase", 0)]])
def test_circuits_without_an_angle_that_matters(noise, gates, noise_file):
    program = ansatz.program(2, gates)
    p_KS = aer(program, noise=noise and noise_file(noise)).probabilities(angles(program, num=3), [])
    assert p_KS.shape == (3, 4)
    np.testing.assert_allclose(p_KS, ideal(program, angles(program, num=3)), atol=0.1)


def test_jobs_of_part_of_the_sets_change_nothing(monkeypatch):
    program = ansatz.program(2, ansatz.u3_cu3_ring(2, 1))
    theta_KP = angles(program, num=5)
    whole_KS = aer(program).probabilities(theta_KP, [])
    monkeypatch.setattr("distqtrl.circuit.aer.JOB", 2 * 16 * 2**2)
    np.testing.assert_array_equal(aer(program).probabilities(theta_KP, []), whole_KS)


def test_options_reach_the_simulator(caplog):
    program = ansatz.program(2, [Gate("h", 0)])
    p_KS = aer(program, options={"fusion_enable": False, "fusion_threshold": 3}).probabilities(np.empty((1, 0)), [])
    np.testing.assert_allclose(p_KS, [[0.5, 0, 0.5, 0]], atol=1e-12)
    with pytest.raises(UserError, match=r"max_memory_mb.*(memory|Memory)|[Mm]emory"):
        aer(ansatz.program(18, [Gate("h", 0)]), options={"max_memory_mb": 1})
    assert caplog.records == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "float32"}, "qpu.precision = 'float32' has no meaning for qpu.backend aer: remove it"),
        ({"device": "stabilizer"}, "qpu.device = 'stabilizer' is not a method .*: use statevector or density_matrix"),
        ({"device": "statevector", "noise": "FakeManilaV2"}, "statevector is exact only without noise: use density_m"),
        ({"options": {"fusion_enabel": 1}}, r"AerSimulator has no option 'fusion_enabel': did you mean 'fusion_enab"),
        ({"options": {"fusion_max_qubit": "x"}}, r"qpu.options {'fusion_max_qubit': 'x'}: invalid option type"),
        ({"options": {"blocking_enable": True}}, "blocking_enable: a state that is split over MPI ranks .*: remove it"),
        ({"options": {"blocking_qubits": 2}}, "blocking_qubits: a state that is split over MPI ranks .*: remove it"),
        ({"options": {"shots": 2}}, "qpu.options shots: remove it, set qpu.shots"),
        ({"options": {"max_parallel_threads": 2}}, "max_parallel_threads: remove it, it is always 1"),
        ({"noise": "FakeManilla"}, r"'FakeManilla' is neither a fake backend .*: did you mean 'FakeManilaV2'\?"),
        ({"noise": "/none.json"}, "cannot read qpu.noise /none.json: No such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message) as refusal:
        aer(ansatz.program(2, [Gate("h", 0)]), **fields)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "num_qubits", "message"),
    [
        ({}, 40, r"statevector of 40 qubits, needs 16,384 GiB .*, \d+ GiB are there: raise mapping.chunk"),
        ({"noise": DEPOLARIZING}, 20, r"density_matrix of 20 qubits, needs 16,384 GiB .*, \d+ GiB are there"),
        ({"noise": "FakeManilaV2"}, 6, r"has 5 qubits, the circuit has 6: use FakeJakartaV2 or a noise file"),
        (
            {"noise": "FakeCairoV2"},
            3,
            r"FakeCairoV2: Qiskit cannot route this circuit on it .*: use FakeManilaV2 or a",
        ),
        ({"noise": "FakeManilaV2"}, 128, r"has 5 qubits, the circuit has 128: use a noise file \(\*.json\)"),
    ],
)
def test_circuits_that_do_not_fit_are_refused(fields, num_qubits, message, noise_file):
    fields = {key: noise_file(value) if isinstance(value, dict) else value for key, value in fields.items()}
    with pytest.raises(UserError, match=message):
        aer(ansatz.program(num_qubits, ansatz.u3_cu3_ring(num_qubits, 1)), **fields)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", r"cannot read qpu.noise .*noise.json: it is not JSON: Expecting property name"),
        ([], "noise.json describes nothing: write some of the tables depolarizing, readout, thermal_relaxation"),
        ({}, "noise.json describes nothing"),
        ({"depolarising": {}}, r"unknown key 'depolarising': did you mean 'depolarizing'\?"),
        ({"readout": {"0to2": 0.1}}, r"unknown key 'readout.0to2': did you mean 'readout.0to1'\?"),
        ({"depolarizing": {"one_qubit": 1.5}}, "depolarizing.one_qubit = 1.5: Input should be less than or equal to 1"),
        ({"depolarizing": {"two_qubit": "a"}}, "depolarizing.two_qubit = 'a': Input should be a valid number"),
        ('{"readout": {"0to1": NaN}}', "NaN is not a number in JSON"),
        ({"readout": {"1to0": -0.1}}, "readout.1to0 = -0.1: Input should be greater than or equal to 0"),
        ({"thermal_relaxation": {"t1_us": 1}}, "thermal_relaxation.t2_us: Field required"),
        (
            {"thermal_relaxation": {**RELAXATION, "t1_us": 0}},
            "thermal_relaxation.t1_us = 0: Input should be greater th",
        ),
        ({"thermal_relaxation": {**RELAXATION, "t2_us": 21}}, "t2_us = 21 is more than 2 t1_us = 20: lower it"),
    ],
)
def test_noise_files_that_are_wrong_are_refused(description, message, noise_file):
    with pytest.raises(UserError, match=message) as refusal:
        aer(ansatz.program(2, [Gate("h", 0)]), noise=noise_file(description))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("package", "noise", "message"),
    [
        ("qiskit_aer", None, r"qpu.backend aer needs Qiskit Aer: pip install 'distqtrl\[aer\]'"),
        ("qiskit_ibm_runtime", "FakeManilaV2", r"qpu.noise FakeManilaV2 needs Qiskit's runtime: pip install 'distqtrl"),
    ],
)
def test_packages_that_are_missing_are_named(package, noise, message, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for a package that is not there
    with pytest.raises(UserError, match=message):
        aer(ansatz.program(2, [Gate("h", 0)]), noise=noise)


def test_ranks_that_share_the_circuits_of_a_gradient_have_the_same_ones(noise_file):
    """Also where the devices of some have noise, whose gates are decomposed: each takes its part of a list."""
    part = next(iter(NOISES))
    shared = Qpu(shift="distributed", per_rank=[{}, {"backend": "aer", "noise": noise_file(NOISES[part])}])
    exact, noisy = (qpu.build(Circuit(layers=1), shared, 2, 0, Ranks(rank, range(2))) for rank in range(2))
    np.testing.assert_array_equal(exact.spread_DP, noisy.spread_DP)
    assert exact.device.program.num_angles == noisy.device.program.num_angles
