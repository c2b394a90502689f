"""The kernel of ``cuda``: a block of threads runs a circuit, its state in shared memory while it fits there.

    M_g = sum over pairs of conj(lambda_g) psi_{g-1}^T,   d(v.p)/d theta = 2 Re sum of (dU_g/d theta) * M_g

The gates are data, so that one machine code serves every circuit; circuits differ by their angles. A thread holds pairs
of amplitudes and meets the others after every gate. Real and imaginary parts are arrays of their own, so that
neighbours read neighbouring numbers. Sines are taken in float64, and matrices rounded afterwards. Sums over a
block have one order, so that results are the same bit for bit; without instructions that Numba's simulator lacks.
"""
# mypy: disable-error-code="no-untyped-def"

import math
from functools import cache
from typing import Any

import numba
from numba import cuda

from distqtrl.circuit.ansatz import CODES

ROWS = 8  # angles whose partial sums wait for each other
REALS = {"float64": numba.float64, "float32": numba.float32}
ROOT_HALF = math.sqrt(0.5)
U3, RX, RY, RZ, PHASE, H, X, Y, Z = CODES.values()


@cuda.jit(device=True)
def _pair(j, target, control):
    """The j-th index whose target bit is 0 and, where there is a control (not -1), whose control bit is 1."""
    low, high = target, control
    if control < 0:
        return ((j >> target) << (target + 1)) | (j & ((1 << target) - 1))
    if control < target:
        low, high = control, target
    j = ((j >> low) << (low + 1)) | (j & ((1 << low) - 1))
    return (((j >> high) << (high + 1)) | (j & ((1 << high) - 1))) | (1 << control)


@cuda.jit(device=True)
def _rotation(kind, c, s, p, q, m_X):
    """A rotation's matrix of cos c and sin s, its row 1 turned by p and its column 1 by q (u3); real, imaginary, ..."""
    for i in range(8):
        m_X[i] = 0.0
    if kind == RX:
        m_X[0], m_X[6] = c, c
        m_X[3], m_X[5] = -s, -s
    elif kind == RZ:
        m_X[0], m_X[1] = c, -s
        m_X[6], m_X[7] = c, s
    else:
        m_X[0] = c
        m_X[2], m_X[3] = -s * math.cos(q), -s * math.sin(q)
        m_X[4], m_X[5] = s * math.cos(p), s * math.sin(p)
        m_X[6], m_X[7] = c * math.cos(p + q), c * math.sin(p + q)


@cuda.jit(device=True)
def _matrix(kind, theta_P, first, m_X):
    """The matrix of a gate whose angles begin at ``first``."""
    if kind <= RZ:
        p = theta_P[first + 1] if kind == U3 else 0.0
        q = theta_P[first + 2] if kind == U3 else 0.0
        _rotation(kind, math.cos(theta_P[first] / 2), math.sin(theta_P[first] / 2), p, q, m_X)
        return
    for i in range(8):
        m_X[i] = 0.0
    if kind == PHASE:
        m_X[0] = 1.0
        m_X[6], m_X[7] = math.cos(theta_P[first]), math.sin(theta_P[first])
    elif kind == H:
        m_X[0], m_X[2], m_X[4], m_X[6] = ROOT_HALF, ROOT_HALF, ROOT_HALF, -ROOT_HALF
    elif kind == X:
        m_X[2], m_X[4] = 1.0, 1.0
    elif kind == Y:
        m_X[3], m_X[5] = -1.0, 1.0
    else:
        m_X[0], m_X[6] = 1.0, -1.0


@cuda.jit(device=True)
def _slope(kind, theta_P, first, which, m_X):
    """The derivative of the matrix in the gate's angle ``which``."""
    if kind <= RZ and which == 0:
        p = theta_P[first + 1] if kind == U3 else 0.0
        q = theta_P[first + 2] if kind == U3 else 0.0
        _rotation(kind, -math.sin(theta_P[first] / 2) / 2, math.cos(theta_P[first] / 2) / 2, p, q, m_X)
        return
    _matrix(kind, theta_P, first, m_X)
    for i in range(4):  # times i, where exp(i angle) stands: row 1 (p), column 1 (q), or the last number alone
        turns = i == 3 or (kind == U3 and i == 3 - which)
        re, im = m_X[2 * i], m_X[2 * i + 1]
        m_X[2 * i] = -im if turns else 0.0
        m_X[2 * i + 1] = re if turns else 0.0


@cuda.jit(device=True)
def _angles(kind):
    return 3 if kind == U3 else 1 if kind <= PHASE else 0


@cuda.jit(device=True)
def _apply(re_S, im_S, i, k, a, b, c, d, e, f, g, h):
    """Multiply amplitudes i and k by a matrix: a + ib, c + id; e + if, g + ih."""
    x, y, z, w = re_S[i], im_S[i], re_S[k], im_S[k]
    re_S[i] = a * x - b * y + c * z - d * w
    im_S[i] = a * y + b * x + c * w + d * z
    re_S[k] = e * x - f * y + g * z - h * w
    im_S[k] = e * y + f * x + g * w + h * z


@cuda.jit(device=True)
def _reduced(partial_X, sums_X, gradient_P, last, count):
    """gradient_P[last], [last - 1], ... of ``count`` rows of partial sums, one number per thread each."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    parts = threads // ROWS if threads > ROWS else 1
    cuda.syncthreads()
    for job in range(thread, count * parts, threads):
        row, part = job // parts, job % parts
        total = 0.0
        for other in range(part, threads, parts):
            total += partial_X[row * threads + other]
        sums_X[row * parts + part] = total
    cuda.syncthreads()
    for row in range(thread, count, threads):
        total = 0.0
        for part in range(parts):
            total += sums_X[row * parts + part]
        gradient_P[last - row] = 2 * total


def numbers(num_qubits: int, threads: int, backward: bool) -> int:
    """How many real numbers a block works on: psi, and where there is a gradient lambda and partial sums."""
    states = 2 ** (num_qubits + 1)
    return 2 * states + ROWS * threads + ROWS * max(1, threads // ROWS) if backward else states


@cache
def kernel(precision: str, shared: bool) -> Any:
    """The compiled kernel of a precision, with what a block works on in shared memory or in ``work_BX``.

    forward: from |0>, else from psi_KX (real parts, then imaginary); p_KS is written. keep: psi_KX is written.
    backward: gradient_KP of v_KS is written. Rows of theta_KP are shared out over the blocks B, whose matrices and
    slopes have room in matrix_BGX and slope_BPX.
    """
    return cuda.jit(signature(precision))(source(precision, shared))


def signature(precision: str) -> tuple[Any, ...]:
    """The types of the kernel's arguments."""

    def array(kind: Any, dimensions: int) -> Any:
        return numba.types.Array(kind, dimensions, "C")

    real, double, flag = REALS[precision], numba.float64, numba.boolean
    circuits = [array(numba.int32, 1)] * 4 + [array(double, 2)] * 3
    scratch = [array(real, 2), array(double, 2), array(real, 3), array(real, 3), array(real, 2)]
    return (*circuits, *scratch, numba.int64, flag, flag, flag)


def source(precision: str, shared: bool) -> Any:
    """The kernel's function, not compiled."""
    real = REALS[precision]

    def circuits(
        kind_G,
        target_G,
        control_G,
        angle_G,
        theta_KP,
        v_KS,
        p_KS,
        psi_KX,
        gradient_KP,
        matrix_BGX,
        slope_BPX,
        work_BX,
        num_qubits,
        forward,
        keep,
        backward,
    ):
        thread, threads, block = cuda.threadIdx.x, cuda.blockDim.x, cuda.blockIdx.x
        states, num_gates = 1 << num_qubits, len(kind_G)
        work_X = cuda.shared.array(0, real) if shared else work_BX[block]
        re_S, im_S = work_X[:states], work_X[states : 2 * states]
        for k in range(block, theta_KP.shape[0], cuda.gridDim.x):
            theta_P = theta_KP[k]
            cuda.syncthreads()
            for g in range(thread, num_gates, threads):
                kind, first = kind_G[g], angle_G[g]
                _matrix(kind, theta_P, first, matrix_BGX[block, g])
                if backward:
                    for which in range(_angles(kind)):
                        _slope(kind, theta_P, first, which, slope_BPX[block, first + which])
            for i in range(thread, states, threads):
                if forward:
                    re_S[i], im_S[i] = (1.0 if i == 0 else 0.0), 0.0
                else:
                    re_S[i], im_S[i] = psi_KX[k, i], psi_KX[k, states + i]
            cuda.syncthreads()
            if forward:
                for g in range(num_gates):
                    control = control_G[g]
                    m_X = matrix_BGX[block, g]
                    a, b, c, d, e, f, x, y = m_X[0], m_X[1], m_X[2], m_X[3], m_X[4], m_X[5], m_X[6], m_X[7]
                    bit, other = num_qubits - 1 - target_G[g], -1 if control < 0 else num_qubits - 1 - control
                    for j in range(thread, states >> (1 if control < 0 else 2), threads):
                        i = _pair(j, bit, other)
                        _apply(re_S, im_S, i, i | (1 << bit), a, b, c, d, e, f, x, y)
                    cuda.syncthreads()
                for i in range(thread, states, threads):
                    up, down = float(re_S[i]), float(im_S[i])
                    p_KS[k, i] = up * up + down * down
                    if keep:
                        psi_KX[k, i], psi_KX[k, states + i] = re_S[i], im_S[i]
            if backward:
                bra_S, ket_S = work_X[2 * states : 3 * states], work_X[3 * states : 4 * states]  # lambda's parts
                partial_X, sums_X = work_X[4 * states :], work_X[4 * states + ROWS * threads :]
                for i in range(thread, states, threads):
                    bra_S[i], ket_S[i] = v_KS[k, i] * re_S[i], v_KS[k, i] * im_S[i]
                cuda.syncthreads()
                last, rows = theta_KP.shape[1] - 1, 0
                for reverse in range(num_gates):
                    g = num_gates - 1 - reverse
                    control = control_G[g]
                    m_X = matrix_BGX[block, g]  # its inverse has rows and columns exchanged, and is conjugate
                    a, b, c, d, e, f, x, y = m_X[0], -m_X[1], m_X[4], -m_X[5], m_X[2], -m_X[3], m_X[6], -m_X[7]
                    bit, other = num_qubits - 1 - target_G[g], -1 if control < 0 else num_qubits - 1 - control
                    m0, m1, m2, m3 = real(0), real(0), real(0), real(0)
                    m4, m5, m6, m7 = real(0), real(0), real(0), real(0)
                    for j in range(thread, states >> (1 if control < 0 else 2), threads):
                        i = _pair(j, bit, other)
                        o = i | (1 << bit)
                        _apply(re_S, im_S, i, o, a, b, c, d, e, f, x, y)
                        p, q, r, s = bra_S[i], ket_S[i], bra_S[o], ket_S[o]
                        m0 += p * re_S[i] + q * im_S[i]
                        m1 += p * im_S[i] - q * re_S[i]
                        m2 += p * re_S[o] + q * im_S[o]
                        m3 += p * im_S[o] - q * re_S[o]
                        m4 += r * re_S[i] + s * im_S[i]
                        m5 += r * im_S[i] - s * re_S[i]
                        m6 += r * re_S[o] + s * im_S[o]
                        m7 += r * im_S[o] - s * re_S[o]
                        _apply(bra_S, ket_S, i, o, a, b, c, d, e, f, x, y)
                    num_angles = _angles(kind_G[g])
                    for backwards in range(num_angles):
                        d_X = slope_BPX[block, angle_G[g] + num_angles - 1 - backwards]
                        partial_X[rows * threads + thread] = (d_X[0] * m0 - d_X[1] * m1 + d_X[2] * m2 - d_X[3] * m3) + (
                            d_X[4] * m4 - d_X[5] * m5 + d_X[6] * m6 - d_X[7] * m7
                        )
                        rows += 1
                        if rows == ROWS:
                            _reduced(partial_X, sums_X, gradient_KP[k], last, rows)
                            last, rows = last - rows, 0
                    cuda.syncthreads()
                if rows:
                    _reduced(partial_X, sums_X, gradient_KP[k], last, rows)

    return circuits
