"""Exact simulation: p_S and, for any cotangent v_S on it, the gradient by one adjoint sweep.

    psi = U_G ... U_1 |0>,   p_i = |psi_i|^2
    d(v.p)/d theta = 2 Re <lambda_g| dU_g/d theta |psi_{g-1}>,   lambda_G = diag(v) psi      (v.p = <diag(v)>)

The sweep runs the gates backwards and un-computes the state (Jones & Gacon, arXiv 2009.02823), so memory
is two state vectors whatever the depth; cost O(G 2^n). Kernels are Numba, complex128, one thread; the
compiled code is cached on disk.
"""

import numba
import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import KINDS, Program

Array = npt.NDArray[np.float64]
State = npt.NDArray[np.complex128]
Index = npt.NDArray[np.int64]
U3, RY = KINDS.index("u3"), KINDS.index("ry")


@numba.njit(cache=True)
def _matrices(kind: int, angles: Array, u: State, du: State) -> int:  # pragma: no cover (compiled)
    """Fill a gate's matrix u (2, 2) and its derivatives du (3, 2, 2); return the number of angles."""
    if kind == U3:
        c, s = np.cos(angles[0] / 2), np.sin(angles[0] / 2)
        ep, el = np.exp(1j * angles[1]), np.exp(1j * angles[2])
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -el * s, ep * s, ep * el * c
        du[0, 0, 0], du[0, 0, 1], du[0, 1, 0], du[0, 1, 1] = -s / 2, -el * c / 2, ep * c / 2, -ep * el * s / 2
        du[1, 0, 0], du[1, 0, 1], du[1, 1, 0], du[1, 1, 1] = 0, 0, 1j * ep * s, 1j * ep * el * c
        du[2, 0, 0], du[2, 0, 1], du[2, 1, 0], du[2, 1, 1] = 0, -1j * el * s, 0, 1j * ep * el * c
        return 3
    if kind == RY:
        c, s = np.cos(angles[0] / 2), np.sin(angles[0] / 2)
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -s, s, c
        du[0, 0, 0], du[0, 0, 1], du[0, 1, 0], du[0, 1, 1] = -s / 2, -c / 2, c / 2, -s / 2
        return 1
    u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 0, 1, 1, 0
    return 0


@numba.njit(cache=True)
def _place(n: int, target: int, control: int) -> tuple[int, int, int]:  # pragma: no cover (compiled)
    """Shift and stride of the target's bit, and the mask of the control's (0: none); wire 0 is the highest bit."""
    shift = n - 1 - target
    return shift, 1 << shift, 0 if control < 0 else 1 << (n - 1 - control)


@numba.njit(cache=True)
def _forward(
    n: int, kind_G: Index, target_G: Index, control_G: Index, angle_G: Index, theta_P: Array
) -> State:  # pragma: no cover (compiled)
    psi = np.zeros(1 << n, dtype=np.complex128)
    psi[0] = 1.0
    u, du = np.empty((2, 2), dtype=np.complex128), np.empty((3, 2, 2), dtype=np.complex128)
    for g in range(len(kind_G)):
        _matrices(kind_G[g], theta_P[angle_G[g] :], u, du)
        u00, u01, u10, u11 = u[0, 0], u[0, 1], u[1, 0], u[1, 1]
        shift, stride, control = _place(n, target_G[g], control_G[g])
        for pair in range(1 << (n - 1)):
            i = ((pair >> shift) << (shift + 1)) | (pair & (stride - 1))
            if i & control == control:
                a, b = psi[i], psi[i + stride]
                psi[i] = u00 * a + u01 * b
                psi[i + stride] = u10 * a + u11 * b
    return psi


@numba.njit(cache=True)
def _backward(
    n: int, kind_G: Index, target_G: Index, control_G: Index, angle_G: Index, theta_P: Array, psi: State, lam: State
) -> Array:  # pragma: no cover (compiled)
    """One fused pass per gate: un-compute psi and lambda, and collect all the gate's angles."""
    gradient_P = np.zeros(len(theta_P))
    u, du = np.empty((2, 2), dtype=np.complex128), np.empty((3, 2, 2), dtype=np.complex128)
    for g in range(len(kind_G) - 1, -1, -1):
        num_angles = _matrices(kind_G[g], theta_P[angle_G[g] :], u, du)
        h00, h01 = np.conj(u[0, 0]), np.conj(u[1, 0])  # h = u^dagger
        h10, h11 = np.conj(u[0, 1]), np.conj(u[1, 1])
        m00 = m01 = m10 = m11 = 0j  # sum of conj(lambda_i) psi_j over the pairs
        shift, stride, control = _place(n, target_G[g], control_G[g])
        for pair in range(1 << (n - 1)):
            i = ((pair >> shift) << (shift + 1)) | (pair & (stride - 1))
            if i & control == control:
                a, b = psi[i], psi[i + stride]
                x, y = h00 * a + h01 * b, h10 * a + h11 * b
                psi[i], psi[i + stride] = x, y
                a, b = lam[i], lam[i + stride]
                m00 += np.conj(a) * x
                m01 += np.conj(a) * y
                m10 += np.conj(b) * x
                m11 += np.conj(b) * y
                lam[i] = h00 * a + h01 * b
                lam[i + stride] = h10 * a + h11 * b
        for k in range(num_angles):
            d = du[k]
            total = d[0, 0] * m00 + d[0, 1] * m01 + d[1, 0] * m10 + d[1, 1] * m11
            gradient_P[angle_G[g] + k] = 2 * total.real
    return gradient_P


def state(program: Program, theta_P: Array) -> State:
    """The state psi_S (complex128) after all gates on |0...0>."""
    p = program
    return _forward(p.num_qubits, p.kind_G, p.target_G, p.control_G, p.angle_G, theta_P)


def probabilities(psi_S: State) -> Array:
    """p_S = |psi_S|^2.

    >>> from distqtrl.circuit.ansatz import Gate, program
    >>> flip = program(2, [Gate("x", 0)])  # wire 0 is the most significant bit: |10> has index 2
    >>> probabilities(state(flip, np.empty(0))).tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    return psi_S.real**2 + psi_S.imag**2


def gradient(program: Program, theta_P: Array, psi_S: State, v_S: Array) -> Array:
    """d(v.p)/d theta_P for a cotangent v_S, given the final state psi_S (left as it is)."""
    p = program
    return _backward(p.num_qubits, p.kind_G, p.target_G, p.control_G, p.angle_G, theta_P, psi_S.copy(), v_S * psi_S)
