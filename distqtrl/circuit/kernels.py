"""Compiled kernels: apply a step to a block, or un-compute it and collect what its gradient needs.

A block is an array (2^b,) of real numbers, or one (2, 2^b) of real and imaginary parts, these ``half`` of it on. The
three lowest index bits are the lanes of a vector. A step's matrix is eight vectors of coefficients, from number c of
coef on, real parts and then imaginary ones: lanes differ where the target, the control or the circuit's number is among
them. A control above them selects vectors.

    target above the lanes: pairs (a, b) of vectors     a' = u00 a + u01 b,  b' = u10 a + u11 b
    target among the lanes: d a + o exchanged(a)        d = u00 or u11, o = u01 or u10, by the lane's target bit

Sums for the gradient, with M_ab = sum of conj(lambda_a) psi_b over the pairs (see statevector.py): three rows of them,
one entry for the pairs' first numbers (at ``low``) and one for the second (``high``); a lane gate's are both at low.

    0: Im M_00 and Im M_11      1: Re M_01 and Re M_10      2: Im M_01 and Im M_10

Which products are added in which order is the same in a lane as in a pair.
"""

# mypy: disable-error-code="no-untyped-def"

from distqtrl.circuit.compiled import inner
from distqtrl.circuit.simd import LANES, add, exchanged, fused, imaginary_part, load, real_part, reduced, store, zero


@inner
def four(coef, c):
    """A matrix's entries, row by row, as vectors."""
    return load(coef, c), load(coef, c + LANES), load(coef, c + 2 * LANES), load(coef, c + 3 * LANES)


@inner
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


@inner
def apply_pairs(x, mask, fixed, target, coef, c):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = four(coef, c)
    while True:
        i = free | fixed
        a, b = load(x, i), load(x, i + stride)
        store(x, i, fused(u00, a, u01 * b))
        store(x, i + stride, fused(u11, b, u10 * a))
        free = (free - mask) & mask
        if free == 0:
            break


@inner
def apply_quads(x, mask, fixed, first, second, coef, u, v, w):
    """Two steps in one pass: a matrix at u on the pairs of target first, then v or w, by its bit, on second's."""
    i1, i2, free = 1 << first, 1 << second, 0
    u00, u01, u10, u11 = four(coef, u)
    v00, v01, v10, v11 = four(coef, v)
    w00, w01, w10, w11 = four(coef, w)
    while True:
        i = free | fixed
        a, b, c, d = load(x, i), load(x, i + i2), load(x, i + i1), load(x, i + i1 + i2)
        a, c = fused(u00, a, u01 * c), fused(u11, c, u10 * a)
        b, d = fused(u00, b, u01 * d), fused(u11, d, u10 * b)
        store(x, i, fused(v00, a, v01 * b))
        store(x, i + i2, fused(v11, b, v10 * a))
        store(x, i + i1, fused(w00, c, w01 * d))
        store(x, i + i1 + i2, fused(w11, d, w10 * c))
        free = (free - mask) & mask
        if free == 0:
            break


@inner
def apply_lanes(x, mask, fixed, target, coef, c):
    free = 0
    d, o = load(coef, c), load(coef, c + LANES)
    while True:
        i = free | fixed
        a = load(x, i)
        store(x, i, fused(d, a, o * exchanged(a, target)))
        free = (free - mask) & mask
        if free == 0:
            break


@inner
def apply_pairs_complex(x, half, mask, fixed, target, coef, c):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = four(coef, c)
    v00, v01, v10, v11 = four(coef, c + 4 * LANES)
    while True:
        i = free | fixed
        j = i + stride
        a, b, c, d = load(x, i), load(x, j), load(x, half + i), load(x, half + j)
        store(x, i, real_part(u00, a, u01, b, v00, c, v01, d))
        store(x, j, real_part(u11, b, u10, a, v11, d, v10, c))
        store(x, half + i, imaginary_part(u00, a, u01, b, v00, c, v01, d))
        store(x, half + j, imaginary_part(u11, b, u10, a, v11, d, v10, c))
        free = (free - mask) & mask
        if free == 0:
            break


@inner
def apply_lanes_complex(x, half, mask, fixed, target, coef, c):
    free = 0
    d, o, e, q = load(coef, c), load(coef, c + LANES), load(coef, c + 4 * LANES), load(coef, c + 5 * LANES)
    while True:
        i = free | fixed
        a, c = load(x, i), load(x, half + i)
        b, f = exchanged(a, target), exchanged(c, target)
        store(x, i, real_part(d, a, o, b, e, c, q, f))
        store(x, half + i, imaginary_part(d, a, o, b, e, c, q, f))
        free = (free - mask) & mask
        if free == 0:
            break


@inner
def sweep_pairs(x, y, mask, fixed, target, coef, c, sums, row, low, high):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = four(coef, c)
    upper, lower = zero(x), zero(x)
    while True:
        i = free | fixed
        a, b, g, h = load(x, i), load(x, i + stride), load(y, i), load(y, i + stride)
        upper, lower = fused(g, b, upper), fused(h, a, lower)
        store(x, i, fused(u00, a, u01 * b))
        store(x, i + stride, fused(u11, b, u10 * a))
        store(y, i, fused(u00, g, u01 * h))
        store(y, i + stride, fused(u11, h, u10 * g))
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, row + low, upper)
    add(sums, row + high, lower)


@inner
def sweep_quads(x, y, mask, fixed, first, second, coef, u, v, w, sums, row, one, zeros, ones):
    """The inverses of two steps in one pass, second's before first's; their sums are at zeros or ones, and at one."""
    i1, i2, free = 1 << first, 1 << second, 0
    u00, u01, u10, u11 = four(coef, u)
    v00, v01, v10, v11 = four(coef, v)
    w00, w01, w10, w11 = four(coef, w)
    upper, lower, upper_0, lower_0, upper_1, lower_1 = zero(x), zero(x), zero(x), zero(x), zero(x), zero(x)
    while True:
        i = free | fixed
        a, b, c, d = load(x, i), load(x, i + i2), load(x, i + i1), load(x, i + i1 + i2)
        g, h, p, q = load(y, i), load(y, i + i2), load(y, i + i1), load(y, i + i1 + i2)
        upper_0, lower_0 = fused(g, b, upper_0), fused(h, a, lower_0)
        upper_1, lower_1 = fused(p, d, upper_1), fused(q, c, lower_1)
        a, b = fused(v00, a, v01 * b), fused(v11, b, v10 * a)
        c, d = fused(w00, c, w01 * d), fused(w11, d, w10 * c)
        g, h = fused(v00, g, v01 * h), fused(v11, h, v10 * g)
        p, q = fused(w00, p, w01 * q), fused(w11, q, w10 * p)
        upper, lower = fused(h, d, fused(g, c, upper)), fused(q, b, fused(p, a, lower))
        store(x, i, fused(u00, a, u01 * c))
        store(x, i + i1, fused(u11, c, u10 * a))
        store(x, i + i2, fused(u00, b, u01 * d))
        store(x, i + i1 + i2, fused(u11, d, u10 * b))
        store(y, i, fused(u00, g, u01 * p))
        store(y, i + i1, fused(u11, p, u10 * g))
        store(y, i + i2, fused(u00, h, u01 * q))
        store(y, i + i1 + i2, fused(u11, q, u10 * h))
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, row + one, upper)
    add(sums, row + one + LANES, lower)
    add(sums, row + zeros, upper_0)
    add(sums, row + zeros + LANES, lower_0)
    add(sums, row + ones, upper_1)
    add(sums, row + ones + LANES, lower_1)


@inner
def sweep_lanes(x, y, mask, fixed, target, coef, c, sums, row, low):
    free = 0
    d, o = load(coef, c), load(coef, c + LANES)
    total = zero(x)
    while True:
        i = free | fixed
        a, g = load(x, i), load(y, i)
        b = exchanged(a, target)
        total = fused(g, b, total)
        store(x, i, fused(d, a, o * b))
        store(y, i, fused(d, g, o * exchanged(g, target)))
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, row + low, total)


@inner
def sweep_pairs_complex(x, y, half, mask, fixed, target, coef, c, sums, row, low, high):
    stride, free = 1 << target, 0
    u00, u01, u10, u11 = four(coef, c)
    v00, v01, v10, v11 = four(coef, c + 4 * LANES)
    diagonal0, diagonal1, cross0, cross1, turn0, turn1 = zero(x), zero(x), zero(x), zero(x), zero(x), zero(x)
    while True:
        i = free | fixed
        j = i + stride
        a, b, c, d = load(x, i), load(x, j), load(x, half + i), load(x, half + j)
        g, h, p, q = load(y, i), load(y, j), load(y, half + i), load(y, half + j)
        diagonal0 = reduced(p, a, fused(g, c, diagonal0))
        diagonal1 = reduced(q, b, fused(h, d, diagonal1))
        cross0 = fused(p, d, fused(g, b, cross0))
        cross1 = fused(q, c, fused(h, a, cross1))
        turn0 = reduced(p, b, fused(g, d, turn0))
        turn1 = reduced(q, a, fused(h, c, turn1))
        store(x, i, real_part(u00, a, u01, b, v00, c, v01, d))
        store(x, j, real_part(u11, b, u10, a, v11, d, v10, c))
        store(x, half + i, imaginary_part(u00, a, u01, b, v00, c, v01, d))
        store(x, half + j, imaginary_part(u11, b, u10, a, v11, d, v10, c))
        store(y, i, real_part(u00, g, u01, h, v00, p, v01, q))
        store(y, j, real_part(u11, h, u10, g, v11, q, v10, p))
        store(y, half + i, imaginary_part(u00, g, u01, h, v00, p, v01, q))
        store(y, half + j, imaginary_part(u11, h, u10, g, v11, q, v10, p))
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, low, diagonal0)
    add(sums, high, diagonal1)
    add(sums, row + low, cross0)
    add(sums, row + high, cross1)
    add(sums, 2 * row + low, turn0)
    add(sums, 2 * row + high, turn1)


@inner
def sweep_lanes_complex(x, y, half, mask, fixed, target, coef, c, sums, row, low):
    free = 0
    d, o, e, q = load(coef, c), load(coef, c + LANES), load(coef, c + 4 * LANES), load(coef, c + 5 * LANES)
    diagonal, cross, turn = zero(x), zero(x), zero(x)
    while True:
        i = free | fixed
        a, c, g, p = load(x, i), load(x, half + i), load(y, i), load(y, half + i)
        b, f, h, r = exchanged(a, target), exchanged(c, target), exchanged(g, target), exchanged(p, target)
        diagonal = reduced(p, a, fused(g, c, diagonal))
        cross = fused(p, f, fused(g, b, cross))
        turn = reduced(p, b, fused(g, f, turn))
        store(x, i, real_part(d, a, o, b, e, c, q, f))
        store(x, half + i, imaginary_part(d, a, o, b, e, c, q, f))
        store(y, i, real_part(d, g, o, h, e, p, q, r))
        store(y, half + i, imaginary_part(d, g, o, h, e, p, q, r))
        free = (free - mask) & mask
        if free == 0:
            break
    add(sums, low, diagonal)
    add(sums, row + low, cross)
    add(sums, 2 * row + low, turn)


@inner
def copy(source, first, target, to, length):
    """target[to : to + length] = source[first : first + length]; length is a multiple of LANES."""
    for i in range(0, length, LANES):
        store(target, to + i, load(source, first + i))
