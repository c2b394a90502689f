"""Any PennyLane device: its probabilities, and its exact gradients without PennyLane's silent fallback.

    v.p = <diag(v)>,   d(v.p)/d theta = 2 Re <v psi | d psi/d theta>

PennyLane's ``diff_method="best"`` ends at the parameter-shift rule, two circuits per angle or more, for ``probs`` on
the lightning devices, whose adjoint sweep knows expectation values only (pennylane-lightning issue 808). As a
gradient is wanted for one cotangent v_S at a time, it is the one of a diagonal observable: one sweep. Every method
is named, never "best", and compared with the shift rule before it is used.

Circuits are tapes that go straight to the device. A U3 is written as phase(p) RY(t) phase(l): that equals it exactly,
also under a control, and every device can differentiate its parts.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from distqtrl.circuit import shift
from distqtrl.circuit.ansatz import Gate, Program
from distqtrl.circuit.ansatz import program as compiled
from distqtrl.circuit.device import Device, Gradient
from distqtrl.circuit.gates import Array
from distqtrl.circuit.memory import machine_memory, refuse_memory
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError, nearest

DEFAULT = "default.qubit"
OPERATIONS: dict[str, tuple[str, str | None]] = {  # kind -> PennyLane's operation without and with a control
    "rx": ("RX", "CRX"),
    "ry": ("RY", "CRY"),
    "rz": ("RZ", "CRZ"),
    "phase": ("PhaseShift", "ControlledPhaseShift"),
    "h": ("Hadamard", None),  # generic: lightning writes CH as rotations, whose angles are not ours
    "x": ("PauliX", "CNOT"),
    "y": ("PauliY", "CY"),
    "z": ("PauliZ", "CZ"),
}
PARTS = {  # kind -> the operations that make it, in time order: their kind, and which of the gate's angles they take
    **{kind: ((kind, (0,)),) for kind in ("rx", "ry", "rz", "phase")},
    **{kind: ((kind, ()),) for kind in ("h", "x", "y", "z")},
    "u3": (("phase", (2,)), ("ry", (0,)), ("phase", (1,))),
}
OWNERS = {"wires": "the circuit", "shots": "qpu.shots", "seed": "train.seed"}  # options that other fields set
USELESS = {  # PennyLane's devices that run no qubits, no rotations, or nothing; not suggested
    *("default.gaussian", "default.qutrit", "default.qutrit.mixed", "default.clifford", "null.qubit"),
    "default.tensor",  # needs quimb
}
HELD = {"probabilities": 4, "adjoint": 10}  # states held at a time, measured
HELD_PER_OPERATION = 4  # by backprop
CLOSE = 1e-4  # of a gradient to the shift rule's, as seen in single precision


class PennyLane(Device):
    """A PennyLane device by its name in ``settings.device`` (none: default.qubit), made with ``settings.options``.

    ``exact`` is what the device offers, fastest first: backprop and adjoint on default.qubit, adjoint on lightning.*,
    backprop on default.mixed, nothing with shots. Shots of circuit k are drawn from seeds_K[k] where the device takes
    a seed; results of one that takes none cannot be reproduced. Making this object executes one circuit of one gate,
    so that what does not simulate or run qubits is refused; a two-qubit copy is asked for the gradients.

    Raises UserError for a device that is not installed, does not take the options, does not return the probabilities
    of all wires, makes wrong gradients, or whose states do not fit this machine.
    """

    def __init__(self, program: Program, settings: Qpu) -> None:
        refuse(settings, "pennylane", ("precision",))
        self._qml, self._settings = _pennylane(), settings
        self.program, self.shots, self._name = program, settings.shots, settings.device or DEFAULT
        self._refuse_settings()
        self._circuit = _Circuit(self._qml, program)
        self._numbers = (4 if "mixed" in self._name else 2) ** program.num_qubits
        self._refuse_memory("probabilities")
        self.device = self._made(program.num_qubits)
        self._seeded = "seed" in inspect.signature(type(self.device).__init__).parameters
        self._refuse_useless()
        self._routes = {} if self.shots else self._offered()
        self.exact: tuple[str, ...] = tuple(self._routes)

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of K parameter sets; with shots, relative frequencies."""
        if self.shots is None or not self._seeded:
            parts = shift.batches(len(theta_KP), self._numbers)
            return np.concatenate([_probabilities(self.device, self._circuit, theta_KP[k], self.shots) for k in parts])
        rows = zip(theta_KP, seeds_K, strict=True)
        devices = ((self._made(self.program.num_qubits, seed=seed), theta_P[None]) for theta_P, seed in rows)
        return np.concatenate([_probabilities(device, self._circuit, t, self.shots) for device, t in devices])

    def differentiable(self, theta_P: Array, method: str) -> tuple[Array, Gradient]:
        """p_S, and the function v_S -> d(v.p)/d theta_P, by one of the methods in ``exact``."""
        return self._routes[method].differentiable(self.device, self._circuit, theta_P)

    def _refuse_settings(self) -> None:
        options = self._settings.options
        if self._settings.noise is not None:
            raise UserError(
                f"qpu.noise = {self._settings.noise!r} is for qpu.backend aer; circuits of qpu.backend pennylane have "
                "no channels, also on default.mixed: remove it, or set qpu.backend to aer"
            )
        if self._name not in self._qml.plugin_devices:
            hint = nearest(self._name, self._qml.plugin_devices.keys() - USELESS)
            raise UserError(
                f"unknown qpu.device '{self._name}': {hint} (a plugin's devices appear once it is installed)"
            )
        for option in OWNERS.keys() & options.keys():
            raise UserError(f"qpu.options: '{option}' is set by {OWNERS[option]}: remove it")
        if options.get("mpi"):
            raise UserError("qpu.options: 'mpi' splits a state over the ranks, and each would get its slice: remove it")

    def _refuse_memory(self, method: str) -> None:
        needed = self._needed(method)
        refuse_memory(self.program, needed, f"qpu.device {self._name} with {method}", machine_memory())
        samples = 8.0 * (self.shots or 0) * self.program.num_qubits
        if samples > machine_memory():
            raise UserError(
                f"qpu.shots = {self.shots:,} on qpu.device {self._name} needs {samples / 2**30:,.0f} GiB, "
                f"{machine_memory() / 2**30:,.0f} GiB are there: lower qpu.shots, or use qpu.backend statevector"
            )

    def _needed(self, method: str) -> float:
        """About how many bytes the states need."""
        held = HELD_PER_OPERATION * len(self._circuit.operations) if method == "backprop" else HELD[method]
        return 16.0 * self._numbers * max(held, HELD["probabilities"])

    def _made(self, num_wires: int, **seed: int) -> Any:
        try:
            return self._qml.device(self._name, wires=num_wires, **seed, **self._settings.options)
        except Exception as error:
            options = f" with qpu.options {self._settings.options}" if self._settings.options else ""
            raise UserError(f"qpu.device {self._name}{options} cannot be made: {_line(error)}") from error

    def _refuse_useless(self) -> None:
        """Refuse a device that cannot flip wire 0, the most significant bit."""
        flip = _Circuit(self._qml, compiled(self.program.num_qubits, [Gate("x", 0)]))
        try:
            p_S = _probabilities(self.device, flip, np.empty((1, 0)), self.shots)[0]
        except Exception as error:
            raise UserError(f"qpu.device {self._name} returns no probabilities of all wires: {_line(error)}") from error
        if p_S.argmax() != 2 ** (self.program.num_qubits - 1):
            raise UserError(
                f"qpu.device {self._name} does not run circuits: a flipped qubit was not measured as flipped"
            )

    def _offered(self) -> dict[str, "Route"]:
        """The exact methods that the device offers, has memory for, and does right."""
        found: dict[str, Route] = {}
        for route in ROUTES:
            if route.method not in found and self._claims(route):
                found[route.method] = route
        asked = self._settings.gradient
        if asked in found or (asked == "auto" and found):
            smallest = asked if asked in found else min(found, key=self._needed)
            self._refuse_memory(smallest)
            for route in found.values():
                self._refuse_wrong(route)
        return {m: route for m, route in found.items() if self._needed(m) <= machine_memory()}

    def _claims(self, route: "Route") -> bool:
        config = self._qml.devices.ExecutionConfig(gradient_method=route.method)
        return bool(self.device.supports_derivatives(config, self._tape(route)))

    def _tape(self, route: "Route") -> Any:
        return self._circuit.tape([0.0] * self.program.num_angles, route.measurement)

    def _refuse_wrong(self, route: "Route") -> None:
        """Compare a method with the shift rule on a small copy of the device."""
        num = min(2, self.program.num_qubits)
        circuit = _Circuit(self._qml, compiled(num, _every_rotation(num)))
        theta_P = np.linspace(0.3, 6, circuit.program.num_angles)
        v_S = np.arange(2.0**num)
        angle_K, offset_K, weight_K = shift.rule(circuit.program)
        gradient_P = np.zeros_like(theta_P)
        try:
            device = self._made(num)
            p_KS = _probabilities(device, circuit, shift.shifted(theta_P, angle_K, offset_K))
            np.add.at(gradient_P, angle_K, weight_K * (p_KS @ v_S))
            _, gradient = route.differentiable(device, circuit, theta_P)
            wrong = not np.allclose(gradient(v_S), gradient_P, rtol=0, atol=CLOSE)
            if route.method == "adjoint":
                _adjoint(self.device, self._circuit, self._tape(route))
            reason = "differs from the parameter-shift rule"
        except Exception as error:
            wrong, reason = True, f"fails: {_line(error)}"
        if wrong:
            raise UserError(f"{route.method} of qpu.device {self._name} {reason}: use qpu.gradient parameter-shift")


def _pennylane() -> Any:
    try:
        return importlib.import_module("pennylane")
    except ImportError as error:
        raise UserError("qpu.backend pennylane needs PennyLane: pip install 'distqtrl[pennylane]'") from error


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _every_rotation(num_qubits: int) -> list[Gate]:
    """Gates that use each operation that has an angle; in reverse, as devices may order wires by appearance."""
    wires = range(num_qubits)[::-1]
    single = [Gate(kind, wire) for wire in wires for kind in ("h", "u3", "rx", "rz")]
    return single + [Gate(kind, 0, wires[0]) for kind in ("u3", "rx", "rz") if num_qubits > 1]


class Operation(NamedTuple):
    """One PennyLane operation: its class, the index in theta_P of its angle if it has one, its wires."""

    make: Any
    angles: tuple[int, ...]
    wires: tuple[int, ...]


class _Circuit:
    """A program as PennyLane's operations; ``order_P`` has their angles' indices in theta_P."""

    def __init__(self, qml: Any, program: Program) -> None:
        self.qml, self.program, self.wires = qml, program, range(program.num_qubits)
        gates = zip(program.gates, program.angle_G.tolist(), strict=True)
        self.operations = [operation for gate, first in gates for operation in _operations(qml, gate, first)]
        self.order_P = [i for operation in self.operations for i in operation.angles]

    def tape(self, angles: Any, measurement: str, v_S: Array | None = None, shots: int | None = None) -> Any:
        """The circuit at angles (numbers, arrays, tensors); measured: probs, density, state or diagonal, <diag(v)>."""
        operations = [make(*(angles[i] for i in index), wires=wires) for make, index, wires in self.operations]
        if measurement == "probs":
            measured = self.qml.probs(wires=self.wires)
        elif measurement == "density":
            measured = self.qml.density_matrix(wires=self.wires)
        elif measurement == "state":
            measured = self.qml.state()
            # the wires of a state are those of its operations, in order of appearance
            operations = [*map(self.qml.Identity, self.wires), *operations]
        else:
            measured = self.qml.expval(self._diagonal(np.ones(2 ** len(self.wires)) if v_S is None else v_S))
        trainable = range(len(self.order_P))
        return self.qml.tape.QuantumScript(operations, [measured], shots=shots, trainable_params=trainable)

    def _diagonal(self, v_S: Array) -> Any:
        sparse = importlib.import_module("scipy.sparse")
        size = len(v_S)
        matrix = sparse.csr_matrix((v_S.astype(np.complex128), np.arange(size), np.arange(size + 1)))
        return self.qml.SparseHamiltonian(matrix, wires=self.wires)

    def ordered(self, values: Any) -> Array:
        """gradient_P of the derivatives in the order of the operations."""
        gradient_P = np.empty(len(self.order_P))
        gradient_P[self.order_P] = np.real(values).reshape(-1)
        return gradient_P


def _operations(qml: Any, gate: Gate, first: int) -> list[Operation]:
    controlled = gate.control is not None
    wires = (gate.target,) if gate.control is None else (gate.control, gate.target)
    return [
        Operation(_operation(qml, kind, controlled), tuple(first + i for i in angles), wires)
        for kind, angles in PARTS[gate.kind]
    ]


def _operation(qml: Any, kind: str, controlled: bool) -> Any:
    name = OPERATIONS[kind][controlled]
    if name is not None:
        return getattr(qml, name)
    return lambda wires: qml.ops.op_math.Controlled(getattr(qml, OPERATIONS[kind][0])(wires[1]), wires[0])


def _probabilities(device: Any, circuit: _Circuit, theta_KP: Array, shots: int | None = None) -> Array:
    """p_KS by one tape that holds all K values of every angle; a device that cannot take them gets K tapes."""
    angles = theta_KP.T if len(theta_KP) > 1 else theta_KP[0]  # default.mixed fails at K = 1 (PennyLane 0.45)
    tape = circuit.tape(angles, "probs", shots=shots)
    (p,) = circuit.qml.execute([tape], device, diff_method=None)
    shape = len(theta_KP), 2 ** len(circuit.wires)
    return np.array(np.broadcast_to(p, shape), dtype=np.float64)  # a circuit without angles is executed once


def _backprop(device: Any, circuit: _Circuit, theta_P: Array) -> tuple[Array, Gradient]:
    """Through torch's graph of the simulation; default.mixed takes a root of p, whose slope at p = 0 is not finite."""
    mixed = "mixed" in device.name
    with _double_precision(), torch.enable_grad():  # the caller may be a function of torch's own
        theta = torch.tensor(theta_P, requires_grad=True)
        tape = circuit.tape(theta.unbind(), "density" if mixed else "probs")
        (measured,) = circuit.qml.execute([tape], device, diff_method="backprop", interface="torch")
        p_S = measured.diagonal().real if mixed else measured

    def gradient_of(v_S: Array) -> Array:
        if not len(theta_P):
            return np.empty(0)
        (gradient_P,) = torch.autograd.grad(p_S, theta, torch.from_numpy(v_S), retain_graph=True)
        gradient: Array = gradient_P.numpy()
        return gradient

    return p_S.detach().numpy(), gradient_of


@contextmanager
def _double_precision() -> Iterator[None]:
    """In here torch makes float64: PennyLane makes tensors without a type, and default.mixed loses half the digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _by_state(device: Any, circuit: _Circuit, theta_P: Array) -> tuple[Array, Gradient]:
    """By the adjoint sweep of a device that starts it at any cotangent of the state: 2 v psi*."""
    tapes, config = _adjoint(device, circuit, circuit.tape(theta_P.tolist(), "state"))
    psi_S = np.asarray(device.execute(tapes, config)[0], dtype=np.complex128)

    def gradient(v_S: Array) -> Array:
        return circuit.ordered(device.compute_vjp(tapes, [2 * v_S * psi_S.conj()], config)[0])

    return psi_S.real**2 + psi_S.imag**2, gradient


def _by_observable(device: Any, circuit: _Circuit, theta_P: Array) -> tuple[Array, Gradient]:
    """By the adjoint sweep of a device that starts it at observables only: diag(v)."""

    def gradient(v_S: Array) -> Array:
        tapes, config = _adjoint(device, circuit, circuit.tape(theta_P.tolist(), "diagonal", v_S))
        return circuit.ordered(device.compute_derivatives(tapes, config)[0])

    return _probabilities(device, circuit, theta_P[None])[0], gradient


def _adjoint(device: Any, circuit: _Circuit, tape: Any) -> tuple[Any, Any]:
    """The tape as the device wants it, and the configuration of its adjoint sweep."""
    wanted = circuit.qml.devices.ExecutionConfig(gradient_method="adjoint", use_device_jacobian_product=True)
    config = device.setup_execution_config(wanted, tape)
    tapes, _ = device.preprocess_transforms(config)([tape])
    if len(tapes) != 1 or len(tapes[0].trainable_params) != len(circuit.order_P):
        raise RuntimeError("the device rewrites the circuit in other angles")  # their derivatives are not ours
    return tapes, config


class Route(NamedTuple):
    """A way to a gradient: PennyLane's name of the method, what its circuit measures, and the function."""

    method: str
    measurement: str
    differentiable: Callable[[Any, _Circuit, Array], tuple[Array, Gradient]]


ROUTES = (  # fastest first; of one method, the first that the device claims is taken
    Route("backprop", "probs", _backprop),
    Route("adjoint", "state", _by_state),
    Route("adjoint", "diagonal", _by_observable),
)
