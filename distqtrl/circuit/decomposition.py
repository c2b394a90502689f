"""Controlled rotations as a device runs them: rotations of one qubit and CNOTs, each with an angle of its own.

Noise between the parts of a compiled gate changes how the result depends on the gate's angle (frequencies appear
that cancel without noise), so a shift rule for the whole gate is wrong there. Every part is a plain rotation whose
two-term rule holds for any noise that does not depend on angles; the chain rule adds the parts up.

    controlled ry(t): ry(t/2) cx ry(-t/2) cx                      controlled rx: the same with rz, between two h
    controlled phase(t): phase(t/2) on control and target, cx, phase(-t/2), cx
    controlled u3 = phase(p) ry(t) phase(l): phase((p+l)/2) on the control, phase((l-p)/2), cx, phase(-(p+l)/2),
                                             ry(-t/2), cx, ry(t/2), phase(p)              (as in OpenQASM's cu3)
"""

import numpy as np
import numpy.typing as npt

from distqtrl.circuit import ansatz
from distqtrl.circuit.ansatz import KINDS, Gate, Program

Array = npt.NDArray[np.float64]
Part = tuple[Gate, list[list[float]]]  # a gate, and each of its angles as weights of the whole gate's angles


def decomposed(program: Program) -> tuple[Program, Array]:
    """The program of the parts (D angles), and the matrix (D, P) from theta_P to their angles.

    >>> whole = ansatz.program(2, [Gate("ry", 1, 0)])
    >>> parts, spread_DP = decomposed(whole)
    >>> [gate.kind for gate in parts.gates], spread_DP.tolist()
    (['ry', 'x', 'ry', 'x'], [[0.5], [-0.5]])
    """
    gates, rows = [], []
    for gate, first in zip(program.gates, program.angle_G.tolist(), strict=True):
        for part, weights in _parts(gate):
            gates.append(part)
            for row in weights:
                spread_P = np.zeros(program.num_angles)
                spread_P[first : first + len(row)] = row
                rows.append(spread_P)
    return ansatz.program(program.num_qubits, gates), np.array(rows).reshape(len(rows), program.num_angles)


def _parts(gate: Gate) -> list[Part]:
    kind, t, c = gate
    num = len(KINDS[kind].shifts)
    if c is None or num == 0:
        return [(gate, np.eye(num).tolist())]
    cx: Part = (Gate("x", t, c), [])

    def turn(name: str, wire: int, *weights: float) -> Part:
        return Gate(name, wire), [list(weights)]

    if kind == "phase":
        return [turn("phase", c, 0.5), turn("phase", t, 0.5), cx, turn("phase", t, -0.5), cx]
    if kind == "u3":  # weights of t, p, l
        before = [turn("phase", c, 0, 0.5, 0.5), turn("phase", t, 0, -0.5, 0.5)]
        between = [turn("phase", t, 0, -0.5, -0.5), turn("ry", t, -0.5, 0, 0)]
        return [*before, cx, *between, cx, turn("ry", t, 0.5, 0, 0), turn("phase", t, 0, 1, 0)]
    axis = "ry" if kind == "ry" else "rz"
    rotation = [turn(axis, t, 0.5), cx, turn(axis, t, -0.5), cx]
    return rotation if kind != "rx" else [(Gate("h", t), []), *rotation, (Gate("h", t), [])]
