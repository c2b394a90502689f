"""Matrices of a plan's gates from their angles, their generators and inverses; compiled.

Functions of one circuit or of LANES of them: entries of arrays are numbers or vectors (see ``simd.at``). Complex
numbers are pairs of them. Memory is the caller's:

    theta   P entries                   angles
    trig    2 P + 2                     cos and sin of a gate's first angle's half (phase: the whole) and of u3's others
    w       16 J                        a step's matrices for control 0 and 1: four real parts (by rows), four imaginary
    u       8                           a gate's matrix, likewise
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import CODES, KINDS
from distqtrl.circuit.plan import Plan
from distqtrl.circuit.simd import BITS, LANES, at, constant, put

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
U3, RX, RY, RZ, PHASE, H, X, Y = (CODES[kind] for kind in KINDS if kind != "z")  # in this order


@numba.njit()
def _turn(theta: Array, k: int, factor: float, trig: Array) -> None:  # pragma: no cover (compiled)
    """cos and sin of angle k times a factor."""
    if theta.ndim == 1:
        angle = theta[k] * factor
        trig[2 * k], trig[2 * k + 1] = np.cos(angle), np.sin(angle)
    else:
        for lane in range(LANES):
            turned = theta[k, lane] * factor
            trig[2 * k, lane], trig[2 * k + 1, lane] = np.cos(turned), np.sin(turned)


@numba.njit()
def trigonometry(p: Plan, theta: Array, trig: Array) -> None:  # pragma: no cover (compiled)
    """Fill trig but for its last two entries, which gates without angles may read."""
    for g in range(len(p.gate_G)):
        code, first = p.gate_G[g].code, p.gate_G[g].angle
        if code > PHASE:  # no angle
            continue
        _turn(theta, first, 1.0 if code == PHASE else 0.5, trig)
        if code == U3:
            _turn(theta, first + 1, 1.0, trig)
            _turn(theta, first + 2, 1.0, trig)


@numba.njit()
def matrix(code: int, trig: Array, k: int, u: Array) -> None:  # pragma: no cover (compiled)
    """Fill the matrix u of a gate whose first angle is k."""
    none, one = constant(u, 0.0), constant(u, 1.0)
    for i in range(8):
        put(u, i, none)
    c, s = at(trig, 2 * k), at(trig, 2 * k + 1)
    if code == RY:
        put(u, 0, c)
        put(u, 1, -s)
        put(u, 2, s)
        put(u, 3, c)
    elif code == U3:
        cos, sin, right, turned = at(trig, 2 * k + 2), at(trig, 2 * k + 3), at(trig, 2 * k + 4), at(trig, 2 * k + 5)
        put(u, 0, c)
        put(u, 1, -(right * s))
        put(u, 2, cos * s)
        put(u, 3, (cos * right - sin * turned) * c)
        put(u, 5, -(turned * s))
        put(u, 6, sin * s)
        put(u, 7, (cos * turned + sin * right) * c)
    elif code == RX:
        put(u, 0, c)
        put(u, 3, c)
        put(u, 5, -s)
        put(u, 6, -s)
    elif code == RZ:
        put(u, 0, c)
        put(u, 3, c)
        put(u, 4, -s)
        put(u, 7, s)
    elif code == PHASE:
        put(u, 0, one)
        put(u, 3, c)
        put(u, 7, s)
    elif code == H:
        r = constant(u, np.sqrt(0.5))
        put(u, 0, r)
        put(u, 1, r)
        put(u, 2, r)
        put(u, 3, -r)
    elif code == X:
        put(u, 1, one)
        put(u, 2, one)
    elif code == Y:
        put(u, 5, -one)
        put(u, 6, one)
    else:
        put(u, 0, one)
        put(u, 3, -one)


@numba.njit()
def generators(code: int, trig: Array, k: int, a: Array) -> int:  # pragma: no cover (compiled)
    """Fill 4 entries Im A_00, Im A_11, Re A_01, Im A_01 of each angle's A = dU U^dagger; return their number."""
    none, one, half = constant(a, 0.0), constant(a, 1.0), constant(a, 0.5)
    for i in range(12):
        put(a, i, none)
    if code == U3:  # phase(angle 1) ry(angle 0) phase(angle 2)
        c, s, cos, sin = at(trig, 2 * k), at(trig, 2 * k + 1), at(trig, 2 * k + 2), at(trig, 2 * k + 3)
        put(a, 2, -(cos * half))
        put(a, 3, sin * half)
        put(a, 5, one)
        put(a, 8, s * s)
        put(a, 9, c * c)
        put(a, 10, -(sin * s * c))
        put(a, 11, -(cos * s * c))
        return 3
    if code == RX:
        put(a, 3, -half)
    elif code == RY:
        put(a, 2, -half)
    elif code == RZ:
        put(a, 0, -half)
        put(a, 1, half)
    elif code == PHASE:
        put(a, 1, one)
    else:
        return 0
    return 1


@numba.njit()
def matrices(p: Plan, trig: Array, u: Array, w: Array) -> None:  # pragma: no cover (compiled)
    """Fill w; u is scratch."""
    none, one = constant(w, 0.0), constant(w, 1.0)
    for j in range(len(p.step_J)):
        for i in range(16):
            put(w, 16 * j + i, one if i & 7 in (0, 3) else none)
        for g in range(p.step_J[j].first, p.step_J[j].end):
            matrix(p.gate_G[g].code, trig, p.gate_G[g].angle, u)
            multiply(u, w, 16 * j + 8, p.step_J[j].real)
            if not p.gate_G[g].controlled:
                multiply(u, w, 16 * j, p.step_J[j].real)


@numba.njit()
def multiply(u: Array, w: Array, i: int, real: bool) -> None:  # pragma: no cover (compiled)
    """w = u w of the matrix that starts at entry i of w."""
    a, b, c, d = at(u, 0), at(u, 1), at(u, 2), at(u, 3)
    for k in range(i, i + 2):  # columns
        top, bottom = at(w, k), at(w, k + 2)
        if real:
            put(w, k, a * top + b * bottom)
            put(w, k + 2, c * top + d * bottom)
            continue
        e, f, g, h = at(u, 4), at(u, 5), at(u, 6), at(u, 7)
        above, below = at(w, k + 4), at(w, k + 6)
        put(w, k, a * top - e * above + b * bottom - f * below)
        put(w, k + 2, c * top - g * above + d * bottom - h * below)
        put(w, k + 4, a * above + e * top + b * below + f * bottom)
        put(w, k + 6, c * above + g * top + d * below + h * bottom)


@numba.njit()
def before(u: Array, k: Array) -> None:  # pragma: no cover (compiled)
    """k = u^T k conj(u) of an anti-Hermitian k, given as Im k_00, Im k_11, Re k_01, Im k_01."""
    a, b, c, d = at(u, 0), at(u, 1), at(u, 2), at(u, 3)
    e, f, g, h = at(u, 4), at(u, 5), at(u, 6), at(u, 7)  # their imaginary parts
    k00, k11, real, imag = at(k, 0), at(k, 1), at(k, 2), at(k, 3)
    # first and second row of u^T k
    top, top_i = -(e * k00) - c * real - g * imag, a * k00 + c * imag - g * real
    bottom, bottom_i = a * real - e * imag - g * k11, a * imag + e * real + c * k11
    right, right_i = -(f * k00) - d * real - h * imag, b * k00 + d * imag - h * real
    under, under_i = b * real - f * imag - h * k11, b * imag + f * real + d * k11
    put(k, 0, top_i * a - top * e + bottom_i * c - bottom * g)
    put(k, 1, right_i * b - right * f + under_i * d - under * h)
    put(k, 2, top * b + top_i * f + bottom * d + bottom_i * h)
    put(k, 3, top_i * b - top * f + bottom_i * d - bottom * h)


@numba.njit()
def coefficient(w: Array, i: int, slot: int, inverse: bool) -> float:  # pragma: no cover (compiled)
    """Entry ``slot`` of the matrix that starts at entry i of w, or of its inverse."""
    if not inverse:
        return at(w, i + slot)
    value = at(w, i + (slot & 4 | (slot & 1) << 1 | (slot >> 1) & 1))
    return -value if slot & 4 else value


@numba.njit()
def moments(step: Any, value: int, sums: Floats, k: Array) -> None:  # pragma: no cover (compiled)
    """k = Im k_00, Im k_11, k_01 of the entries (lanes of a state's vectors) where the control has the value.

    ``sums`` has the rows that kernels.py says, each of 2 LANES entries.
    """
    among = 0 <= step.control < BITS
    half, low = constant(k, 0.5), constant(k, 0.0)
    high, cross, turn = low, low, low
    for lane in range(LANES):
        if among and (lane >> step.control) & 1 != value:
            continue
        diagonal, real, imag = at(sums, lane), at(sums, 2 * LANES + lane), at(sums, 4 * LANES + lane)
        if step.target < BITS and (lane >> step.target) & 1:
            high, cross = high + diagonal, cross - real
        else:
            low, cross = low + diagonal, cross + real
        turn = turn + imag
        if step.target >= BITS:
            high = high + at(sums, 1 * LANES + lane)
            cross = cross - at(sums, 3 * LANES + lane)
            turn = turn + at(sums, 5 * LANES + lane)
    put(k, 0, low)
    put(k, 1, high)
    put(k, 2, cross * half)
    put(k, 3, turn * half)


@numba.njit()
def collect(
    p: Plan, trig: Array, sums_J: Floats, scratch: Array, gradient: Array
) -> None:  # pragma: no cover (compiled)
    """Fill the gradient, P entries, from the sums (J, 2, 6 LANES) of all steps; scratch has 24 entries.

    Of M only k = (M - M^dagger) / 2 matters. It belongs to the state after the step; G^T k conj(G) belongs to the
    state before the step's last gate G, where the gate before it needs it.
    """
    a, u, k = scratch[:12], scratch[12:20], scratch[20:]
    two = constant(k, 2.0)
    for i in range(p.num_angles):
        put(gradient, i, constant(k, 0.0))
    for j in range(len(p.step_J)):
        step = p.step_J[j]
        if not step.turns:
            continue
        for value in range(1 if step.control < 0 or step.idle else 0, 2):
            moments(step, value, sums_J[j, 1 if step.control < BITS else value], k)
            for g in range(step.end - 1, step.first - 1, -1):
                if p.gate_G[g].controlled and value == 0:
                    continue
                code, first = p.gate_G[g].code, p.gate_G[g].angle
                for i in range(generators(code, trig, first, a)):
                    outer = at(a, 4 * i + 2) * at(k, 2) - at(a, 4 * i + 3) * at(k, 3)
                    total = two * outer - at(a, 4 * i) * at(k, 0) - at(a, 4 * i + 1) * at(k, 1)
                    put(gradient, first + i, at(gradient, first + i) + two * total)
                if g > step.first:
                    matrix(code, trig, first, u)
                    before(u, k)
