"""Qiskit Aer as the device: the ideal circuit, or with noise the pulses that a QPU would run (see ``pulses``)."""

import logging
from typing import Any

import numpy as np

from distqtrl.circuit.ansatz import Program
from distqtrl.circuit.device import Device
from distqtrl.circuit.gates import Array
from distqtrl.circuit.memory import machine_memory, refuse_memory
from distqtrl.circuit.noise import with_backend, with_file
from distqtrl.circuit.pulses import Compiled, ideal, pulsed
from distqtrl.circuit.statevector import sampled
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError, nearest

METHODS = ("statevector", "density_matrix")  # Aer's others cannot turn by any angle
ELSEWHERE = {  # options of Aer that have their own place
    "method": "set qpu.device",
    "noise_model": "set qpu.noise",
    "shots": "set qpu.shots",
    "seed_simulator": "set train.seed",
    "precision": "it is always double",
    "max_parallel_threads": "it is always 1, every rank hosts one simulator",
}
SPLIT = ("blocking_enable", "blocking_qubits", "chunk_swap_buffer_qubits", "accept_distributed_results")
SPEED = {"runtime_parameter_bind_enable": True}  # 252 circuits of 6 qubits: 21 instead of 48 ms
FUSION = {"fusion_threshold": 1, "fusion_max_qubit": 2}  # Aer's own would not fuse below 7 qubits: 3 instead of 11 ms
TRAJECTORY = 4096  # entries of a density matrix that cost as much as one shot's trajectory, measured at 8 to 10 qubits
JOB = 2**26  # bytes; Aer keeps the states of all of a job's circuits until it ends


class Aer(Device):
    """The device ``aer``: ``settings.device`` is a method of AerSimulator, ``settings.noise`` a backend or a file.

    Without ``device`` the state is a statevector, or with noise a density matrix; with noise, few shots and many
    qubits it is a statevector again, one random trajectory per shot, which is cheaper there.

    Raises UserError for packages that are missing, for noise, methods and options that do not exist or do not fit
    each other or the circuit, and for a state that does not fit this machine's memory.
    """

    def __init__(self, program: Program, settings: Qpu) -> None:
        refuse(settings, "aer", ("precision",))
        self.program, self.shots = program, settings.shots
        self._compiled = _compiled(program, settings)
        method = _method(settings, self._compiled)
        num_qubits = self._compiled.circuit.num_qubits
        state_bytes = 16.0 * (4 if method == "density_matrix" else 2) ** num_qubits
        who = f"qpu.backend aer, {method} of {num_qubits} qubits,"
        refuse_memory(program, state_bytes, who, machine_memory())
        self._batch = max(1, int(JOB // state_bytes))
        self._trajectories = self._compiled.noise is not None and method != "density_matrix"
        self._compiled.measure(sampled=self._trajectories)
        self._simulator = _simulator(settings, method, self._compiled.noise, self._trajectories)
        self._try_out(settings)

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS (float64) of K parameter sets: exact, or with shots relative frequencies, drawn from seeds_K.

        Exact ones hold the noise and the confusion of readout. Shots are drawn from them, where Aer would draw from
        the same distribution: an Aer job has one seed for all its circuits, and sets must not depend on the others
        in their batch. Trajectories have no exact distribution, so there every set is a job, with its own seed.

        Raises RuntimeError when Aer fails.
        """
        if self._trajectories:
            rows = zip(theta_KP, seeds_K, strict=True)
            return np.concatenate([self._counted(theta_P, self.shots or 1, seed) for theta_P, seed in rows])
        starts = range(0, len(theta_KP), self._batch)
        p_KS = np.concatenate([self._exact(theta_KP[first : first + self._batch]) for first in starts])
        p_KS = _read_out(p_KS, self._compiled.confusion_W22)
        return p_KS if self.shots is None else sampled(p_KS, self.shots, seeds_K)

    def _exact(self, theta_KP: Array) -> Array:
        result = self._result(theta_KP, shots=1)
        p_KS = np.stack([result.data(k)["probabilities"] for k in range(len(result.results))])
        return np.broadcast_to(p_KS, (len(theta_KP), p_KS.shape[1]))  # one circuit stands for all without an angle

    def _counted(self, theta_P: Array, shots: int, seed: int) -> Array:
        counts = self._result(theta_P[None], shots=shots, seed_simulator=seed).data(0)["counts"]
        p_KS = np.zeros((1, 2**self.program.num_qubits))
        for state, count in counts.items():
            p_KS[0, int(state, 16)] = count / shots
        return p_KS

    def _result(self, theta_KP: Array, **options: Any) -> Any:
        """Aer's result of one job: one circuit per parameter set, or a single one when no angle is left."""
        compiled = self._compiled
        binds = compiled.binds(theta_KP)
        result = self._simulator.run(compiled.circuit, parameter_binds=[binds] if binds else None, **options).result()
        if not result.success:
            raise RuntimeError(" ".join([str(result.status), *(str(r.status) for r in result.results[:1])]))
        if len(result.results) != (len(theta_KP) if binds else 1):
            raise RuntimeError(f"Aer returned {len(result.results)} results for {len(theta_KP)} circuits")
        return result

    def _try_out(self, settings: Qpu) -> None:
        """One circuit, as Aer looks at the values of its options only when it runs one."""
        logging.getLogger("qiskit_aer").setLevel(logging.CRITICAL)  # it would print what is raised here, in other words
        theta_KP = np.zeros((1, self.program.num_angles))
        try:
            self._result(theta_KP, shots=1)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"qpu.backend aer cannot run with qpu.options {settings.options}: {reason}") from None


def _compiled(program: Program, settings: Qpu) -> Compiled:
    try:
        import qiskit_aer  # noqa: F401
    except ImportError:
        raise UserError("qpu.backend aer needs Qiskit Aer: pip install 'distqtrl[aer]'") from None
    noise = settings.noise
    if noise is None:  # a density matrix has no cu
        return pulsed(program) if settings.device == "density_matrix" else ideal(program)
    return with_file(program, noise) if noise.endswith(".json") else with_backend(program, noise)


def _method(settings: Qpu, compiled: Compiled) -> str:
    noisy, shots, wanted = compiled.noise is not None, settings.shots, settings.device
    if wanted is None:
        cheaper = not shots or 4**compiled.circuit.num_qubits <= TRAJECTORY * shots
        return "density_matrix" if noisy and cheaper else "statevector"
    if wanted not in METHODS:
        methods = " or ".join(METHODS)
        raise UserError(f"qpu.device = '{wanted}' is not a method of qpu.backend aer for these circuits: use {methods}")
    if noisy and not shots and wanted != "density_matrix":
        raise UserError(f"qpu.device = {wanted} is exact only without noise: use density_matrix, or set qpu.shots")
    return wanted


def _simulator(settings: Qpu, method: str, noise: Any, trajectories: bool) -> Any:
    from qiskit_aer import AerSimulator

    known = [name for name, _ in AerSimulator().options.items() if name not in (*ELSEWHERE, *SPLIT)]
    for name in settings.options:
        if name in SPLIT:
            raise UserError(
                f"qpu.options {name}: a state that is split over MPI ranks would give each of them only a slice of the "
                "probabilities: remove it, every rank hosts a whole simulator"
            )
        if name in ELSEWHERE:
            raise UserError(f"qpu.options {name}: remove it, {ELSEWHERE[name]}")
        if name not in known:
            raise UserError(f"qpu.options: AerSimulator has no option '{name}': {nearest(name, known)}")
    ours = {} if trajectories else SPEED
    fusion = FUSION if method == "density_matrix" else {}
    try:
        return AerSimulator(
            method=method, noise_model=noise, max_parallel_threads=1, **{**ours, **fusion, **settings.options}
        )
    except Exception as error:
        raise UserError(f"qpu.options {settings.options}: {' '.join(str(error).split())}") from None


def _read_out(p_KS: Array, confusion_W22: Array | None) -> Array:
    """p_KS as it is read: each wire's confusion, exactly."""
    if confusion_W22 is None:
        return p_KS
    shape = p_KS.shape
    for wire, confusion_22 in enumerate(confusion_W22):
        p_KS = np.einsum("katb,tr->karb", p_KS.reshape(shape[0], 2**wire, 2, -1), confusion_22)
    return p_KS.reshape(shape)
