"""Matrices of a plan's gates from their angles, their generators and inverses; compiled.

Functions of one circuit or of LANES of them: entries of arrays are numbers or vectors (see ``simd.at``). Complex
numbers are pairs of them. Memory is the caller's:

    theta   P entries                   angles
    trig    2 P + 2                     cos and sin of a gate's first angle's half (phase: the whole) and of u3's others
    w       16 J                        a step's matrices for control 0 and 1: four real parts (by rows), four imaginary
    u       8                           a gate's matrix, likewise
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import CODES, KINDS
from distqtrl.circuit.compiled import inner
from distqtrl.circuit.plan import Plan
from distqtrl.circuit.simd import BITS, LANES, at, constant, put

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
U3, RX, RY, RZ, PHASE, H, X, Y = (CODES[kind] for kind in KINDS if kind != "z")  # in this order


@inner
def _turn(theta: Array, k: int, factor: float, trig: Array) -> None:  # pragma: no cover (compiled)
    """cos and sin of angle k times a factor."""
    if theta.ndim == 1:
        angle = theta[k] * factor
        trig[2 * k], trig[2 * k + 1] = np.cos(angle), np.sin(angle)
    else:
        for lane in range(LANES):
            turned = theta[k, lane] * factor
            trig[2 * k, lane], trig[2 * k + 1, lane] = np.cos(turned), np.sin(turned)


@inner
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


@inner
def _real_matrix(code: int, trig: Array, k: int, u: Array) -> None:  # pragma: no cover (compiled)
    """Fill u but for its imaginary parts."""
    c, s, none, one = at(trig, 2 * k), at(trig, 2 * k + 1), constant(u, 0.0), constant(u, 1.0)
    a, b, d = none, one, none  # x
    if code == RY:
        a, b, d = c, s, c
    elif code == H:
        a = b = constant(u, np.sqrt(0.5))
        d = -a
    elif code != X:
        a, b, d = one, none, -one
    put(u, 0, a)
    put(u, 1, -b if code == RY else b)
    put(u, 2, b)
    put(u, 3, d)


@inner
def matrix(x: Floats, code: int, trig: Array, k: int, u: Array) -> None:  # pragma: no cover (compiled)
    """Fill the matrix u of a gate whose first angle is k; of states like x, which may be real."""
    _real_matrix(code, trig, k, u)
    if x.ndim == 2:
        none, one, c, s = constant(u, 0.0), constant(u, 1.0), at(trig, 2 * k), at(trig, 2 * k + 1)
        e, f, g, h = none, none, none, none
        if code == U3:
            cos, sin, right, turned = at(trig, 2 * k + 2), at(trig, 2 * k + 3), at(trig, 2 * k + 4), at(trig, 2 * k + 5)
            put(u, 0, c)
            put(u, 1, -(right * s))
            put(u, 2, cos * s)
            put(u, 3, (cos * right - sin * turned) * c)
            f, g, h = -(turned * s), sin * s, (cos * turned + sin * right) * c
        elif code in (RX, RZ, PHASE, Y):
            diagonal = c if code in (RX, RZ) else one if code == PHASE else none
            put(u, 0, diagonal)
            put(u, 1, none)
            put(u, 2, none)
            put(u, 3, c if code == PHASE else diagonal)
            if code == RX:
                f, g = -s, -s
            elif code == RZ:
                e, h = -s, s
            elif code == PHASE:
                h = s
            else:
                f, g = -one, one
        put(u, 4, e)
        put(u, 5, f)
        put(u, 6, g)
        put(u, 7, h)


@inner
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
    return 1 if code <= PHASE else 0


@inner
def matrices(x: Floats, p: Plan, trig: Array, u: Array, w: Array) -> None:  # pragma: no cover (compiled)
    """Fill w for states like x; u is scratch."""
    none, one = constant(w, 0.0), constant(w, 1.0)
    for j in range(len(p.step_J)):
        step = p.step_J[j]
        for i in range(16):
            put(w, 16 * j + i, one if i & 7 in (0, 3) else none)
        for g in range(step.first, step.end):
            matrix(x, p.gate_G[g].code, trig, p.gate_G[g].angle, u)
            for value in range(1 if p.gate_G[g].controlled else 0, 2):
                multiply(x, u, w, 16 * j + 8 * value)


@inner
def multiply(x: Floats, u: Array, w: Array, i: int) -> None:  # pragma: no cover (compiled)
    """w = u w of the matrix that starts at entry i of w."""
    a, b, c, d = at(u, 0), at(u, 1), at(u, 2), at(u, 3)
    for k in range(i, i + 2):  # columns
        top, bottom = at(w, k), at(w, k + 2)
        if x.ndim == 1:
            put(w, k, a * top + b * bottom)
            put(w, k + 2, c * top + d * bottom)
        else:
            e, f, g, h = at(u, 4), at(u, 5), at(u, 6), at(u, 7)
            above, below = at(w, k + 4), at(w, k + 6)
            put(w, k, a * top - e * above + b * bottom - f * below)
            put(w, k + 2, c * top - g * above + d * bottom - h * below)
            put(w, k + 4, a * above + e * top + b * below + f * bottom)
            put(w, k + 6, c * above + g * top + d * below + h * bottom)


@inner
def coefficient(w: Array, i: int, slot: int, inverse: Any) -> float:  # pragma: no cover (compiled)
    """Entry ``slot`` of the matrix that starts at entry i of w, or of its inverse."""
    if not inverse:
        return at(w, i + slot)
    value = at(w, i + (slot & 4 | (slot & 1) << 1 | (slot >> 1) & 1))
    return -value if slot & 4 else value


@inner
def moments(x: Floats, step: Any, value: int, sums: Floats, s: int, k: Array) -> None:  # pragma: no cover (compiled)
    """k = Im k_00, Im k_11, k_01 of the entries (lanes of a state's vectors) where the control has the value.

    From entry s on, ``sums`` has the rows that kernels.py says, each of 2 LANES entries. Real states have k_01 alone.
    """
    among = 0 <= step.control < BITS
    half, low = constant(k, 0.5), constant(k, 0.0)
    high, cross, turn = low, low, low
    for lane in range(LANES):
        if among and (lane >> step.control) & 1 != value:
            continue
        second = step.target < BITS and (lane >> step.target) & 1
        cross = cross - at(sums, s + 2 * LANES + lane) if second else cross + at(sums, s + 2 * LANES + lane)
        if step.target >= BITS:
            cross = cross - at(sums, s + 3 * LANES + lane)
        if x.ndim == 2:
            low, high = (low, high + at(sums, s + lane)) if second else (low + at(sums, s + lane), high)
            turn = turn + at(sums, s + 4 * LANES + lane)
            if step.target >= BITS:
                high = high + at(sums, s + LANES + lane)
                turn = turn + at(sums, s + 5 * LANES + lane)
    put(k, 0, low)
    put(k, 1, high)
    put(k, 2, cross * half)
    put(k, 3, turn * half)


@inner
def before(x: Floats, u: Array, k: Array) -> None:  # pragma: no cover (compiled)
    """k = u^T k conj(u) of an anti-Hermitian k, given as Im k_00, Im k_11, Re k_01, Im k_01."""
    a, b, c, d = at(u, 0), at(u, 1), at(u, 2), at(u, 3)
    real = at(k, 2)
    if x.ndim == 1:
        put(k, 2, real * (a * d - b * c))
    else:
        e, f, g, h = at(u, 4), at(u, 5), at(u, 6), at(u, 7)  # their imaginary parts
        k00, k11, imag = at(k, 0), at(k, 1), at(k, 3)
        # first and second row of u^T k
        top, top_i = -(e * k00) - c * real - g * imag, a * k00 + c * imag - g * real
        bottom, bottom_i = a * real - e * imag - g * k11, a * imag + e * real + c * k11
        right, right_i = -(f * k00) - d * real - h * imag, b * k00 + d * imag - h * real
        under, under_i = b * real - f * imag - h * k11, b * imag + f * real + d * k11
        put(k, 0, top_i * a - top * e + bottom_i * c - bottom * g)
        put(k, 1, right_i * b - right * f + under_i * d - under * h)
        put(k, 2, top * b + top_i * f + bottom * d + bottom_i * h)
        put(k, 3, top_i * b - top * f + bottom_i * d - bottom * h)


@inner
def collect(
    x: Floats, p: Plan, trig: Array, sums_J: Floats, scratch: Array, gradient: Array
) -> None:  # pragma: no cover (compiled)
    """Fill the gradient, P entries, from all steps' sums, 12 J LANES entries; scratch has 24 entries.

    Of M only k = (M - M^dagger) / 2 matters. It belongs to the state after the step; G^T k conj(G) belongs to the
    state before the step's last gate G, where the gate before it needs it. A real gate's only angle is ry's.
    """
    a, u, k = scratch[:12], scratch[12:20], scratch[20:]
    two = constant(k, 2.0)
    gradient[:] = 0
    for j in range(len(p.step_J)):
        step = p.step_J[j]
        if not step.turns:
            continue
        for value in range(1 if step.control < 0 or step.idle else 0, 2):
            s = 6 * LANES * (2 * j + (1 if step.control < BITS else value))
            moments(x, step, value, sums_J, s, k)
            for g in range(step.end - 1, step.first - 1, -1):
                code, first = p.gate_G[g].code, p.gate_G[g].angle
                if p.gate_G[g].controlled and value == 0:
                    continue
                if x.ndim == 1:
                    if code == RY:
                        put(gradient, first, at(gradient, first) - two * at(k, 2))
                else:
                    for i in range(generators(code, trig, first, a)):
                        outer = at(a, 4 * i + 2) * at(k, 2) - at(a, 4 * i + 3) * at(k, 3)
                        total = two * outer - at(a, 4 * i) * at(k, 0) - at(a, 4 * i + 1) * at(k, 1)
                        put(gradient, first + i, at(gradient, first + i) + two * total)
                if g > step.first:
                    matrix(x, code, trig, first, u)
                    before(x, u, k)
