"""Gate layouts as data: an ansatz is a function (n, L) -> list of gates, compiled to a flat program.

A gate is a one-qubit gate on a target wire, with or without a control wire; its angles are taken from
theta_P in the order of the list. Wire 0 is the most significant bit of a basis state.

    u3(t, p, l) = [[cos t/2, -e^{il} sin t/2], [e^{ip} sin t/2, e^{i(p+l)} cos t/2]]    (arXiv 2407.06103 code)
    rx, ry, rz(t) = exp(-i t/2 X, Y, Z)        phase(t) = diag(1, e^{it})
    h = (X + Z)/sqrt(2)                        x, y, z = X, Y, Z
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.config.stages import Circuit
from distqtrl.errors import UserError, lookup


class Kind(NamedTuple):
    """What a gate's kind says about it.

    ``shifts`` has one entry per angle: how many shifted circuits the parameter-shift rule needs when the gate is
    controlled. 2: the controlled generator has one frequency (eigenvalues 0, 1); 4: two (eigenvalues 0, +-1/2).
    Without a control every angle needs 2. ``real``: the matrix is.
    """

    shifts: tuple[int, ...]
    real: bool = False


KINDS = {
    "u3": Kind((4, 2, 2)),
    "rx": Kind((4,)),
    "ry": Kind((4,), real=True),
    "rz": Kind((4,)),
    "phase": Kind((2,)),
    "h": Kind((), real=True),
    "x": Kind((), real=True),
    "y": Kind(()),
    "z": Kind((), real=True),
}
CODES = {name: code for code, name in enumerate(KINDS)}


class Gate(NamedTuple):
    """A one-qubit gate on ``target``; applied where ``control`` is 1, or always when control is None."""

    kind: str
    target: int
    control: int | None = None


@dataclass(frozen=True)
class Program:
    """A circuit as flat arrays, one entry per gate (G gates); control -1 means none.

    ``kind_G`` holds CODES, ``angle_G`` the index of a gate's first angle in theta_P.
    """

    num_qubits: int
    num_angles: int
    gates: tuple[Gate, ...]
    kind_G: npt.NDArray[np.int64]
    target_G: npt.NDArray[np.int64]
    control_G: npt.NDArray[np.int64]
    angle_G: npt.NDArray[np.int64]

    @property
    def real(self) -> bool:
        """Whether every gate's matrix is real; the state then is."""
        return all(KINDS[gate.kind].real for gate in self.gates)


def u3_cu3_ring(num_qubits: int, layers: int) -> list[Gate]:
    """U3 on every wire, then CU3 on (0,1), (1,2), ..., (n-1,0): 6nL angles, the QTRL ansatz (arXiv 2407.06103).

    One wire has no ring: 3L angles.
    """
    layer = [Gate("u3", wire) for wire in range(num_qubits)]
    if num_qubits > 1:
        layer += [Gate("u3", (wire + 1) % num_qubits, wire) for wire in range(num_qubits)]
    return layer * layers


def ry_cnot(num_qubits: int, layers: int) -> list[Gate]:
    """RY on every wire, then CNOT on (0,1), (1,2), ..., (n-2,n-1): nL angles."""
    return (_each(num_qubits, "ry") + _chain(num_qubits, "x")) * layers


def ry_cnot_ring(num_qubits: int, layers: int) -> list[Gate]:
    """``ry_cnot`` with one more CNOT on (n-1,0): nL angles, the ansatz of QT-LSTM (arXiv 2407.08617)."""
    closing = [Gate("x", 0, num_qubits - 1)] if num_qubits > 1 else []
    return (_each(num_qubits, "ry") + _chain(num_qubits, "x") + closing) * layers


def ry_rz_cz(num_qubits: int, layers: int) -> list[Gate]:
    """RY and RZ on every wire, then CZ on (0,1), (1,2), ..., (n-2,n-1): 2nL angles, hardware-efficient."""
    return (_each(num_qubits, "ry") + _each(num_qubits, "rz") + _chain(num_qubits, "z")) * layers


def product(num_qubits: int, layers: int) -> list[Gate]:
    """U3 on every wire and no entangler: 3nL angles, a control without correlations between qubits."""
    return _each(num_qubits, "u3") * layers


def _each(num_qubits: int, kind: str) -> list[Gate]:
    return [Gate(kind, wire) for wire in range(num_qubits)]


def _chain(num_qubits: int, kind: str) -> list[Gate]:
    return [Gate(kind, wire + 1, wire) for wire in range(num_qubits - 1)]


ANSATZE: dict[str, Callable[[int, int], list[Gate]]] = {
    "u3_cu3_ring": u3_cu3_ring,
    "ry_cnot": ry_cnot,
    "ry_cnot_ring": ry_cnot_ring,
    "ry_rz_cz": ry_rz_cz,
    "product": product,
}
OWN = "gates"  # the ansatz that is listed in circuit.gates


def build(circuit: Circuit, num_qubits: int) -> Program:
    """The program of a configuration; raises UserError for an ansatz that does not exist or a gate that does not fit.

    >>> build(Circuit(ansatz="u3_cu3_ring", layers=5), num_qubits=10).num_angles
    300
    >>> own = Circuit(ansatz="gates", gates=[["ry", 0], ["ry", 1], ["x", 1, 0]], layers=2)
    >>> build(own, num_qubits=2).num_angles
    4
    """
    if circuit.ansatz == OWN:
        gates = [Gate(*entry) for entry in circuit.gates] * circuit.layers
        if not gates:
            raise UserError('circuit.ansatz = gates needs circuit.gates, one layer as [["ry", 0], ["x", 1, 0], ...]')
        own = program(num_qubits, gates)
        if not own.num_angles:
            raise UserError('circuit.gates has no angle, so nothing would be trained: add a gate such as ["ry", 0]')
        return own
    if circuit.gates:
        raise UserError(f"circuit.gates is only read with circuit.ansatz = gates, not with '{circuit.ansatz}'")
    known = {**ANSATZE, OWN: lambda n, layers: []}
    return program(num_qubits, lookup("ansatz", circuit.ansatz, known)(num_qubits, circuit.layers))


def program(num_qubits: int, gates: Sequence[Gate]) -> Program:
    """The flat program of a list of gates; raises UserError for a gate that does not fit the wires."""
    angle, first = 0, []
    for gate in gates:
        wires = {gate.target} if gate.control is None else {gate.target, gate.control}
        kind = lookup("gate", gate.kind, KINDS)
        if not all(0 <= w < num_qubits for w in wires) or gate.target == gate.control:
            raise UserError(
                f"gate {list(gate)} (kind, target, control) does not fit {num_qubits} wires, numbered from 0"
            )
        first.append(angle)
        angle += len(kind.shifts)
    return Program(
        num_qubits,
        angle,
        tuple(gates),
        _ints(CODES[g.kind] for g in gates),
        _ints(g.target for g in gates),
        _ints(-1 if g.control is None else g.control for g in gates),
        _ints(first),
    )


def _ints(values: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.array(list(values), dtype=np.int64)
