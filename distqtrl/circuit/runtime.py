"""A QPU behind Qiskit's runtime, or one of its fake backends: every request is one job of one parametrized circuit.

The circuit is compiled to the backend's pulses and routed once (see ``noise.routed``). A job is one PUB, the circuit
with an array of K parameter sets, so that all shifted circuits of a gradient wait in the queue once. Jobs go to
SamplerV2 with the account that the user has saved; nothing here reads, asks for or writes a credential.
"""

import contextlib
import importlib
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from distqtrl.circuit.ansatz import Program
from distqtrl.circuit.device import Device
from distqtrl.circuit.gates import Array
from distqtrl.circuit.noise import routed
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.config.values import finite
from distqtrl.errors import UserError, nearest, shortened

FAKE = "fake_"
MODES = ("job", "session", "batch")
SECRET = ("token", "api_key", "password", "url", "channel", "proxies")
SAVE = "save it once with QiskitRuntimeService.save_account in Python; distqtrl never asks for a token"
FINAL = ("IBMNotAuthorizedError", "IBMInputValueError", "RuntimeJobMaxTimeoutError", "RuntimeJobTimeoutError")
MICROSECONDS = 1e6
LONGEST_S = 60.0  # between two tries


@dataclass(frozen=True)
class Options:
    """What ``qpu.options`` may hold.

    mode: job (each alone), session or batch (kept open for all jobs of the run); max_time: of those, as "2h".
    tries: of a job; backoff_s: before the second, doubled before each further; wait_s: at most for one job's result.
    account, instance: names of the saved account and of its instance; sampler: SamplerV2's own options.
    """

    mode: str = "job"
    max_time: str | int | None = None
    tries: int = 3
    backoff_s: float = 2.0
    wait_s: float | None = None
    account: str | None = None
    instance: str | None = None
    sampler: dict[str, Any] | None = None


class Runtime(Device):
    """The device ``runtime``: ``settings.device`` is a backend's name, or ``fake_...`` for one that is simulated here.

    ``billed`` says whether jobs leave this machine; those are refused until ``confirmed`` is set. ``shot_us`` is what a
    shot takes by the backend's own durations and its delay between shots, None where it does not say.

    Raises UserError for packages, an account, a backend or options that are not there or do not fit, without
    ``qpu.shots``, and for a circuit that the backend has no qubits for or cannot route.
    """

    noisy = one_job = True

    def __init__(self, program: Program, settings: Qpu) -> None:
        refuse(settings, "runtime", ("precision", "noise"))
        self.program = program
        self._shots, self._options = _shots(settings), _options(settings)
        self._name = settings.device or ""
        _refuse_missing()
        self._backend = _fake(self._name) if self._name.startswith(FAKE) else _real(self._name, self._options)
        self.billed = not self._name.startswith(FAKE)
        self.confirmed = not self.billed
        who = f"qpu.device = {self._name}"
        if self._backend.num_qubits < program.num_qubits:
            raise UserError(
                f"{who} has {self._backend.num_qubits} qubits, the circuit has {program.num_qubits}: use a larger "
                "backend, or lower circuit.qubits or mapping.chunk"
            )
        self._compiled = routed(program, self._backend.target, who, "another backend, or another circuit.ansatz")
        self._compiled.measure(sampled=True)
        self.shot_us = _shot_us(self._compiled.circuit, self._backend)
        self._limit = {"timeout": self._options.wait_s} if self.billed and self._options.wait_s else {}
        self._mode: Any = None

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of K parameter sets, relative frequencies of one job's shots.

        A fake backend's shots are drawn from the first of the seeds: a job has one. Raises RuntimeError when a job has
        failed as often as it may be tried, and UserError when nobody has confirmed that it may be sent.
        """
        if not self.confirmed:
            raise UserError(
                f"nothing is sent to {self._name} before it is confirmed: distqtrl train asks, or takes --yes; in a "
                "program of your own call its QPU's confirm()"
            )
        circuit, binds = self._compiled.circuit, self._compiled.binds(theta_KP)
        values_KJ = np.array([binds[parameter] for parameter in circuit.parameters]).T.reshape(len(theta_KP), -1)
        pub = (circuit, values_KJ, self._shots) if len(binds) else (circuit, None, self._shots)
        (bits,) = self._result(self._sampler(seeds_K[0]), pub)[0].data.values()
        p_KS = _frequencies(bits.array, bits.num_bits)
        return np.repeat(p_KS, len(theta_KP) // len(p_KS), axis=0)  # one circuit stands for all without an angle

    def confirm(self) -> None:
        self.confirmed = True

    def _sampler(self, seed: int) -> Any:
        if self._mode is None:
            self._mode = self._opened()
        options = dict(self._options.sampler or {})
        if not self.billed:
            options["simulator"] = {**options.get("simulator", {}), "seed_simulator": seed}
        with warnings.catch_warnings():  # 0.50 announces a successor, which versions before it do not have
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="distqtrl")
            return _runtime().SamplerV2(mode=self._mode, options=options)

    def _opened(self) -> Any:
        """The backend itself, or a session or batch on it, closed with this object or the process."""
        if self._options.mode == "job":
            return self._backend
        kind = {"session": "Session", "batch": "Batch"}[self._options.mode]
        opened = getattr(_runtime(), kind)(backend=self._backend, max_time=self._options.max_time)
        weakref.finalize(self, _quietly, opened.close)
        return opened

    def _result(self, sampler: Any, pub: Any) -> Any:
        """The result of one job: sent again when it failed, asked for again when only the connection did."""
        job, pause_s = None, self._options.backoff_s
        for left in reversed(range(self._options.tries)):
            try:
                job = job or sampler.run([pub])
                return job.result(**self._limit)
            except Exception as error:
                which = "" if job is None else f" (job {job.job_id()})"
                if not left or type(error).__name__ in FINAL:
                    if job is not None and not _ended(job):
                        _quietly(job.cancel)
                    tried = f" after {self._options.tries} tries" if not left and self._options.tries > 1 else ""
                    raise RuntimeError(f"{' '.join(str(error).split())}{which}{tried}") from error
                if job is not None and _ended(job):
                    job = None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_S)
        raise AssertionError("the last try returns or raises")


def _runtime() -> Any:
    return importlib.import_module("qiskit_ibm_runtime")


def _refuse_missing() -> None:
    try:
        _runtime()
        importlib.import_module("qiskit_aer")
    except ImportError:
        raise UserError("qpu.backend runtime needs Qiskit's runtime and Aer: pip install 'distqtrl[aer]'") from None


def _shots(settings: Qpu) -> int:
    if settings.shots is None:
        raise UserError("qpu.backend runtime needs qpu.shots: a device counts, it has no exact probabilities")
    return settings.shots


def _options(settings: Qpu) -> Options:
    known = [field.name for field in fields(Options)]
    for name in settings.options:
        if name in SECRET:  # not with its value, which may be a secret
            raise UserError(f"qpu.options: remove '{name}', credentials belong in no configuration: {SAVE}")
        if name not in known:
            raise UserError(f"qpu.options: qpu.backend runtime has no option '{name}': {nearest(name, known)}")
    options = Options(**settings.options)
    _refuse_value("mode", options.mode, options.mode in MODES, " or ".join(MODES))
    whole = isinstance(options.tries, int) and not isinstance(options.tries, bool)
    _refuse_value("tries", options.tries, whole and 1 <= options.tries <= 100, "a whole number from 1 to 100")
    _refuse_value("backoff_s", options.backoff_s, _seconds(options.backoff_s), "seconds, 0 or more")
    _refuse_value("wait_s", options.wait_s, options.wait_s is None or _seconds(options.wait_s), "seconds, or leave it")
    if options.max_time is not None and options.mode == "job":
        raise UserError("qpu.options max_time limits a session or a batch: add mode, or remove it")
    return options


def _seconds(value: Any) -> bool:
    seconds = finite(value)
    return seconds is not None and seconds >= 0


def _refuse_value(name: str, value: Any, good: bool, remedy: str) -> None:
    if not good:
        raise UserError(f"qpu.options {name} = {shortened(value)}: use {remedy}")


def _fake(name: str) -> Any:
    """Qiskit's fake backend of this name, made without making all the others."""
    provider = importlib.import_module("qiskit_ibm_runtime.fake_provider")
    made = {kind.backend_name: kind for kind in vars(provider).values() if getattr(kind, "backend_name", None)}
    if name not in made:
        raise UserError(f"unknown qpu.device '{name}': {nearest(name, made)}")
    return made[name]()


def _real(name: str, options: Options) -> Any:
    """The backend of this name, of the account that the user has saved."""
    if not name:
        raise UserError(
            "qpu.backend runtime needs qpu.device: the name of a backend, or of a simulated one, such as fake_manila"
        )
    try:
        service = _runtime().QiskitRuntimeService(name=options.account, instance=options.instance)
    except Exception as error:
        saved = f"account {options.account}" if options.account else "account"
        if type(error).__name__ == "AccountNotFoundError":
            raise UserError(f"qpu.backend runtime finds no saved {saved}: {SAVE}") from None
        raise UserError(f"qpu.backend runtime cannot use the saved {saved} ({type(error).__name__}): {SAVE}") from None
    try:
        return service.backend(name)
    except Exception as error:
        known = _names(service)
        hint = nearest(name, known) if known else f"{type(error).__name__} from the service"
        raise UserError(f"qpu.device = '{name}' is not a backend of the saved account: {hint}") from None


def _names(service: Any) -> list[str]:
    try:
        return [backend.name for backend in service.backends()]
    except Exception:
        return []


def _shot_us(circuit: Any, backend: Any) -> float | None:
    """Microseconds of one shot: the circuit by the target's durations, and the delay before the next."""
    try:
        duration_s = circuit.estimate_duration(backend.target)
    except Exception:  # a gate without a duration, or a Qiskit without the method
        return None
    delay_s = getattr(backend, "default_rep_delay", None) or 0.0
    return MICROSECONDS * float(duration_s + delay_s)


def _frequencies(bytes_KNJ: Any, num_bits: int) -> Array:
    """p_KS of N shots' bits, packed in bytes with the most significant first.

    >>> _frequencies(np.array([[[1], [3], [3], [0]]], dtype=np.uint8), 2).tolist()
    [[0.25, 0.25, 0.0, 0.5]]
    """
    num_shots, num_bytes = bytes_KNJ.shape[-2:]
    weight_J = 256 ** np.arange(num_bytes)[::-1]
    state_KN = (bytes_KNJ.reshape(-1, num_shots, num_bytes).astype(np.int64) * weight_J).sum(axis=-1)
    return np.stack([np.bincount(state_N, minlength=2**num_bits) for state_N in state_KN]) / num_shots


def _ended(job: Any) -> bool:
    """Whether a job will not give a result any more; where nobody can say, it may."""
    try:
        return bool(job.in_final_state())
    except Exception:
        return False


def _quietly(action: Callable[[], Any]) -> None:
    """What is polite but cannot be helped when it fails."""
    with contextlib.suppress(Exception):
        action()
