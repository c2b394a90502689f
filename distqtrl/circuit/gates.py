"""Matrices of a plan's gates from their angles, their generators and inverses; compiled."""

import numba
import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import CODES, KINDS
from distqtrl.circuit.plan import Plan

Array = npt.NDArray[np.float64]
Complexes = npt.NDArray[np.complex128]
U3, RX, RY, RZ, PHASE, H, X, Y = (CODES[kind] for kind in KINDS if kind != "z")  # in this order


@numba.njit()
def trigonometry(p: Plan, theta_P: Array) -> Array:  # pragma: no cover (compiled)
    """cos and sin (G, 6) of half the first angle (phase gates: the whole), and of u3's second and third angle."""
    trig_G = np.zeros((len(p.gate_G), 6))
    for g in range(len(p.gate_G)):
        code, first = p.gate_G[g].code, p.gate_G[g].angle
        if code > PHASE:  # no angle
            continue
        angle = theta_P[first] if code == PHASE else theta_P[first] / 2
        trig_G[g, 0], trig_G[g, 1] = np.cos(angle), np.sin(angle)
        if code == U3:
            trig_G[g, 2], trig_G[g, 3] = np.cos(theta_P[first + 1]), np.sin(theta_P[first + 1])
            trig_G[g, 4], trig_G[g, 5] = np.cos(theta_P[first + 2]), np.sin(theta_P[first + 2])
    return trig_G


@numba.njit()
def matrix(code: int, trig: Array, u: Complexes) -> None:  # pragma: no cover (compiled)
    """Fill a gate's matrix u (2, 2)."""
    c, s = trig[0], trig[1]
    if code == U3:
        left, right = trig[2] + 1j * trig[3], trig[4] + 1j * trig[5]
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -right * s, left * s, left * right * c
    elif code == RX:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -1j * s, -1j * s, c
    elif code == RY:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -s, s, c
    elif code == RZ:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c - 1j * s, 0, 0, c + 1j * s
    elif code == PHASE:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 1, 0, 0, c + 1j * s
    elif code == H:
        r = np.sqrt(0.5)
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = r, r, r, -r
    elif code == X:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 0, 1, 1, 0
    elif code == Y:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 0, -1j, 1j, 0
    else:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 1, 0, 0, -1


@numba.njit()
def generators(code: int, trig: Array, a: Array) -> int:  # pragma: no cover (compiled)
    """Fill a (3, 4) with Im A_00, Im A_11, Re A_01, Im A_01 of each angle's A = dU U^dagger; return their number."""
    if code == U3:  # phase(angle 1) ry(angle 0) phase(angle 2)
        c, s, cos, sin = trig[0], trig[1], trig[2], trig[3]
        a[0, 0], a[0, 1], a[0, 2], a[0, 3] = 0, 0, -cos / 2, sin / 2
        a[1, 0], a[1, 1], a[1, 2], a[1, 3] = 0, 1, 0, 0
        a[2, 0], a[2, 1], a[2, 2], a[2, 3] = s * s, c * c, -sin * s * c, -cos * s * c
        return 3
    a[0, 0] = a[0, 1] = a[0, 2] = a[0, 3] = 0
    if code == RX:
        a[0, 3] = -0.5
    elif code == RY:
        a[0, 2] = -0.5
    elif code == RZ:
        a[0, 0], a[0, 1] = -0.5, 0.5
    elif code == PHASE:
        a[0, 1] = 1
    else:
        return 0
    return 1


@numba.njit()
def matrices(p: Plan, trig_G: Array) -> Complexes:  # pragma: no cover (compiled)
    """The matrices (J, 2, 2, 2) of all steps, for control 0 and 1."""
    w_J, u = np.empty((len(p.step_J), 2, 2, 2), dtype=np.complex128), np.empty((2, 2), dtype=np.complex128)
    for j in range(len(p.step_J)):
        w_J[j] = 0
        w_J[j, :, 0, 0] = w_J[j, :, 1, 1] = 1
        for g in range(p.step_J[j].first, p.step_J[j].end):
            matrix(p.gate_G[g].code, trig_G[g], u)
            multiply(u, w_J[j, 1])
            if not p.gate_G[g].controlled:
                multiply(u, w_J[j, 0])
    return w_J


@numba.njit()
def multiply(u: Complexes, w: Complexes) -> None:  # pragma: no cover (compiled)
    """w = u w."""
    for column in range(2):
        top, bottom = w[0, column], w[1, column]
        w[0, column] = u[0, 0] * top + u[0, 1] * bottom
        w[1, column] = u[1, 0] * top + u[1, 1] * bottom


@numba.njit()
def inverses(w_J: Complexes) -> Complexes:  # pragma: no cover (compiled)
    inverse_J = np.empty_like(w_J)
    for j in range(len(w_J)):
        for value in range(2):
            for row in range(2):
                for column in range(2):
                    inverse_J[j, value, row, column] = np.conj(w_J[j, value, column, row])
    return inverse_J
