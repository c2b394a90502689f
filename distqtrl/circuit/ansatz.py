"""Gate layouts as data: an ansatz is a function (n, L) -> list of gates, compiled to a flat program.

A gate is a one-qubit gate on a target wire, with or without a control wire; its angles are taken from
theta_P in the order of the list. Wire 0 is the most significant bit of a basis state.

    u3(t, p, l) = [[cos t/2, -e^{il} sin t/2], [e^{ip} sin t/2, e^{i(p+l)} cos t/2]]    (arXiv 2407.06103 code)
    ry(t)       = [[cos t/2, -sin t/2], [sin t/2, cos t/2]]
    x           = [[0, 1], [1, 0]]
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.config import lookup

NUM_ANGLES = {"u3": 3, "ry": 1, "x": 0}
KINDS = tuple(NUM_ANGLES)


class Gate(NamedTuple):
    """A one-qubit gate on ``target``; applied where ``control`` is 1, or always when control is None."""

    kind: str
    target: int
    control: int | None = None


@dataclass(frozen=True)
class Program:
    """A circuit as flat arrays, one entry per gate (G gates); control -1 means none.

    ``angle_G`` is the index of a gate's first angle in theta_P.
    """

    num_qubits: int
    num_angles: int
    kind_G: npt.NDArray[np.int64]
    target_G: npt.NDArray[np.int64]
    control_G: npt.NDArray[np.int64]
    angle_G: npt.NDArray[np.int64]


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
    layer = [Gate("ry", wire) for wire in range(num_qubits)]
    layer += [Gate("x", wire + 1, wire) for wire in range(num_qubits - 1)]
    return layer * layers


ANSATZE: dict[str, Callable[[int, int], list[Gate]]] = {"u3_cu3_ring": u3_cu3_ring, "ry_cnot": ry_cnot}


def build(name: str, num_qubits: int, layers: int) -> Program:
    """The program of a named ansatz; raises UserError for a name that does not exist.

    >>> build("u3_cu3_ring", num_qubits=10, layers=5).num_angles
    300
    """
    return program(num_qubits, lookup("ansatz", name, ANSATZE)(num_qubits, layers))


def program(num_qubits: int, gates: list[Gate]) -> Program:
    """The flat program of a list of gates; raises ValueError for a gate that does not fit the wires."""
    angle, first = 0, []
    for gate in gates:
        wires = {gate.target} if gate.control is None else {gate.target, gate.control}
        if gate.kind not in NUM_ANGLES or not all(0 <= w < num_qubits for w in wires) or gate.target == gate.control:
            raise ValueError(f"{gate} is not a gate on {num_qubits} wires; kinds are {', '.join(KINDS)}")
        first.append(angle)
        angle += NUM_ANGLES[gate.kind]
    return Program(
        num_qubits,
        angle,
        np.array([KINDS.index(g.kind) for g in gates], dtype=np.int64),
        np.array([g.target for g in gates], dtype=np.int64),
        np.array([-1 if g.control is None else g.control for g in gates], dtype=np.int64),
        np.array(first, dtype=np.int64),
    )
