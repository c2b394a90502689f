"""Exact simulation: p_S and, for any cotangent v_S on it, the gradient by one adjoint sweep.

    psi = U_G ... U_1 |0>,   p_i = |psi_i|^2
    d(v.p)/d theta = 2 Re <lambda_g| dU_g/d theta |psi_{g-1}>,   lambda_G = diag(v) psi      (v.p = <diag(v)>)

The sweep runs the gates backwards and un-computes the state (Jones & Gacon, arXiv 2009.02823), so memory does not
grow with depth; cost O(G 2^n). With psi and lambda as they are after gate g, and M_ab = sum of conj(lambda_a) psi_b
over the pairs that the gate mixes, the derivative is 2 Re sum_ab A_ab M_ab, where A = dU_g/d theta U_g^dagger is
anti-Hermitian and known in closed form (``generators``): one pass yields all angles of a gate, and of all gates
that plan.py fuses with it.

A state of real gates is real and takes half the memory. Here a call runs its circuits one after another on one thread;
``interleaved`` runs eight at a time, to the same bits.
"""

from typing import Any

import numba
import numpy as np

from distqtrl.circuit import compiled, kernels
from distqtrl.circuit.gates import Array, Floats, coefficient, collect, matrices, trigonometry
from distqtrl.circuit.plan import Plan
from distqtrl.circuit.simd import BITS, LANES

LINE = 64  # bytes of a cache line
ROW = 2 * LANES  # of the sums


@numba.njit()
def _coefficients(p: Plan, w: Array, inverse: bool, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Fill (J, 2, 64): the steps' matrices, or their inverses, for control 0 and 1 as the kernels take them.

    A control among the lanes needs one set only, the last: lanes take the matrix of their control bit.
    """
    for j in range(len(p.step_J)):
        target, control = p.step_J[j].target, p.step_J[j].control
        among = 0 <= control < BITS
        for value in range(0 if control >= BITS and not p.step_J[j].idle else 1, 2):
            coef, i = coef_J[j, value], 16 * j + 8 * value
            for slot in range(0, 8):
                if target >= BITS and not among:
                    coef[slot] = coefficient(w, i, slot, inverse)
                    continue
                for lane in range(LANES):
                    which = slot
                    if target < BITS:
                        row = (lane >> target) & 1  # slots 0, 1: d, o
                        which = slot & 4 | row << 1 | row ^ (slot & 1)
                    first = 16 * j + 8 * ((lane >> control) & 1) if among else i
                    coef[slot * LANES + lane] = coefficient(w, first, which, inverse)


@numba.njit()
def _move(x: Floats, block: Floats, local: int, fixed: np.int64, out: np.int64) -> None:  # pragma: no cover (compiled)
    """Copy the block with these local bits, whose other bits are ``fixed``, out of the state or back into it."""
    run = 1
    while local & run:
        run <<= 1
    mask = local & ~(run - 1)
    whole, part = x.size // x.ndim, block.size // x.ndim
    for component in range(x.ndim):
        free, place = np.int64(0), part * component
        while True:
            if out:
                kernels.copy(x, whole * component + (fixed | free), block, place, run)
            else:
                kernels.copy(block, place, x, whole * component + (fixed | free), run)
            place += run
            free = (free - mask) & mask
            if free == 0:
                break


@numba.njit()
def _size(local: int) -> int:  # pragma: no cover (compiled)
    """How many numbers a block with these local bits has."""
    size = 1
    while local:
        local &= local - 1
        size <<= 1
    return size


@numba.njit()
def aligned(num: int, size: int, like: Floats) -> Floats:  # pragma: no cover (compiled)
    """Empty states that start on a cache line, where NumPy's start 16 bytes after one: (num, size), or of complex
    numbers (num, 2, size), as ``like`` has one axis or two."""
    numbers = num * size * like.ndim
    raw = np.empty(numbers + LINE // like.itemsize, dtype=like.dtype)
    start = (-raw.ctypes.data % LINE) // like.itemsize
    if like.ndim == 1:
        return raw[start : start + numbers].reshape((num, size))
    return raw[start : start + numbers].reshape((num, 2, size))


@numba.njit()
def _subset(size: int, target: int, control: int, value: int) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Mask of the index bits that run freely, and the bits that are set in all indices."""
    mask, fixed = size - LANES, 0
    if target >= BITS:
        mask &= ~(1 << target)
    if control >= BITS:
        fixed = value << control
        mask &= ~(1 << control)
    return mask, fixed


@numba.njit()
def _apply_real(x: Floats, size: int, step: Any, value: int, coef: Floats) -> None:  # pragma: no cover (compiled)
    mask, fixed = _subset(size, step.target, step.control, value)
    vectors = 0 <= step.control < BITS
    if step.target < BITS:
        kernels.apply_lanes(x, mask, fixed, step.target, coef)
    elif step.swap and not vectors:
        kernels.swap(x, mask, fixed, step.target)
    else:
        kernels.apply_pairs(x, mask, fixed, step.target, vectors, coef)


@numba.njit()
def _apply(x: Floats, size: int, step: Any, coef_2: Floats) -> None:  # pragma: no cover (compiled)
    for value in range(0 if step.control >= BITS and not step.idle else 1, 2):
        coef = coef_2[value]
        if x.ndim == 1:
            _apply_real(x, size, step, value, coef)
        elif step.real:
            for component in range(2):
                _apply_real(x[component], size, step, value, coef)
        else:
            mask, fixed = _subset(size, step.target, step.control, value)
            if step.target < BITS:
                kernels.apply_lanes_complex(x[0], x[1], mask, fixed, step.target, coef)
            else:
                vectors = 0 <= step.control < BITS
                kernels.apply_pairs_complex(x[0], x[1], mask, fixed, step.target, vectors, coef)


@numba.njit()
def _sweep_real(
    x: Floats, y: Floats, size: int, step: Any, value: int, coef: Floats, sums: Floats
) -> None:  # pragma: no cover (compiled)
    mask, fixed = _subset(size, step.target, step.control, value)
    if step.target < BITS:
        kernels.sweep_lanes(x, y, mask, fixed, step.target, coef, sums, ROW)
    else:
        vectors = 0 <= step.control < BITS
        kernels.sweep_pairs(x, y, mask, fixed, step.target, vectors, coef, sums, ROW, 0, LANES)


@numba.njit()
def _sweep(
    x: Floats, y: Floats, size: int, step: Any, coef_2: Floats, sums_2: Floats
) -> None:  # pragma: no cover (compiled)
    for value in range(0 if step.control >= BITS and not step.idle else 1, 2):
        coef, sums = coef_2[value], sums_2[value]
        if x.ndim == 1:
            _sweep_real(x, y, size, step, value, coef, sums)
        elif step.real:
            for component in range(2):
                _sweep_real(x[component], y[component], size, step, value, coef, sums)
        else:
            mask, fixed = _subset(size, step.target, step.control, value)
            if step.target < BITS:
                kernels.sweep_lanes_complex(x[0], x[1], y[0], y[1], mask, fixed, step.target, coef, sums, ROW)
            else:
                vectors = 0 <= step.control < BITS
                kernels.sweep_pairs_complex(
                    x[0], x[1], y[0], y[1], mask, fixed, step.target, vectors, coef, sums, ROW, 0, LANES
                )


@numba.njit()
def _forward(p: Plan, x: Floats, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Run all steps on x."""
    out, back = np.int64(1), np.int64(0)
    for i in range(len(p.pass_I)):
        local = p.pass_I[i].local
        size, others = _size(local), ((1 << p.num_bits) - 1) & ~local
        if others == 0:
            for j in range(p.pass_I[i].first, p.pass_I[i].end):
                _apply(x, size, p.step_J[j], coef_J[j])
            continue
        block, fixed = aligned(1, size, x)[0], np.int64(0)
        while True:
            _move(x, block, local, fixed, out)
            for j in range(p.pass_I[i].first, p.pass_I[i].end):
                _apply(block, size, p.step_J[j], coef_J[j])
            _move(x, block, local, fixed, back)
            fixed = (fixed - others) & others
            if fixed == 0:
                break


@numba.njit()
def _sweep_all(
    p: Plan, i: int, x: Floats, y: Floats, size: int, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    for j in range(p.pass_I[i].end - 1, p.pass_I[i].first - 1, -1):
        step = p.step_J[j]
        if step.turns:
            _sweep(x, y, size, step, coef_J[j], sums_J[j])
        else:
            _apply(x, size, step, coef_J[j])
            _apply(y, size, step, coef_J[j])


@numba.njit()
def _backward(p: Plan, x: Floats, y: Floats, coef_J: Floats, sums_J: Floats) -> None:  # pragma: no cover (compiled)
    """Un-compute psi (x) and lambda (y), and fill the sums."""
    out, back = np.int64(1), np.int64(0)
    sums_J[:] = 0
    for i in range(len(p.pass_I) - 1, -1, -1):
        local = p.pass_I[i].local
        size, others = _size(local), ((1 << p.num_bits) - 1) & ~local
        if others == 0:
            _sweep_all(p, i, x, y, size, coef_J, sums_J)
            continue
        blocks, fixed = aligned(2, size, x), np.int64(0)
        while True:
            _move(x, blocks[0], local, fixed, out)
            _move(y, blocks[1], local, fixed, out)
            _sweep_all(p, i, blocks[0], blocks[1], size, coef_J, sums_J)
            _move(x, blocks[0], local, fixed, back)
            _move(y, blocks[1], local, fixed, back)
            fixed = (fixed - others) & others
            if fixed == 0:
                break


@numba.njit()
def square(x: Floats, p_S: Array) -> None:  # pragma: no cover (compiled)
    if x.ndim == 1:
        for i in range(len(p_S)):
            p_S[i] = x[i] * x[i]
    else:
        for i in range(len(p_S)):
            p_S[i] = x[0, i] * x[0, i]
        for i in range(len(p_S)):
            p_S[i] += x[1, i] * x[1, i]


@numba.njit()
def weigh(x: Floats, v_S: Array, y: Floats) -> None:  # pragma: no cover (compiled)
    """y = diag(v) x."""
    y[:] = 0
    if x.ndim == 1:
        for i in range(len(v_S)):
            y[i] = x[i] * v_S[i]
    else:
        for component in range(2):
            for i in range(len(v_S)):
                y[component, i] = x[component, i] * v_S[i]


@numba.njit()
def start(x: Floats) -> None:  # pragma: no cover (compiled)
    """x = |0...0>."""
    x[:] = 0
    if x.ndim == 1:
        x[0] = 1
    else:
        x[0, 0] = 1


@compiled.kept
def values(p: Plan, theta_KP: Array, like: Floats, num_states: int) -> tuple:  # pragma: no cover (compiled)
    """p_KS, the states after all gates on |0...0>, and trig of every circuit."""
    num, steps = len(theta_KP), len(p.step_J)
    p_KS = np.empty((num, num_states))
    x_K = aligned(num, 1 << p.num_bits, like)
    trig_K, w, u = np.zeros((num, 2 * p.num_angles + 2)), np.empty(16 * steps), np.empty(8)
    coef_J = np.empty((steps, 2, 8 * LANES), dtype=like.dtype)
    for k in range(num):
        trigonometry(p, theta_KP[k], trig_K[k])
        matrices(p, trig_K[k], u, w)
        _coefficients(p, w, False, coef_J)
        start(x_K[k])
        _forward(p, x_K[k], coef_J)
        square(x_K[k], p_KS[k])
    return p_KS, x_K, trig_K


@compiled.kept
def gradients(p: Plan, x_K: Floats, trig_K: Array, v_KS: Array, like: Floats) -> Array:  # pragma: no cover (compiled)
    """d(v.p)/d theta_KP for cotangents v_KS, given what ``values`` returned (left as it is)."""
    num, steps = len(v_KS), len(p.step_J)
    gradient_KP, w, scratch = np.empty((num, p.num_angles)), np.empty(16 * steps), np.empty(24)
    coef_J = np.empty((steps, 2, 8 * LANES), dtype=like.dtype)
    sums_J = np.empty((steps, 2, 6 * LANES), dtype=like.dtype)
    both = aligned(2, 1 << p.num_bits, like)
    for k in range(num):
        matrices(p, trig_K[k], scratch, w)
        _coefficients(p, w, True, coef_J)
        both[0] = x_K[k]
        weigh(both[0], v_KS[k], both[1])
        _backward(p, both[0], both[1], coef_J, sums_J)
        collect(p, trig_K[k], sums_J, scratch, gradient_KP[k])
    return gradient_KP
