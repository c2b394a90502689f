"""A program as a Qiskit circuit: our gates as Aer runs them, or the pulses that a superconducting QPU would run.

With noise, gates are written as what such QPUs run: sx, x and cx, which are noisy, and rz, which is not, as it only
turns the frame of later pulses (McKay et al., arXiv 1612.00858):

    u3(t, p, l) = rz(p + pi) sx rz(t + pi) sx rz(l)  up to a phase,      controlled rotations: see ``decomposition``

The rz's of a wire are merged, pass the controls of cx, and are dropped where no pulse follows. So every angle stays
an affine function of theta_P, the pulses do not depend on values, and a circuit is compiled once.
"""

from dataclasses import dataclass, field
from math import pi
from typing import Any

import numpy as np

from distqtrl.circuit.ansatz import KINDS, Gate, Program
from distqtrl.circuit.decomposition import decomposed
from distqtrl.circuit.gates import Array

IDEAL = {"u3": "u", "phase": "p"}  # our kind -> Qiskit's name, where they differ


@dataclass
class Compiled:
    """A circuit with one Qiskit parameter per angle_J = angle_JP @ (theta_P, 1), and where its wires are."""

    circuit: Any
    parameters: list[Any]
    angle_JP: Array
    qubit_W: list[int]
    noise: Any = None  # a NoiseModel, or None when no gate is noisy
    confusion_W22: Array | None = None  # probability of what is read, by wire, truth and what is read

    def measure(self, sampled: bool) -> None:
        """End the circuit with what is wanted of it; the first qubit that Aer is given is the last bit."""
        n = len(self.qubit_W)
        if not sampled:
            self.circuit.save_probabilities(self.qubit_W[::-1])
            return
        from qiskit.circuit import ClassicalRegister

        self.circuit.add_register(ClassicalRegister(n))
        self.circuit.measure(self.qubit_W[::-1], range(n))
        if self.confusion_W22 is not None:
            for qubit, confusion_22 in zip(self.qubit_W, self.confusion_W22, strict=True):
                self.noise.add_readout_error(confusion_22, [qubit])

    def binds(self, theta_KP: Array) -> dict[Any, list[float]]:
        """The K values of every parameter that is still in the circuit."""
        angle_JK = self.angle_JP[:, :-1] @ theta_KP.T + self.angle_JP[:, -1:]
        left = self.circuit.parameters
        return {p: angle_K.tolist() for p, angle_K in zip(self.parameters, angle_JK, strict=True) if p in left}


def ideal(program: Program) -> Compiled:
    """The program as Aer's own gates."""
    return circuit_of(program, _gates(program))


@dataclass
class Operation:
    """A gate by its Qiskit name; an angle is the row (coefficients of theta_P, constant)."""

    name: str
    wires: tuple[int, ...]
    angles: list[Array] = field(default_factory=list)


def circuit_of(program: Program, operations: list[Operation]) -> Compiled:
    """Operations as a Qiskit circuit, with a parameter for every angle that depends on theta_P."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import Parameter

    circuit = QuantumCircuit(program.num_qubits)
    parameters: list[Any] = []
    rows: list[Array] = []
    for operation in operations:
        arguments: list[Any] = []
        for row in operation.angles:
            if row[:-1].any():
                parameters.append(Parameter(f"angle_{len(parameters)}"))
                rows.append(row)
            arguments.append(parameters[-1] if row[:-1].any() else float(row[-1]))
        getattr(circuit, operation.name)(*arguments, *operation.wires)
    angle_JP = np.array(rows).reshape(-1, program.num_angles + 1)
    return Compiled(circuit, parameters, angle_JP, list(range(program.num_qubits)))


def _angles(program: Program) -> list[tuple[Gate, list[Array]]]:
    """Every gate with its angles as rows."""
    rows = np.eye(program.num_angles, program.num_angles + 1)
    firsts = zip(program.gates, program.angle_G.tolist(), strict=True)
    return [(gate, list(rows[first : first + len(KINDS[gate.kind].shifts)])) for gate, first in firsts]


def _gates(program: Program) -> list[Operation]:
    """The program as Aer's own gates; a control on anything but x, y and z is a cu.

    Aer 0.18 takes the parameters of Qiskit's crx, cry, crz and cp for 0, without a word.
    """
    return [
        Operation(IDEAL.get(gate.kind, gate.kind), (gate.target,), angles)
        if gate.control is None
        else _controlled(gate.kind, gate.control, gate.target, angles, program)
        for gate, angles in _angles(program)
    ]


def _controlled(kind: str, control: int, target: int, angles: list[Array], program: Program) -> Operation:
    if kind in ("x", "y", "z"):
        return Operation(f"c{kind}", (control, target))
    turn = pi * np.eye(program.num_angles + 1)[-1]
    zero, t = 0 * turn, angles[0] if angles else turn
    arguments = {  # u3's, and a phase of the control
        "u3": [*angles, zero],
        "rx": [t, -turn / 2, turn / 2, zero],
        "ry": [t, zero, zero, zero],
        "rz": [zero, zero, t, -t / 2],
        "phase": [zero, zero, t, zero],
        "h": [turn / 2, zero, turn, zero],
    }
    return Operation("cu", (control, target), arguments[kind])


class _Pulses:
    """A decomposed program as pulses; ``frame_WP`` holds the rz that each wire's next pulse will see."""

    def __init__(self, program: Program, virtual: str = "rz") -> None:
        self.operations: list[Operation] = []
        self._virtual = virtual
        self._frame_WP = np.zeros((program.num_qubits, program.num_angles + 1))
        self._turn = pi * np.eye(program.num_angles + 1)[-1]
        for gate, angles in _angles(program):
            if gate.control is None:
                self._single(gate.kind, gate.target, angles)
            else:
                self._controlled(gate.kind, gate.control, gate.target)

    def _rz(self, wire: int, angle: Array) -> None:
        self._frame_WP[wire] += angle

    def _pulse(self, name: str, *wires: int) -> None:
        target = wires[-1]  # rz passes a cx's control
        if self._frame_WP[target].any():
            self.operations.append(Operation(self._virtual, (target,), [self._frame_WP[target].copy()]))
            self._frame_WP[target] = 0
        self.operations.append(Operation(name, wires))

    def _u3(self, wire: int, t: Array, p: Array, l: Array) -> None:  # noqa: E741
        self._rz(wire, l)
        self._pulse("sx", wire)
        self._rz(wire, t + self._turn)
        self._pulse("sx", wire)
        self._rz(wire, p + self._turn)

    def _single(self, kind: str, wire: int, angles: list[Array]) -> None:
        turn = self._turn
        match kind:
            case "u3":
                self._u3(wire, *angles)
            case "rx":
                self._u3(wire, angles[0], -turn / 2, turn / 2)
            case "ry":
                self._u3(wire, angles[0], 0 * turn, 0 * turn)
            case "rz" | "phase":
                self._rz(wire, angles[0])
            case "h":
                self._rz(wire, turn / 2)
                self._pulse("sx", wire)
                self._rz(wire, turn / 2)
            case "x":
                self._pulse("x", wire)
            case "y":
                self._rz(wire, turn)
                self._pulse("x", wire)
            case "z":
                self._rz(wire, turn)

    def _controlled(self, kind: str, control: int, target: int) -> None:
        turn = self._turn
        match kind:
            case "h":  # ry(-pi/4) x ry(pi/4)
                self._single("ry", target, [turn / 4])
                self._pulse("cx", control, target)
                self._single("ry", target, [-turn / 4])
            case "x":
                self._pulse("cx", control, target)
            case "y":  # s x s^dagger
                self._rz(target, -turn / 2)
                self._pulse("cx", control, target)
                self._rz(target, turn / 2)
            case "z":
                self._single("h", target, [])
                self._pulse("cx", control, target)
                self._single("h", target, [])


def pulsed(program: Program, virtual: str = "rz") -> Compiled:
    """The program as pulses; ``virtual`` is Qiskit's name of the turn without error, rz or p."""
    parts, spread_DP = decomposed(program)
    compiled = circuit_of(parts, _Pulses(parts, virtual).operations)
    compiled.angle_JP = np.column_stack([compiled.angle_JP[:, :-1] @ spread_DP, compiled.angle_JP[:, -1]])
    return compiled
