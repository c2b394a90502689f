import numpy as np
import pytest
import qiskit_ibm_runtime
from qiskit_ibm_runtime.accounts.exceptions import AccountNotFoundError
from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

from distqtrl.circuit import ansatz, qpu, runtime
from distqtrl.circuit.ansatz import Gate
from distqtrl.circuit.qpu import DeviceFailure
from distqtrl.circuit.runtime import Runtime
from distqtrl.circuit.shift import Ranks
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

CIRCUIT = Circuit(ansatz="ry_cnot", layers=1)
SECRET = "a-secret-token"


def settings(**fields):
    return Qpu(**{"backend": "runtime", "device": "fake_manila", "shots": 200, **fields})


def build(ranks=None, n=3, circuit=CIRCUIT, **fields):
    return qpu.build(circuit, settings(**fields), n, ranks=ranks)


def angles(device, seed=0):
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, device.num_angles)


@pytest.fixture
def jobs(monkeypatch):
    """What was sent, as (circuit, parameter sets, shots) per job."""
    sent = []
    run = qiskit_ibm_runtime.SamplerV2.run

    def counted(self, pubs, **options):
        sent.extend(pubs)
        return run(self, pubs, **options)

    monkeypatch.setattr(qiskit_ibm_runtime.SamplerV2, "run", counted)
    return sent


class Service:
    """The service of a saved account with one backend, which is simulated here although the program cannot know."""

    def __init__(self, **options):
        self.options = options

    def backend(self, name):
        return next(backend for backend in self.backends() if backend.name == name)

    def backends(self):
        backend = FakeManilaV2()
        backend.name = "ibm_test"
        return [backend]


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", Service)


def test_all_circuits_of_a_gradient_are_one_job_of_one_circuit(jobs):
    device = build()
    _, gradient = device.probabilities(angles(device))
    gradient(np.arange(8.0))
    device.probabilities(angles(device))
    assert [values_KJ.shape[0] for _, values_KJ, _ in jobs] == [1, device.circuits_per_gradient, 1]
    assert len({id(circuit) for circuit, _, _ in jobs}) == 1  # it is transpiled once
    assert {shots for _, _, shots in jobs} == {200}
    assert (device.ledger.circuits, device.ledger.shots) == (8, 1600)


def test_the_gradients_of_several_policies_are_one_job(jobs):
    device = build()
    theta_KP = np.stack([angles(device, seed) for seed in (0, 1)])
    _, gradient = device.probabilities_batch(theta_KP)
    assert gradient(np.ones((2, 8))).shape == theta_KP.shape
    assert [values_KJ.shape[0] for _, values_KJ, _ in jobs] == [2, 2 * device.circuits_per_gradient]


def test_rank_0_sends_the_circuits_of_all_ranks_as_one_job(jobs):
    v_S, totals = np.arange(8.0), {"total": lambda v_S: 2 * v_S}
    whole = build(gradient="parameter-shift")
    several = [build(Ranks(rank, range(2), **totals), shift="distributed") for rank in range(2)]
    assert [device.circuits_per_gradient for device in several] == [6, 0]
    theta_P = angles(whole)
    gradients = [device.probabilities(theta_P)[1] for device in several]
    expected_P = whole.probabilities(theta_P)[1](2 * v_S)
    del jobs[:]
    np.testing.assert_array_equal(sum(gradient(v_S) for gradient in gradients), expected_P)
    assert len(jobs) == 1


@pytest.mark.parametrize("mode", runtime.MODES)
def test_shots_follow_their_seed(mode):
    device = Runtime(ansatz.build(CIRCUIT, 3), settings(options={"mode": mode}))
    theta_KP = np.random.default_rng(0).normal(size=(2, 3))
    first, again, other = (device.probabilities(theta_KP, [seed, 9]) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(*device.probabilities(theta_KP[[0, 0]], [5, 5]))  # circuits of a job draw on


@pytest.mark.parametrize("wire", range(3))
def test_wire_0_is_the_most_significant_bit_and_a_circuit_needs_no_angle(wire):
    device = Runtime(ansatz.program(3, [Gate("x", wire)]), settings())
    p_KS = device.probabilities(np.empty((2, 0)), [5, 5])
    assert p_KS.shape == (2, 8)
    assert (p_KS.argmax(axis=1) == 4 >> wire).all()


def test_the_gradient_is_near_the_exact_one():
    circuit = Circuit(layers=1)  # controlled rotations, which are decomposed: two terms each
    device, exact = build(circuit=circuit, n=2, shots=4000), qpu.build(circuit, Qpu(), 2)
    assert device.circuits_per_gradient > exact.num_angles
    theta_P, v_S = angles(exact), np.arange(4.0)
    difference_P = device.probabilities(theta_P)[1](v_S) - exact.probabilities(theta_P)[1](v_S)
    assert abs(difference_P).max() < 0.25  # noise of the backend, and shots
    assert difference_P.any()


def test_a_shot_takes_the_backend_s_durations_and_its_delay():
    short, long = build(), build(circuit=Circuit(ansatz="ry_cnot", layers=8))
    assert 250 < short.shot_us < long.shot_us < 300  # fake_manila waits 250 us between shots
    assert qpu.build(CIRCUIT, Qpu(shot_us=7), 3).shot_us == 7


class Job:
    """A job that fails as it is told: at once, on the way to its result, or not at all."""

    def __init__(self, error=None, ended=False):
        self.error, self.ended, self.cancelled, self.asked = error, ended, False, 0

    def job_id(self):
        return "job-1"

    def in_final_state(self):
        return self.ended

    def cancel(self):
        self.cancelled = True

    def result(self):
        self.asked += 1
        raise self.error


@pytest.fixture
def sampler(monkeypatch):
    """sampler(answers): each is a job or an error of one call; then jobs run. Returns the list of what was sent."""
    run, sent, pauses = qiskit_ibm_runtime.SamplerV2.run, [], []
    monkeypatch.setattr(runtime.time, "sleep", pauses.append)

    def use(*answers):
        left = list(answers)

        def answered(self, pubs, **options):
            sent.append(pubs)
            answer = left.pop(0) if left else run(self, pubs, **options)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(qiskit_ibm_runtime.SamplerV2, "run", answered)
        return sent, pauses

    return use


def test_a_job_that_failed_is_sent_again(sampler):
    sent, pauses = sampler(ConnectionError("down"), Job(RuntimeError("broken"), ended=True))
    device = build()
    assert device.probabilities(angles(device))[0].sum() == pytest.approx(1)
    assert (len(sent), pauses) == (3, [2.0, 4.0])


def test_a_job_that_may_still_run_is_asked_for_again_and_cancelled_in_the_end(sampler):
    job = Job(ConnectionError("down"))
    sent, pauses = sampler(job)
    device = build(options={"tries": 4, "backoff_s": 40})
    with pytest.raises(DeviceFailure, match=r"fake_manila failed: RuntimeError: down \(job job-1\) after 4 tries"):
        device.probabilities(angles(device))
    assert (len(sent), job.asked, job.cancelled, pauses) == (1, 4, True, [40, 60, 60])


def test_what_no_second_try_can_mend_is_not_tried_again(sampler):
    sent, pauses = sampler(IBMNotAuthorizedError("no"))
    device = build()
    with pytest.raises(DeviceFailure, match=r"'no'$"):
        device.probabilities(angles(device))
    assert (len(sent), pauses) == (1, [])


def test_nothing_is_sent_before_it_is_confirmed(account, jobs):
    device = build(device="ibm_test")
    assert device.billed
    with pytest.raises(UserError, match="nothing is sent to ibm_test before it is confirmed"):
        device.probabilities(angles(device))
    assert jobs == []
    device.confirm()
    device.probabilities(angles(device))
    assert len(jobs) == 1


def without_account(**options):
    raise AccountNotFoundError(f"no account; {SECRET}")


def refused_account(**options):
    raise IBMNotAuthorizedError(f"login failed with {SECRET}")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"device": None}, "needs qpu.device: the name of a backend, or of a simulated one, such as fake_manila"),
        ({"device": "fake_manil"}, "unknown qpu.device 'fake_manil': did you mean 'fake_manila'?"),
        ({"device": "ibm_tost"}, "'ibm_tost' is not a backend of the saved account: did you mean 'ibm_test'?"),
        ({"shots": None}, "needs qpu.shots"),
        ({"noise": "FakeManilaV2"}, "qpu.noise = 'FakeManilaV2' has no meaning for qpu.backend runtime"),
        ({"gradient": "adjoint"}, "use parameter-shift, spsa"),
        ({"options": {"mod": "batch"}}, "has no option 'mod': did you mean 'mode'?"),
        ({"options": {"mode": "sesion"}}, "mode = 'sesion': use job or session or batch"),
        ({"options": {"tries": 0}}, "tries = 0: use a whole number from 1 to 100"),
        ({"options": {"wait_s": "1h"}}, "wait_s = '1h': use seconds"),
        ({"options": {"max_time": "1h"}}, "max_time limits a session or a batch: add mode, or remove it"),
        ({"options": {"token": SECRET}}, "remove 'token', credentials belong in no configuration"),
    ],
)
def test_bad_input_is_one_line(account, fields, line):
    with pytest.raises(UserError) as caught:
        build(**fields)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_backend_that_is_too_small():
    with pytest.raises(UserError, match="fake_manila has 5 qubits, the circuit has 6: use a larger backend"):
        build(n=6)


@pytest.mark.parametrize(
    ("service", "line"),
    [(without_account, "finds no saved account"), (refused_account, "cannot use the saved account")],
)
def test_an_account_that_is_not_there_or_refused_says_how_to_save_one(monkeypatch, service, line):
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", service)
    with pytest.raises(UserError, match=line) as caught:
        build(device="ibm_test")
    assert "QiskitRuntimeService.save_account" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setitem(runtime.importlib.sys.modules, "qiskit_ibm_runtime", None)
    with pytest.raises(UserError, match=r"pip install 'distqtrl\[aer\]'"):
        build()
