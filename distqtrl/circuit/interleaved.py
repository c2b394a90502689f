"""Eight circuits of one layout at a time: their states are interleaved, so that lane k of every vector is circuit k's.

A state of n qubits and eight circuits is one of n + 3 index bits, of which the three lowest number the circuit. So
every target and control is above the lanes, coefficients and sums are vectors, and no lane ever meets another one.

A circuit's bits are those that ``sweep`` gives it: the same products are added in the same order. For that, the sums
of a step are one per value of the state's three lowest bits, as they are there, where these bits are the lanes.
"""

from typing import Any

import numpy as np

from distqtrl.circuit import kernels
from distqtrl.circuit.compiled import inner, kept
from distqtrl.circuit.gates import Array, Floats, coefficient, collect, matrices, trigonometry
from distqtrl.circuit.plan import Plan
from distqtrl.circuit.simd import BITS, LANES, put
from distqtrl.circuit.sweep import room, states

ROW = 2 * LANES * LANES  # numbers of a row of the sums


@inner
def _coefficients(p: Plan, w: Array, inverse: Any, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Fill 16 J entries: the steps' matrices, or their inverses, for control 0 and 1."""
    for j in range(len(p.step_J)):
        for value in range(1 if p.step_J[j].control < 0 or p.step_J[j].idle else 0, 2):
            for slot in range(4 if p.step_J[j].real else 8):
                put(coef_J, 16 * j + 8 * value + slot, coefficient(w, 16 * j + 8 * value, slot, inverse))


@inner
def _subset(size: int, step: Any, value: int) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Mask of the index bits that run freely, and the bits that are set in all indices."""
    mask, fixed = size - LANES & ~(1 << step.target + BITS), 0
    if step.control >= 0:
        fixed = value << step.control + BITS
        mask &= ~(1 << step.control + BITS)
    return mask, fixed


@inner
def _apply(x: Floats, size: int, p: Plan, j: int, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    step, target = p.step_J[j], p.step_J[j].target + BITS
    for value in range(1 if step.control < 0 or step.idle else 0, 2):
        mask, fixed = _subset(size, step, value)
        c = LANES * (16 * j + 8 * value)
        if x.ndim == 1 or step.real:
            for component in range(x.ndim):
                if step.swap:
                    kernels.swap(x, mask, fixed | size * component, target)
                else:
                    kernels.apply_pairs(x, mask, fixed | size * component, target, coef_J, c)
        else:
            kernels.apply_pairs_complex(x, size, mask, fixed, target, coef_J, c)


@inner
def _sweep(
    x: Floats, y: Floats, size: int, p: Plan, j: int, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    """Once for every value that the state's bits below BITS have; a target among them makes pairs of values."""
    step, target, control = p.step_J[j], p.step_J[j].target, p.step_J[j].control
    for value in range(1 if control < 0 or step.idle else 0, 2):
        mask, fixed = _subset(size, step, value)
        mask &= ~((LANES - 1) << BITS)
        c, sums = LANES * (16 * j + 8 * value), 3 * ROW * (2 * j + (1 if control < BITS else value))
        for low in range(LANES if size > LANES * LANES else size // LANES):
            if (target < BITS and (low >> target) & 1) or (0 <= control < BITS and (low >> control) & 1 != value):
                continue
            high = low | 1 << target if target < BITS else low + LANES
            first, place, other = fixed | low << BITS, sums + LANES * low, sums + LANES * high
            if x.ndim == 1 or step.real:
                for component in range(x.ndim):
                    kernels.sweep_pairs(
                        x, y, mask, first | size * component, target + BITS, coef_J, c, sums_J, ROW, place, other
                    )
            else:
                kernels.sweep_pairs_complex(
                    x, y, size, mask, first, target + BITS, coef_J, c, sums_J, ROW, place, other
                )


@inner
def _start(x: Floats) -> None:  # pragma: no cover (compiled)
    """x = |0...0> of every circuit."""
    x[:] = 0
    if x.ndim == 1:
        x[:LANES] = 1
    else:
        x[0, :LANES] = 1


@inner
def _square(x: Floats, p_KS: Array) -> None:  # pragma: no cover (compiled)
    for i in range(p_KS.shape[1]):
        for k in range(LANES):
            if x.ndim == 1:
                p_KS[k, i] = x[LANES * i + k] * x[LANES * i + k]
            else:
                p_KS[k, i] = x[0, LANES * i + k] * x[0, LANES * i + k]
                p_KS[k, i] += x[1, LANES * i + k] * x[1, LANES * i + k]


@inner
def _weigh(psi: Floats, v_KS: Array, x: Floats, y: Floats) -> None:  # pragma: no cover (compiled)
    """x = psi, y = diag(v) psi."""
    kernels.copy(psi, 0, x, 0, psi.size)
    for i in range(v_KS.shape[1]):
        for k in range(LANES):
            if psi.ndim == 1:
                y[LANES * i + k] = psi[LANES * i + k] * v_KS[k, i]
            else:
                y[0, LANES * i + k] = psi[0, LANES * i + k] * v_KS[k, i]
                y[1, LANES * i + k] = psi[1, LANES * i + k] * v_KS[k, i]


@inner
def _vectors(num: int) -> Any:  # pragma: no cover (compiled)
    return np.empty(num * LANES).reshape((num, LANES))


@kept
def values(
    p: Plan, theta_KP: Array, num_states: int, like: Floats, blocks: Any
) -> tuple[Array, Floats, Array]:  # pragma: no cover (compiled)
    """What ``sweep.values`` returns of a multiple of LANES circuits: states and trig are those of groups of LANES."""
    num, steps, inverse, angles = len(theta_KP), len(p.step_J), np.int64(0), p.num_angles
    groups, size = num // LANES, num_states * LANES
    p_KS = np.empty(num * num_states).reshape((num, num_states))
    psi, trigs = states(groups, size, like), _vectors(groups * (2 * angles + 2))
    theta, w, u = _vectors(angles), _vectors(16 * steps), _vectors(8)
    coef_J = room(steps * 16 * LANES, like).reshape((steps * 16, LANES))
    for n in range(groups):
        x, first = psi[n], n * LANES
        trig = trigs[n * (2 * angles + 2) : (n + 1) * (2 * angles + 2)]
        trig[2 * angles :] = 0
        for k in range(LANES):
            for i in range(angles):
                theta[i, k] = theta_KP[first + k, i]
        trigonometry(p, theta, trig)
        matrices(x, p, trig, u, w)
        _coefficients(p, w, inverse, coef_J)
        _start(x)
        for j in range(steps):
            _apply(x, size, p, j, coef_J)
        _square(x, p_KS[first : first + LANES])
    return p_KS, psi, trigs


@kept
def gradients(
    p: Plan, psi: Floats, trigs: Array, v_KS: Array, like: Floats, blocks: Any
) -> Array:  # pragma: no cover (compiled)
    """d(v.p)/d theta_KP for cotangents v_KS, given what ``values`` returned (left as it is)."""
    num, steps, inverse, angles = len(v_KS), len(p.step_J), np.int64(1), p.num_angles
    size = v_KS.shape[1] * LANES
    two: Any = np.int64(2)
    gradient_KP, both = np.empty(num * angles).reshape((num, angles)), states(two, size, like)
    coef_J = room(steps * 16 * LANES, like).reshape((steps * 16, LANES))
    sums_J = room(steps * 12 * LANES * LANES, like).reshape((steps * 12 * LANES, LANES))
    w, scratch, gradient = _vectors(16 * steps), _vectors(24), _vectors(angles)
    x, y = both[0], both[1]
    for n in range(num // LANES):
        first, trig = n * LANES, trigs[n * (2 * angles + 2) : (n + 1) * (2 * angles + 2)]
        matrices(x, p, trig, scratch, w)
        _coefficients(p, w, inverse, coef_J)
        _weigh(psi[n], v_KS[first : first + LANES], x, y)
        sums_J[:] = 0
        for j in range(steps - 1, -1, -1):
            if p.step_J[j].turns:
                _sweep(x, y, size, p, j, coef_J, sums_J)
            else:
                _apply(x, size, p, j, coef_J)
                _apply(y, size, p, j, coef_J)
        collect(x, p, trig, sums_J, scratch, gradient)
        for k in range(LANES):
            for i in range(angles):
                gradient_KP[first + k, i] = gradient[i, k]
    return gradient_KP
