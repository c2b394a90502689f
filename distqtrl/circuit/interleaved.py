"""Eight circuits of one layout at a time: their states are interleaved, so that lane k of every vector is circuit k's.

A state of n qubits and eight circuits is one of n + 3 index bits, of which the three lowest number the circuit. So
every target and control is above the lanes, coefficients and sums are vectors, and no lane ever meets another one.

A circuit's bits are those that ``sweep`` gives it: the same products are added in the same order. For that, the sums
of a step are one per value of the state's three lowest bits, as they are there, where these bits are the lanes.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from distqtrl.circuit import compiled, kernels
from distqtrl.circuit.gates import Array, Floats, coefficient, collect, matrices, trigonometry
from distqtrl.circuit.plan import Plan
from distqtrl.circuit.simd import BITS, LANES, put
from distqtrl.circuit.sweep import aligned

ROW = 2 * LANES * LANES  # numbers of a row of the sums


@numba.njit()
def _coefficients(p: Plan, w: Array, inverse: Any, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Fill (J, 16, LANES): the steps' matrices, or their inverses, for control 0 and 1."""
    for j in range(len(p.step_J)):
        for value in range(1 if p.step_J[j].control < 0 or p.step_J[j].idle else 0, 2):
            for slot in range(4 if p.step_J[j].real else 8):
                put(coef_J[j], 8 * value + slot, coefficient(w, 16 * j + 8 * value, slot, inverse))


@numba.njit()
def _subset(size: int, step: Any, value: int) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Mask of the index bits that run freely, and the bits that are set in all indices."""
    mask, fixed = size - LANES & ~(1 << step.target + BITS), 0
    if step.control >= 0:
        fixed = value << step.control + BITS
        mask &= ~(1 << step.control + BITS)
    return mask, fixed


@numba.njit()
def _apply_real(x: Floats, mask: int, fixed: int, step: Any, coef: Floats) -> None:  # pragma: no cover (compiled)
    if step.swap:
        kernels.swap(x, mask, fixed, step.target + BITS)
    else:
        kernels.apply_pairs(x, mask, fixed, step.target + BITS, coef)


@numba.njit()
def _apply(x: Floats, size: int, step: Any, coef_2: Floats) -> None:  # pragma: no cover (compiled)
    for value in range(1 if step.control < 0 or step.idle else 0, 2):
        mask, fixed = _subset(size, step, value)
        coef = coef_2[8 * value :]
        if x.ndim == 1:
            _apply_real(x, mask, fixed, step, coef)
        elif step.real:
            for component in range(2):
                _apply_real(x[component], mask, fixed, step, coef)
        else:
            kernels.apply_pairs_complex(x[0], x[1], mask, fixed, step.target + BITS, coef)


@numba.njit()
def _sweep(
    x: Floats, y: Floats, size: int, step: Any, coef_2: Floats, sums_2: Floats
) -> None:  # pragma: no cover (compiled)
    """Once for every value that the state's bits below BITS have; a target among them makes pairs of values."""
    target, control = step.target, step.control
    for value in range(1 if control < 0 or step.idle else 0, 2):
        mask, fixed = _subset(size, step, value)
        mask &= ~((LANES - 1) << BITS)
        coef, sums = coef_2[8 * value :], sums_2[1 if control < BITS else value]
        for low in range(min(LANES, size // LANES)):
            if (target < BITS and (low >> target) & 1) or (0 <= control < BITS and (low >> control) & 1 != value):
                continue
            high = low | 1 << target if target < BITS else low + LANES
            first, place, other = fixed | low << BITS, LANES * low, LANES * high
            if x.ndim == 1:
                kernels.sweep_pairs(x, y, mask, first, target + BITS, coef, sums, ROW, place, other)
            elif step.real:
                for component in range(2):
                    kernels.sweep_pairs(
                        x[component], y[component], mask, first, target + BITS, coef, sums, ROW, place, other
                    )
            else:
                kernels.sweep_pairs_complex(
                    x[0], x[1], y[0], y[1], mask, first, target + BITS, coef, sums, ROW, place, other
                )


@numba.njit()
def _start(x: Floats) -> None:  # pragma: no cover (compiled)
    """x = |0...0> of every circuit."""
    x[:] = 0
    if x.ndim == 1:
        x[:LANES] = 1
    else:
        x[0, :LANES] = 1


@numba.njit()
def _square(x: Floats, p_KS: Array) -> None:  # pragma: no cover (compiled)
    for i in range(p_KS.shape[1]):
        for k in range(LANES):
            if x.ndim == 1:
                p_KS[k, i] = x[LANES * i + k] * x[LANES * i + k]
            else:
                p_KS[k, i] = x[0, LANES * i + k] * x[0, LANES * i + k]
                p_KS[k, i] += x[1, LANES * i + k] * x[1, LANES * i + k]


@numba.njit()
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


@compiled.kept
def _values(
    p: Plan,
    theta_KP: Array,
    states: Floats,
    p_KS: Array,
    trigs: Array,
    theta: Array,
    w: Array,
    u: Array,
    coef_J: Floats,
) -> None:  # pragma: no cover (compiled)
    inverse = np.int64(0)
    for n in range(len(states)):
        x, first = states[n], n * LANES
        for k in range(LANES):
            for i in range(len(theta)):
                theta[i, k] = theta_KP[first + k, i]
        trigonometry(p, theta, trigs[n])
        matrices(x, p, trigs[n], u, w)
        _coefficients(p, w, inverse, coef_J)
        _start(x)
        for j in range(len(p.step_J)):
            _apply(x, p_KS.shape[1] * LANES, p.step_J[j], coef_J[j])
        _square(x, p_KS[first : first + LANES])


@compiled.kept
def _gradients(
    p: Plan,
    states: Floats,
    trigs: Array,
    v_KS: Array,
    both: Floats,
    w: Array,
    scratch: Array,
    coef_J: Floats,
    sums_J: Floats,
    gradient: Array,
    gradient_KP: Array,
) -> None:  # pragma: no cover (compiled)
    inverse, size = np.int64(1), v_KS.shape[1] * LANES
    x, y = both[0], both[1]
    for n in range(len(states)):
        first = n * LANES
        matrices(x, p, trigs[n], scratch, w)
        _coefficients(p, w, inverse, coef_J)
        _weigh(states[n], v_KS[first : first + LANES], x, y)
        sums_J[:] = 0
        for j in range(len(p.step_J) - 1, -1, -1):
            if p.step_J[j].turns:
                _sweep(x, y, size, p.step_J[j], coef_J[j], sums_J[j])
            else:
                _apply(x, size, p.step_J[j], coef_J[j])
                _apply(y, size, p.step_J[j], coef_J[j])
        collect(x, p, trigs[n], sums_J, scratch, gradient)
        for k in range(LANES):
            for i in range(p.num_angles):
                gradient_KP[first + k, i] = gradient[i, k]


def values(p: Plan, theta_KP: Array, num_states: int, dtype: npt.DTypeLike) -> tuple[Array, Floats, Array]:
    """p_KS of K parameter sets, K a multiple of LANES, and the states and trig of every group of LANES circuits."""
    steps, groups, size = len(p.step_J), len(theta_KP) // LANES, num_states * LANES
    states = aligned((groups, size) if p.components == 1 else (groups, 2, size), dtype)
    p_KS, trigs = np.empty((len(theta_KP), num_states)), _lanes(groups, 2 * p.num_angles + 2)
    trigs[:, -2:] = 0
    coef_J = aligned((steps, 16, LANES), dtype)
    _values(p, theta_KP, states, p_KS, trigs, _lanes(p.num_angles), _lanes(16 * steps), _lanes(8), coef_J)
    return p_KS, states, trigs


def gradients(p: Plan, states: Floats, trigs: Array, v_KS: Array) -> Array:
    """d(v.p)/d theta_KP for cotangents v_KS, given what ``values`` returned (left as it is)."""
    steps, dtype, gradient_KP = len(p.step_J), states.dtype, np.empty((len(v_KS), p.num_angles))
    both, coef_J = aligned((2, *states.shape[1:]), dtype), aligned((steps, 16, LANES), dtype)
    w, scratch, sums_J = _lanes(16 * steps), _lanes(24), aligned((steps, 2, 6 * LANES, LANES), dtype)
    _gradients(p, states, trigs, v_KS, both, w, scratch, coef_J, sums_J, _lanes(p.num_angles), gradient_KP)
    return gradient_KP


def _lanes(*count: int) -> Any:
    """Room for vectors of numbers."""
    return aligned((*count, LANES), np.float64)
