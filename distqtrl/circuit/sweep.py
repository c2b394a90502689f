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

import numpy as np

from distqtrl.circuit import kernels
from distqtrl.circuit.compiled import inner, kept
from distqtrl.circuit.gates import Array, Floats, coefficient, collect, matrices, trigonometry
from distqtrl.circuit.plan import Plan, whole
from distqtrl.circuit.simd import BITS, LANES, splat

LINE = 64  # bytes of a cache line
ROW = 2 * LANES  # of the sums


@inner
def _coefficients(p: Plan, w: Array, inverse: Any, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Fill 128 J numbers: the steps' matrices, or their inverses, for control 0 and 1 as the kernels take them.

    A control among the lanes needs one set only, the last: lanes take the matrix of their control bit.
    """
    for j in range(len(p.step_J)):
        target, control = p.step_J[j].target, p.step_J[j].control
        among = 0 <= control < BITS
        for value in range(0 if control >= BITS and not p.step_J[j].idle else 1, 2):
            c, first = 8 * LANES * (2 * j + value), 16 * j + 8 * value
            for slot in range(4 if p.step_J[j].real else 8):
                if target >= BITS and not among:
                    splat(coef_J, c + slot * LANES, coefficient(w, first, slot, inverse))
                    continue
                for lane in range(LANES):
                    which = slot
                    if target < BITS:
                        row = (lane >> target) & 1  # slots 0, 1: d, o
                        which = slot & 4 | row << 1 | row ^ (slot & 1)
                    if among:
                        first = 16 * j + 8 * ((lane >> control) & 1)
                    coef_J[c + slot * LANES + lane] = coefficient(w, first, which, inverse)


@inner
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


@inner
def _size(local: int) -> int:  # pragma: no cover (compiled)
    """How many numbers a block with these local bits has."""
    size = 1
    while local:
        local &= local - 1
        size <<= 1
    return size


@inner
def _subset(size: int, target: int, control: int, value: int) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Mask of the index bits that run freely, and the bits that are set in all indices."""
    mask, fixed = size - LANES, 0
    if target >= BITS:
        mask &= ~(1 << target)
    if control >= BITS:
        fixed = value << control
        mask &= ~(1 << control)
    return mask, fixed


@inner
def _apply(x: Floats, size: int, p: Plan, j: int, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    step, half = p.step_J[j], x.size // x.ndim
    target = step.target
    for value in range(0 if step.control >= BITS and not step.idle else 1, 2):
        mask, fixed = _subset(size, target, step.control, value)
        c = 8 * LANES * (2 * j + value)
        if x.ndim == 1 or step.real:
            for component in range(x.ndim):
                first = fixed | half * component
                if target < BITS:
                    kernels.apply_lanes(x, mask, first, target, coef_J, c)
                elif step.swap and not 0 <= step.control < BITS:
                    kernels.swap(x, mask, first, target)
                else:
                    kernels.apply_pairs(x, mask, first, target, coef_J, c)
        elif target < BITS:
            kernels.apply_lanes_complex(x, half, mask, fixed, target, coef_J, c)
        else:
            kernels.apply_pairs_complex(x, half, mask, fixed, target, coef_J, c)


@inner
def _sweep(
    x: Floats, y: Floats, size: int, p: Plan, j: int, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    step, half = p.step_J[j], x.size // x.ndim
    target = step.target
    for value in range(0 if step.control >= BITS and not step.idle else 1, 2):
        mask, fixed = _subset(size, target, step.control, value)
        c, low = 8 * LANES * (2 * j + value), 3 * ROW * (2 * j + value)
        if x.ndim == 1 or step.real:
            for component in range(x.ndim):
                first = fixed | half * component
                if target < BITS:
                    kernels.sweep_lanes(x, y, mask, first, target, coef_J, c, sums_J, ROW, low)
                else:
                    kernels.sweep_pairs(x, y, mask, first, target, coef_J, c, sums_J, ROW, low, low + LANES)
        elif target < BITS:
            kernels.sweep_lanes_complex(x, y, half, mask, fixed, target, coef_J, c, sums_J, ROW, low)
        else:
            kernels.sweep_pairs_complex(x, y, half, mask, fixed, target, coef_J, c, sums_J, ROW, low, low + LANES)


@inner
def _pair(size: int, p: Plan, j: int, value: int) -> tuple[int, int, int, int, int]:  # pragma: no cover (compiled)
    """As ``_subset`` of steps j and j + 1, where j's control has this value; places of their three matrices."""
    first, second = p.step_J[j], p.step_J[j + 1]
    mask, fixed = _subset(size, first.target, first.control, value)
    v = 2 * (j + 1) + (0 if second.control == first.target else 1)
    return mask & ~(1 << second.target), fixed, 2 * j + value, v, 2 * (j + 1) + 1


@inner
def _apply_two(x: Floats, size: int, p: Plan, j: int, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Steps j and j + 1."""
    first, second, c = p.step_J[j].target, p.step_J[j + 1].target, 8 * LANES
    for value in range(0 if p.step_J[j].control >= BITS else 1, 2):
        mask, fixed, u, v, w = _pair(size, p, j, value)
        kernels.apply_quads(x, mask, fixed, first, second, coef_J, c * u, c * v, c * w)


@inner
def _sweep_two(
    x: Floats, y: Floats, size: int, p: Plan, j: int, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    first, second, c, s = p.step_J[j].target, p.step_J[j + 1].target, 8 * LANES, 3 * ROW
    for value in range(0 if p.step_J[j].control >= BITS else 1, 2):
        mask, fixed, u, v, w = _pair(size, p, j, value)
        kernels.sweep_quads(
            x, y, mask, fixed, first, second, coef_J, c * u, c * v, c * w, sums_J, ROW, s * u, s * v, s * w
        )


@inner
def _apply_all(p: Plan, i: int, x: Floats, size: int, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    j = p.pass_I[i].first
    while j < p.pass_I[i].end:
        if x.ndim == 1 and p.step_J[j].paired:
            _apply_two(x, size, p, j, coef_J)
            j += 2
        else:
            _apply(x, size, p, j, coef_J)
            j += 1


@inner
def _sweep_all(
    p: Plan, i: int, x: Floats, y: Floats, size: int, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    j = p.pass_I[i].end - 1
    while j >= p.pass_I[i].first:
        if x.ndim == 1 and j > p.pass_I[i].first and p.step_J[j - 1].paired:
            _sweep_two(x, y, size, p, j - 1, coef_J, sums_J)
            j -= 2
            continue
        if p.step_J[j].turns:
            _sweep(x, y, size, p, j, coef_J, sums_J)
        else:
            _apply(x, size, p, j, coef_J)
            _apply(y, size, p, j, coef_J)
        j -= 1


@inner
def _forward(p: Plan, x: Floats, blocks: Floats | None, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    """Run all steps on x, in ``blocks`` (room for two) or all at once."""
    if blocks is None:
        _apply_all(p, 0, x, 1 << p.num_bits, coef_J)
    else:
        for i in range(len(p.pass_I)):
            local, fixed = p.pass_I[i].local, np.int64(0)
            size, others = _size(local), ((1 << p.num_bits) - 1) & ~local
            while True:
                _move(x, blocks[0], local, fixed, np.int64(1))
                _apply_all(p, i, blocks[0], size, coef_J)
                _move(x, blocks[0], local, fixed, np.int64(0))
                fixed = (fixed - others) & others
                if fixed == 0:
                    break


@inner
def _backward(
    p: Plan, x: Floats, y: Floats, blocks: Floats | None, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    """Un-compute psi (x) and lambda (y), and add up the sums."""
    if blocks is None:
        _sweep_all(p, 0, x, y, 1 << p.num_bits, coef_J, sums_J)
    else:
        for i in range(len(p.pass_I) - 1, -1, -1):
            local, fixed = p.pass_I[i].local, np.int64(0)
            size, others = _size(local), ((1 << p.num_bits) - 1) & ~local
            while True:
                _move(x, blocks[0], local, fixed, np.int64(1))
                _move(y, blocks[1], local, fixed, np.int64(1))
                _sweep_all(p, i, blocks[0], blocks[1], size, coef_J, sums_J)
                _move(x, blocks[0], local, fixed, np.int64(0))
                _move(y, blocks[1], local, fixed, np.int64(0))
                fixed = (fixed - others) & others
                if fixed == 0:
                    break


@inner
def _start(x: Floats) -> None:  # pragma: no cover (compiled)
    """x = |0...0>."""
    x[:] = 0
    if x.ndim == 1:
        x[0] = 1
    else:
        x[0, 0] = 1


@inner
def _square(x: Floats, p_S: Array) -> None:  # pragma: no cover (compiled)
    for i in range(len(p_S)):
        if x.ndim == 1:
            p_S[i] = x[i] * x[i]
        else:
            p_S[i] = x[0, i] * x[0, i]
            p_S[i] += x[1, i] * x[1, i]


@inner
def _weigh(psi: Floats, v_S: Array, x: Floats, y: Floats) -> None:  # pragma: no cover (compiled)
    """x = psi, y = diag(v) psi."""
    y[:] = 0
    kernels.copy(psi, 0, x, 0, psi.size)
    for i in range(len(v_S)):
        if psi.ndim == 1:
            y[i] = psi[i] * v_S[i]
        else:
            y[0, i] = psi[0, i] * v_S[i]
            y[1, i] = psi[1, i] * v_S[i]


@inner
def room(num: int, like: Floats) -> Any:  # pragma: no cover (compiled)
    """Empty, and starts on a cache line; NumPy's arrays start 16 bytes after one."""
    raw = np.empty(num + LINE // like.itemsize, like.dtype)
    start = (-raw.ctypes.data % LINE) // like.itemsize
    return raw[start : start + num]


@inner
def states(num: int, size: int, like: Floats) -> Any:  # pragma: no cover (compiled)
    """Room for states (num, size) or, of complex numbers, (num, 2, size): like has one axis or two."""
    if like.ndim == 1:
        return room(num * size, like).reshape((num, size))
    else:
        return room(num * 2 * size, like).reshape((num, 2, size))


@kept
def values(
    p: Plan, theta_KP: Array, num_states: int, like: Floats, blocks: Any
) -> tuple[Array, Floats, Array]:  # pragma: no cover (compiled)
    """p_KS, the states after all gates on |0...0>, and trig of every circuit.

    ``like`` is empty, of the states' dtype; it has two axes where they are complex. ``blocks`` is as of that function.
    """
    num, steps, inverse = len(theta_KP), len(p.step_J), np.int64(0)
    p_KS = np.empty(num * num_states).reshape((num, num_states))
    trig_K = np.empty(num * (2 * p.num_angles + 2)).reshape((num, 2 * p.num_angles + 2))
    x_K, coef_J = states(num, 1 << p.num_bits, like), room(steps * 16 * LANES, like)
    w, u = np.empty(16 * steps), np.empty(8)
    for k in range(num):
        x, trig = x_K[k], trig_K[k]
        trig[2 * p.num_angles :] = 0
        trigonometry(p, theta_KP[k], trig)
        matrices(x, p, trig, u, w)
        _coefficients(p, w, inverse, coef_J)
        _start(x)
        _forward(p, x, blocks, coef_J)
        _square(x, p_KS[k])
    return p_KS, x_K, trig_K


@kept
def gradients(
    p: Plan, x_K: Floats, trig_K: Array, v_KS: Array, like: Floats, blocks: Any
) -> Array:  # pragma: no cover (compiled)
    """d(v.p)/d theta_KP for cotangents v_KS, given what ``values`` returned (left as it is)."""
    num, steps, inverse = len(v_KS), len(p.step_J), np.int64(1)
    two: Any = np.int64(2)
    gradient_KP = np.empty(num * p.num_angles).reshape((num, p.num_angles))
    both, coef_J = (
        states(two, 1 << p.num_bits, like),
        room(steps * 16 * LANES, like),
    )
    sums_J = room(steps * 12 * LANES, like)
    w, scratch = np.empty(16 * steps), np.empty(24)
    x, y = both[0], both[1]
    for k in range(num):
        matrices(x, p, trig_K[k], scratch, w)
        _coefficients(p, w, inverse, coef_J)
        _weigh(x_K[k], v_KS[k], x, y)
        sums_J[:] = 0
        _backward(p, x, y, blocks, coef_J, sums_J)
        collect(x, p, trig_K[k], sums_J, scratch, gradient_KP[k])
    return gradient_KP


def blocks(p: Plan, like: Floats) -> Floats | None:
    """Room for two blocks; None for a state that is one block."""
    if whole(p):
        return None
    bits = max((int(local).bit_count() for local in p.pass_I["local"]), default=0)
    return np.empty((2, 2, 1 << bits) if like.ndim == 2 else (2, 1 << bits), like.dtype)
