"""Compiled kernels: apply a step to a block, or un-compute it and collect what its gradient needs.

A block has one row of 2^b real numbers, or a second one with imaginary parts. The three lowest bits are the lanes of
a vector. A step's matrix comes as eight coefficients, real parts and then imaginary ones. When target or control is
among the lanes, they are eight vectors, because the lanes differ; a control above the lanes selects vectors.

    target above the lanes: pairs (a, b) of vectors     a' = u00 a + u01 b,  b' = u10 a + u11 b
    target among the lanes: d a + o exchanged(a)        d = u00 or u11, o = u01 or u10, by the lane's target bit

Sums for the gradient, with M_ab = sum of conj(lambda_a) psi_b over the pairs (see statevector.py):

    0: Im M_00 (all diagonal lanes of a lane gate)   1: Im M_11   2: Re(M_01 - M_10)   3: Im(M_01 + M_10)
"""

# mypy: disable-error-code="no-untyped-def"

import numba

from distqtrl.circuit.simd import BITS, LANES, exchanged, load, splat, store, zero


@numba.njit()
def subset(size, target, control, value):
    """Mask of the index bits that run freely, and the bits that are set in all indices."""
    mask, fixed = size - LANES, 0
    if target >= BITS:
        mask &= ~(1 << target)
    if control >= BITS:
        fixed = value << control
        mask &= ~(1 << control)
    return mask, fixed


@numba.njit(inline="always")
def partner(a, target):
    """The vector's lanes exchanged along a target bit among the lanes."""
    if target == 0:
        return exchanged(a, 1)
    if target == 1:
        return exchanged(a, 2)
    return exchanged(a, 4)


@numba.njit(inline="always")
def entry(coef, slot, lanes):
    """A coefficient of a target above the lanes; ``lanes``: the control is among them."""
    if lanes:
        return load(coef, slot * LANES)
    return splat(coef, slot)


@numba.njit()
def apply(x, size, swaps, real, target, control, value, coef):
    """Apply a step in place to a block x of ``size`` numbers per component; a control acts where it has the value."""
    mask, fixed = subset(size, target, control, value)
    lanes = 0 <= control < BITS
    if swaps and target >= BITS and (control < 0 or control >= BITS):
        for component in range(len(x)):
            swap(x[component], mask, fixed, target)
    elif real:
        for component in range(len(x)):
            if target >= BITS:
                apply_pairs(x[component], mask, fixed, target, lanes, coef)
            else:
                apply_lanes(x[component], mask, fixed, target, coef)
    elif target >= BITS:
        apply_pairs_complex(x[0], x[1], mask, fixed, target, lanes, coef)
    else:
        apply_lanes_complex(x[0], x[1], mask, fixed, target, coef)


@numba.njit()
def swap(x, mask, fixed, target):
    stride, free = 1 << target, 0
    while True:
        i = free | fixed
        a, b = load(x, i), load(x, i + stride)
        store(x, i, b)
        store(x, i + stride, a)
        free = (free - mask) & mask
        if free == 0:
            break


@numba.njit()
def apply_pairs(x, mask, fixed, target, lanes, coef):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = entry(coef, 0, lanes), entry(coef, 1, lanes), entry(coef, 2, lanes), entry(coef, 3, lanes)
    while True:
        i = free | fixed
        a, b = load(x, i), load(x, i + stride)
        store(x, i, u00 * a + u01 * b)
        store(x, i + stride, u10 * a + u11 * b)
        free = (free - mask) & mask
        if free == 0:
            break


@numba.njit()
def apply_lanes(x, mask, fixed, target, coef):
    free = 0
    d, o = load(coef, 0), load(coef, LANES)
    while True:
        i = free | fixed
        a = load(x, i)
        store(x, i, d * a + o * partner(a, target))
        free = (free - mask) & mask
        if free == 0:
            break


@numba.njit()
def apply_pairs_complex(x, z, mask, fixed, target, lanes, coef):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = entry(coef, 0, lanes), entry(coef, 1, lanes), entry(coef, 2, lanes), entry(coef, 3, lanes)
    v00, v01, v10, v11 = entry(coef, 4, lanes), entry(coef, 5, lanes), entry(coef, 6, lanes), entry(coef, 7, lanes)
    while True:
        i = free | fixed
        a, b, c, d = load(x, i), load(x, i + stride), load(z, i), load(z, i + stride)
        store(x, i, u00 * a + u01 * b - v00 * c - v01 * d)
        store(x, i + stride, u10 * a + u11 * b - v10 * c - v11 * d)
        store(z, i, u00 * c + u01 * d + v00 * a + v01 * b)
        store(z, i + stride, u10 * c + u11 * d + v10 * a + v11 * b)
        free = (free - mask) & mask
        if free == 0:
            break


@numba.njit()
def apply_lanes_complex(x, z, mask, fixed, target, coef):
    free = 0
    d, o, e, q = load(coef, 0), load(coef, LANES), load(coef, 4 * LANES), load(coef, 5 * LANES)
    while True:
        i = free | fixed
        a, c = load(x, i), load(z, i)
        b, f = partner(a, target), partner(c, target)
        store(x, i, d * a + o * b - e * c - q * f)
        store(z, i, d * c + o * f + e * a + q * b)
        free = (free - mask) & mask
        if free == 0:
            break


@numba.njit()
def sweep(x, y, size, real, target, control, value, coef, sums):
    """Apply a step's inverse to psi (x) and lambda (y) in place, after adding the step's sums."""
    mask, fixed = subset(size, target, control, value)
    lanes = 0 <= control < BITS
    if real:
        for component in range(len(x)):
            if target >= BITS:
                sweep_pairs(x[component], y[component], mask, fixed, target, lanes, coef, sums)
            else:
                sweep_lanes(x[component], y[component], mask, fixed, target, coef, sums)
    elif target >= BITS:
        sweep_pairs_complex(x[0], x[1], y[0], y[1], mask, fixed, target, lanes, coef, sums)
    else:
        sweep_lanes_complex(x[0], x[1], y[0], y[1], mask, fixed, target, coef, sums)


@numba.njit(inline="always")
def add(sums, row, vector):
    """Add a vector to a row of the sums."""
    store(sums, row * LANES, load(sums, row * LANES) + vector)


@numba.njit()
def sweep_pairs(x, y, mask, fixed, target, lanes, coef, sums):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = entry(coef, 0, lanes), entry(coef, 1, lanes), entry(coef, 2, lanes), entry(coef, 3, lanes)
    total = zero(x)
    while True:
        i = free | fixed
        a, b, g, h = load(x, i), load(x, i + stride), load(y, i), load(y, i + stride)
        total = total + g * b - h * a
        store(x, i, u00 * a + u01 * b)
        store(x, i + stride, u10 * a + u11 * b)
        store(y, i, u00 * g + u01 * h)
        store(y, i + stride, u10 * g + u11 * h)
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, 2, total)


@numba.njit()
def sweep_lanes(x, y, mask, fixed, target, coef, sums):
    free = 0
    d, o = load(coef, 0), load(coef, LANES)
    total = zero(x)
    while True:
        i = free | fixed
        a, g = load(x, i), load(y, i)
        b = partner(a, target)
        total = total + g * b
        store(x, i, d * a + o * b)
        store(y, i, d * g + o * partner(g, target))
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, 2, total)


@numba.njit()
def sweep_pairs_complex(x, z, y, w, mask, fixed, target, lanes, coef, sums):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = entry(coef, 0, lanes), entry(coef, 1, lanes), entry(coef, 2, lanes), entry(coef, 3, lanes)
    v00, v01, v10, v11 = entry(coef, 4, lanes), entry(coef, 5, lanes), entry(coef, 6, lanes), entry(coef, 7, lanes)
    low, high, cross, turn = zero(x), zero(x), zero(x), zero(x)
    while True:
        i = free | fixed
        j = i + stride
        a, b, c, d = load(x, i), load(x, j), load(z, i), load(z, j)
        g, h, p, q = load(y, i), load(y, j), load(w, i), load(w, j)
        low = low + g * c - p * a
        high = high + h * d - q * b
        cross = cross + g * b + p * d - h * a - q * c
        turn = turn + g * d - p * b + h * c - q * a
        store(x, i, u00 * a + u01 * b - v00 * c - v01 * d)
        store(x, j, u10 * a + u11 * b - v10 * c - v11 * d)
        store(z, i, u00 * c + u01 * d + v00 * a + v01 * b)
        store(z, j, u10 * c + u11 * d + v10 * a + v11 * b)
        store(y, i, u00 * g + u01 * h - v00 * p - v01 * q)
        store(y, j, u10 * g + u11 * h - v10 * p - v11 * q)
        store(w, i, u00 * p + u01 * q + v00 * g + v01 * h)
        store(w, j, u10 * p + u11 * q + v10 * g + v11 * h)
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, 0, low)
    add(sums, 1, high)
    add(sums, 2, cross)
    add(sums, 3, turn)


@numba.njit()
def sweep_lanes_complex(x, z, y, w, mask, fixed, target, coef, sums):
    free = 0
    d, o, e, q = load(coef, 0), load(coef, LANES), load(coef, 4 * LANES), load(coef, 5 * LANES)
    diagonal, cross, turn = zero(x), zero(x), zero(x)
    while True:
        i = free | fixed
        a, c, g, p = load(x, i), load(z, i), load(y, i), load(w, i)
        b, f, h, r = partner(a, target), partner(c, target), partner(g, target), partner(p, target)
        diagonal = diagonal + g * c - p * a
        cross = cross + g * b + p * f
        turn = turn + g * f - p * b
        store(x, i, d * a + o * b - e * c - q * f)
        store(z, i, d * c + o * f + e * a + q * b)
        store(y, i, d * g + o * h - e * p - q * r)
        store(w, i, d * p + o * r + e * g + q * h)
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, 0, diagonal)
    add(sums, 2, cross)
    add(sums, 3, turn)


@numba.njit()
def copy(source, first, target, to, length):
    """target[to : to + length] = source[first : first + length]; length is a multiple of LANES."""
    for i in range(0, length, LANES):
        store(target, to + i, load(source, first + i))
