"""Noise of a QPU: a noise file of our own, or a fake backend of Qiskit's, with its couplings and calibration.

On a fake backend the pulses are routed and translated by Qiskit, once. Noise sits on gates; qubits that wait do not
decay.
"""

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from distqtrl.circuit.ansatz import Program
from distqtrl.circuit.gates import Array
from distqtrl.circuit.pulses import Compiled, pulsed
from distqtrl.config.values import Fraction, Rate, Stage
from distqtrl.errors import UserError, nearest, shortened
from distqtrl.files import reading

IMPROBABLE = 2e-8  # Aer itself leaves out the terms of an error below 1e-8
BACKENDS = (("FakeManilaV2", 5), ("FakeJakartaV2", 7), ("FakeGuadalupeV2", 16), ("FakeSherbrooke", 127))
Time = Annotated[float, Field(ge=0)]


class Depolarizing(Stage):
    """The probability that a gate replaces the state of its qubits by the maximally mixed one."""

    one_qubit: Fraction = 0.0
    two_qubit: Fraction = 0.0


class Readout(Stage):
    """The probabilities that a qubit in 0 is read as 1, and one in 1 as 0."""

    zero_to_one: Fraction = Field(0.0, alias="0to1")
    one_to_zero: Fraction = Field(0.0, alias="1to0")


class ThermalRelaxation(Stage):
    """Decay to 0 within T1 and of coherence within T2, for as long as a gate takes, in microseconds."""

    t1_us: Rate
    t2_us: Rate
    one_qubit_us: Time
    two_qubit_us: Time

    @model_validator(mode="after")
    def _physical(self) -> "ThermalRelaxation":
        if self.t2_us > 2 * self.t1_us:
            raise ValueError(f"t2_us = {self.t2_us:g} is more than 2 t1_us = {2 * self.t1_us:g}: lower it")
        return self


class Noise(Stage):
    """A noise file: the same errors on all qubits; a table that is left out means no such error."""

    depolarizing: Depolarizing | None = None
    readout: Readout | None = None
    thermal_relaxation: ThermalRelaxation | None = None


def with_file(program: Program, path: str) -> Compiled:
    """The circuit as pulses, with the errors of a noise file on all of its qubits; raises UserError for the file."""
    from qiskit_aer.noise import NoiseModel

    noise, compiled, model = _noise(Path(path)), pulsed(program), NoiseModel()
    model.add_all_qubit_quantum_error(_whole(_error(noise, 1)), ["sx", "x"])
    model.add_all_qubit_quantum_error(_whole(_error(noise, 2)), ["cx"])
    compiled.noise = None if model.is_ideal() else model
    if noise.readout is not None:
        up, down = noise.readout.zero_to_one, noise.readout.one_to_zero
        compiled.confusion_W22 = np.tile([[1 - up, up], [down, 1 - down]], (program.num_qubits, 1, 1))
    return compiled


def _noise(path: Path) -> Noise:
    try:
        values = reading.parsed(reading.text(path))
    except ValueError as error:
        raise UserError(f"cannot read qpu.noise {path}: {error}") from None
    if not isinstance(values, dict) or not values:
        raise UserError(f"qpu.noise {path} describes nothing: write some of the tables {', '.join(Noise.model_fields)}")
    try:
        return Noise.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"qpu.noise {path}: unknown key '{key}': {nearest(key, _keys())}") from None
        value = "" if first["type"] == "missing" else f" = {shortened(first['input'])}"
        raise UserError(f"qpu.noise {path}: {key}{value}: {first['msg'].removeprefix('Value error, ')}") from None


def _keys() -> list[str]:
    """Every key of a noise file."""
    tables: dict[str, type[Stage]] = {
        "depolarizing": Depolarizing,
        "readout": Readout,
        "thermal_relaxation": ThermalRelaxation,
    }
    keys = [f"{name}.{f.alias or key}" for name, table in tables.items() for key, f in table.model_fields.items()]
    return [*tables, *keys]


def _error(noise: Noise, num_qubits: int) -> Any:
    """A gate's error: depolarizing, then relaxation of each of its qubits."""
    from qiskit_aer.noise import depolarizing_error, thermal_relaxation_error

    probabilities, times = noise.depolarizing or Depolarizing(), noise.thermal_relaxation
    single = num_qubits == 1
    error = depolarizing_error(probabilities.one_qubit if single else probabilities.two_qubit, num_qubits)
    if times is None:
        return error
    duration_us = times.one_qubit_us if single else times.two_qubit_us
    relaxation = thermal_relaxation_error(times.t1_us, times.t2_us, duration_us)
    return error.compose(relaxation if single else relaxation.expand(relaxation))


def _whole(error: Any) -> Any:
    """The error without what is too improbable for Aer, which would leave it out and lose its probability."""
    from qiskit_aer.noise import QuantumError

    terms = [(c, p) for c, p in zip(error.circuits, error.probabilities, strict=True) if p > IMPROBABLE]
    total = sum(p for _, p in terms)
    return QuantumError([(c, p / total) for c, p in terms])


def with_backend(program: Program, name: str) -> Compiled:
    """The circuit routed on a fake backend, cut down to the qubits it uses: Aer is slow with 127 qubits' errors."""
    from qiskit import QuantumCircuit

    target = _backend(program, name).target
    compiled = routed(program, target, f"qpu.noise = {name}", _others(program, name))
    placed = [(step.operation, _at(compiled, step)) for step in compiled.circuit.data]
    used = sorted({*compiled.qubit_W, *(qubit for _, qubits in placed for qubit in qubits)})
    compiled.circuit = QuantumCircuit(len(used))
    for operation, qubits in placed:
        compiled.circuit.append(operation, [used.index(qubit) for qubit in qubits])
    compiled.qubit_W = [used.index(qubit) for qubit in compiled.qubit_W]
    compiled.noise, confusion = _measured(target, used, {operation.name for operation, _ in placed})
    compiled.confusion_W22 = confusion[compiled.qubit_W]
    return compiled


def routed(program: Program, target: Any, who: str, remedy: str) -> Compiled:
    """The circuit on the qubits, couplings and gates of a backend's target; raises UserError where Qiskit cannot."""
    from qiskit import transpile
    from qiskit.transpiler.exceptions import TranspilerError

    # rz, where a backend has none, would leave a phase that depends on all angles, and Qiskit then takes hours
    compiled = pulsed(program, "rz" if "rz" in target.operation_names else "p")
    try:
        compiled.circuit = transpile(compiled.circuit, target=target, optimization_level=3, seed_transpiler=0)
    except TranspilerError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{who}: Qiskit cannot route this circuit on it ({reason}): use {remedy}") from None
    compiled.qubit_W = compiled.circuit.layout.final_index_layout()
    return compiled


def _at(compiled: Compiled, step: Any) -> list[int]:
    """The qubits that an instruction of the circuit acts on."""
    return [compiled.circuit.find_bit(qubit).index for qubit in step.qubits]


def _backend(program: Program, name: str) -> Any:
    try:
        from qiskit_ibm_runtime import fake_provider
    except ImportError:
        raise UserError(f"qpu.noise {name} needs Qiskit's runtime: pip install 'distqtrl[aer]'") from None
    known = [key for key in dir(fake_provider) if key.startswith("Fake") and "Provider" not in key]
    if name not in known:
        raise UserError(f"qpu.noise = '{name}' is neither a fake backend nor a *.json file: {nearest(name, known)}")
    backend = getattr(fake_provider, name)()
    if backend.num_qubits < program.num_qubits:
        raise UserError(
            f"qpu.noise = {name} has {backend.num_qubits} qubits, the circuit has {program.num_qubits}: "
            f"use {_others(program, name)}"
        )
    return backend


def _others(program: Program, name: str) -> str:
    """What else could run a circuit of this size, for a message: a larger fake backend, or a noise file."""
    bigger = [other for other, size in BACKENDS if size >= program.num_qubits and other != name]
    return " or ".join([*bigger[:1], "a noise file (*.json)"])


def _measured(target: Any, used: list[int], names: set[str]) -> tuple[Any, Array]:
    """The backend's errors, as NoiseModel.from_backend makes them, of some qubits, numbered anew, and some gates."""
    from qiskit.transpiler import Target
    from qiskit_aer.noise import NoiseModel
    from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

    part = Target(dt=target.dt, qubit_properties=[target.qubit_properties[qubit] for qubit in used])
    for name in sorted({*names, "measure"}):
        placed = {at: facts for at, facts in target[name].items() if set(at) <= set(used)}
        renumbered = {tuple(used.index(qubit) for qubit in at): facts for at, facts in placed.items()}
        part.add_instruction(target.operation_from_name(name), renumbered, name=name)
    model, confusion = NoiseModel(), np.tile(np.eye(2), (len(used), 1, 1))
    with warnings.catch_warnings():  # as from_backend does
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="qiskit_aer.noise")
        for name, qubits, error in basic_device_gate_errors(target=part):
            model.add_quantum_error(_whole(error), name, qubits)
    for (qubit,), error in basic_device_readout_errors(target=part):
        confusion[qubit] = error.probabilities
    return None if model.is_ideal() else model, confusion
