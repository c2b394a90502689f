"""Exact simulation: p_S and, for any cotangent v_S on it, the gradient by one adjoint sweep.

    psi = U_G ... U_1 |0>,   p_i = |psi_i|^2
    d(v.p)/d theta = 2 Re <lambda_g| dU_g/d theta |psi_{g-1}>,   lambda_G = diag(v) psi      (v.p = <diag(v)>)

The sweep runs the gates backwards and un-computes the state (Jones & Gacon, arXiv 2009.02823), so memory does not
grow with depth; cost O(G 2^n). With psi and lambda as they are after gate g, and M_ab = sum of conj(lambda_a) psi_b
over the pairs that the gate mixes, the derivative is 2 Re sum_ab A_ab M_ab, where A = dU_g/d theta U_g^dagger is
anti-Hermitian and known in closed form (``_generators``): one pass yields all angles of a gate.

A state of real gates is real and takes half the memory. Kernels run on one thread and are compiled once: the code
is cached on disk.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import numpy.typing as npt
from numba.core import event

from distqtrl.circuit import kernels
from distqtrl.circuit.ansatz import CODES, Gate, Program, program
from distqtrl.circuit.plan import XRY, Plan, plan
from distqtrl.circuit.simd import BITS, LANES
from distqtrl.config import Qpu, UserError, refuse

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]
Complexes = npt.NDArray[np.complex128]
U3, RX, RY, PHASE, H, X, Y = (CODES[kind] for kind in ("u3", "rx", "ry", "phase", "h", "x", "y"))  # the rest: z


@numba.njit(cache=True)
def _trigonometry(p: Plan, theta_P: Array) -> Array:  # pragma: no cover (compiled)
    """cos and sin (G, 6) of half the first angle (phase gates: the whole), and of u3's second and third angle."""
    trig_G = np.zeros((len(p.code_G), 6))
    for g in range(len(p.code_G)):
        code, first, scale = p.code_G[g], p.angle_G[g], p.scale_G[g]
        if code > PHASE:  # no angle
            continue
        angle = theta_P[first] * (scale if code == PHASE else scale / 2)
        trig_G[g, 0], trig_G[g, 1] = np.cos(angle), np.sin(angle)
        if code == U3:
            trig_G[g, 2], trig_G[g, 3] = np.cos(theta_P[first + 1]), np.sin(theta_P[first + 1])
            trig_G[g, 4], trig_G[g, 5] = np.cos(theta_P[first + 2]), np.sin(theta_P[first + 2])
    return trig_G


@numba.njit(cache=True)
def _matrix(code: int, trig: Array, u: Complexes) -> None:  # pragma: no cover (compiled)
    """Fill a gate's matrix u (2, 2); its first element is real."""
    c, s = trig[0], trig[1]
    if code == U3:
        left, right = trig[2] + 1j * trig[3], trig[4] + 1j * trig[5]
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -right * s, left * s, left * right * c
    elif code == RX:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -1j * s, -1j * s, c
    elif code == RY:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = c, -s, s, c
    elif code == XRY:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = s, c, c, -s
    elif code == PHASE:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 1, 0, 0, c + 1j * s
    elif code == H:
        r = np.sqrt(0.5)
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = r, r, r, -r
    elif code == X:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 0, 1, 1, 0
    elif code == Y:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 0, -1j, 1j, 0
    else:
        u[0, 0], u[0, 1], u[1, 0], u[1, 1] = 1, 0, 0, -1


@numba.njit(cache=True)
def _generators(code: int, trig: Array, a: Array) -> int:  # pragma: no cover (compiled)
    """Fill a (3, 4) with Im A_00, Im A_11, Re A_01, Im A_01 of each angle's A = dU U^dagger; return their number."""
    if code == U3:  # phase(angle 1) ry(angle 0) phase(angle 2)
        c, s, cos, sin = trig[0], trig[1], trig[2], trig[3]
        a[0, 0], a[0, 1], a[0, 2], a[0, 3] = 0, 0, -cos / 2, sin / 2
        a[1, 0], a[1, 1], a[1, 2], a[1, 3] = 0, 1, 0, 0
        a[2, 0], a[2, 1], a[2, 2], a[2, 3] = s * s, c * c, -sin * s * c, -cos * s * c
        return 3
    a[0, 0] = a[0, 1] = a[0, 2] = a[0, 3] = 0
    if code == RX:
        a[0, 3] = -0.5
    elif code == RY:
        a[0, 2] = -0.5
    elif code == XRY:
        a[0, 2] = 0.5
    elif code == PHASE:
        a[0, 1] = 1
    else:
        return 0
    return 1


@numba.njit(cache=True)
def _coefficients(u: Complexes, target: int, control: int, coef: Floats) -> None:  # pragma: no cover (compiled)
    """A gate's matrix as eight vectors, see kernels.py; lanes where the control is 0 get the identity."""
    if target >= BITS and not (0 <= control < BITS):
        for slot in range(4):
            value = u[slot >> 1, slot & 1]
            coef[slot * LANES : (slot + 1) * LANES] = value.real
            coef[(slot + 4) * LANES : (slot + 5) * LANES] = value.imag
        return
    for lane in range(LANES):
        acts = not (0 <= control < BITS) or (lane >> control) & 1
        bit = (lane >> target) & 1 if target < BITS else 0
        for slot in range(4):
            row, column = slot >> 1, slot & 1
            if target < BITS:
                row, column = bit, bit ^ column  # slots 0, 1: d, o
            value = u[row, column] if acts else complex(1.0 if row == column else 0.0)
            coef[slot * LANES + lane] = value.real
            coef[(slot + 4) * LANES + lane] = value.imag


@numba.njit(cache=True)
def _all_coefficients(p: Plan, trig_G: Array, inverse: bool, like: Floats) -> Floats:  # pragma: no cover (compiled)
    """Coefficients (G, 64) of all gates, or of their inverses, in the precision of the state."""
    coef_G = np.empty((len(p.code_G), 8 * LANES), dtype=like.dtype)
    u = np.empty((2, 2), dtype=np.complex128)
    for g in range(len(p.code_G)):
        _matrix(p.code_G[g], trig_G[g], u)
        if inverse:
            u[0, 0], u[0, 1], u[1, 0], u[1, 1] = u[0, 0], np.conj(u[1, 0]), np.conj(u[0, 1]), np.conj(u[1, 1])
        _coefficients(u, p.target_G[g], p.control_G[g], coef_G[g])
    return coef_G


@numba.njit(cache=True)
def _move(x: Floats, block: Floats, local: int, fixed: int, out: bool) -> None:  # pragma: no cover (compiled)
    """Copy the block with these local bits, whose other bits are ``fixed``, out of the state or back into it."""
    run = 1
    while local & run:
        run <<= 1
    mask = local & ~(run - 1)
    for component in range(len(x)):
        source, target = x[component], block[component]
        free, at = 0, 0
        while True:
            if out:
                kernels.copy(source, fixed | free, target, at, run)
            else:
                kernels.copy(target, at, source, fixed | free, run)
            at += run
            free = (free - mask) & mask
            if free == 0:
                break


@numba.njit(cache=True)
def _size(local: int) -> int:  # pragma: no cover (compiled)
    """How many numbers a block with these local bits has."""
    size = 1
    while local:
        local &= local - 1
        size <<= 1
    return size


@numba.njit(cache=True)
def _apply_all(x: Floats, size: int, p: Plan, i: int, coef_G: Floats) -> None:  # pragma: no cover (compiled)
    for g in range(p.first_I[i], p.first_I[i + 1]):
        kernels.apply(x, size, p.code_G[g], p.real_G[g], p.target_G[g], p.control_G[g], p.value_G[g], coef_G[g])


@numba.njit(cache=True)
def _sweep_all(
    x: Floats, y: Floats, size: int, p: Plan, i: int, coef_G: Floats, sums_G: Floats
) -> None:  # pragma: no cover (compiled)
    for g in range(p.first_I[i + 1] - 1, p.first_I[i] - 1, -1):
        code, real, target, control, value = p.code_G[g], p.real_G[g], p.target_G[g], p.control_G[g], p.value_G[g]
        if code > PHASE:  # no angle
            kernels.apply(x, size, code, real, target, control, value, coef_G[g])
            kernels.apply(y, size, code, real, target, control, value, coef_G[g])
        else:
            kernels.sweep(x, y, size, real, target, control, value, coef_G[g], sums_G[g])


@numba.njit(cache=True)
def _forward(p: Plan, trig_G: Array, x: Floats) -> None:  # pragma: no cover (compiled)
    """Run all gates on x."""
    coef_G = _all_coefficients(p, trig_G, False, x)
    for i in range(len(p.local_I)):
        size, others = _size(p.local_I[i]), ((1 << p.num_bits) - 1) & ~p.local_I[i]
        if others == 0:
            _apply_all(x, size, p, i, coef_G)
            continue
        block, fixed = np.empty((len(x), size), dtype=x.dtype), 0
        while True:
            _move(x, block, p.local_I[i], fixed, True)
            _apply_all(block, size, p, i, coef_G)
            _move(x, block, p.local_I[i], fixed, False)
            fixed = (fixed - others) & others
            if fixed == 0:
                break


@numba.njit(cache=True)
def _backward(p: Plan, trig_G: Array, x: Floats, y: Floats) -> Array:  # pragma: no cover (compiled)
    """The gradient, from psi (x) and lambda (y), both of which are un-computed."""
    coef_G = _all_coefficients(p, trig_G, True, x)
    sums_G = np.zeros((len(p.code_G), 4 * LANES), dtype=x.dtype)
    for i in range(len(p.local_I) - 1, -1, -1):
        size, others = _size(p.local_I[i]), ((1 << p.num_bits) - 1) & ~p.local_I[i]
        if others == 0:
            _sweep_all(x, y, size, p, i, coef_G, sums_G)
            continue
        blocks, fixed = np.empty((2 * len(x), size), dtype=x.dtype), 0
        block_x, block_y = blocks[: len(x)], blocks[len(x) :]
        while True:
            _move(x, block_x, p.local_I[i], fixed, True)
            _move(y, block_y, p.local_I[i], fixed, True)
            _sweep_all(block_x, block_y, size, p, i, coef_G, sums_G)
            _move(x, block_x, p.local_I[i], fixed, False)
            _move(y, block_y, p.local_I[i], fixed, False)
            fixed = (fixed - others) & others
            if fixed == 0:
                break
    return _collected(p, trig_G, sums_G)


@numba.njit(cache=True)
def _collected(p: Plan, trig_G: Array, sums_G: Floats) -> Array:  # pragma: no cover (compiled)
    """The gradient from every gate's sums, which are still one per lane."""
    gradient_P, a, m = np.zeros(p.num_angles), np.empty((3, 4)), np.empty(4)
    for g in range(len(p.code_G)):
        num = _generators(p.code_G[g], trig_G[g], a)
        target, control = p.target_G[g], p.control_G[g]
        m[:] = 0
        for lane in range(LANES):
            if 0 <= control < BITS and not (lane >> control) & 1:
                continue
            high = target < BITS and (lane >> target) & 1
            m[1 if high else 0] += sums_G[g, lane]
            m[1] += sums_G[g, LANES + lane]
            m[2] += -sums_G[g, 2 * LANES + lane] if high else sums_G[g, 2 * LANES + lane]
            m[3] += sums_G[g, 3 * LANES + lane]
        for k in range(num):
            total = a[k, 2] * m[2] - a[k, 3] * m[3] - a[k, 0] * m[0] - a[k, 1] * m[1]
            gradient_P[p.angle_G[g] + k] += 2 * p.scale_G[g] * total
    return gradient_P


@numba.njit(cache=True)
def _squared(x: Floats, p_S: Array) -> None:  # pragma: no cover (compiled)
    for i in range(len(p_S)):
        p_S[i] = x[0, i] * x[0, i]
    if len(x) == 2:
        for i in range(len(p_S)):
            p_S[i] += x[1, i] * x[1, i]


def state(p: Plan, theta_P: Array, dtype: npt.DTypeLike = np.float64) -> tuple[Floats, Array]:
    """The state after all gates on |0...0>: a row of real parts, and one of imaginary parts if there are any.

    Beside it, the sines and cosines of the angles, which ``gradient`` needs.
    """
    trig_G = _trigonometry(p, theta_P)
    x = np.zeros((p.components, (1 << p.num_bits)), dtype=dtype)
    x[0, 0] = 1
    _forward(p, trig_G, x)
    return x, trig_G


def probabilities(x: Floats, num_qubits: int) -> Array:
    """p_S = |psi_S|^2.

    >>> from distqtrl.circuit.ansatz import Gate, program
    >>> flip = plan(program(2, [Gate("x", 0)]))  # wire 0 is the most significant bit: |10> has index 2
    >>> probabilities(state(flip, np.empty(0))[0], num_qubits=2).tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    p_S = np.empty(1 << num_qubits)
    _squared(x, p_S)
    return p_S


def gradient(p: Plan, trig_G: Array, x: Floats, v_S: Array) -> Array:
    """d(v.p)/d theta_P for a cotangent v_S, given what ``state`` returned (left as it is)."""
    both = np.empty((2, *x.shape), dtype=x.dtype)
    both[0] = x
    both[1, :, len(v_S) :] = 0
    np.multiply(x[:, : len(v_S)], v_S, out=both[1, :, : len(v_S)], casting="same_kind")
    return _backward(p, trig_G, both[0], both[1])


def traffic(circuit: Program, precision: str) -> int:
    """Bytes read and written between memory and the kernels by one value and gradient, counted by passes.

    Every pass reads and writes the state once going forward, psi and lambda once each going back.
    """
    p = plan(circuit)
    return len(p.local_I) * 3 * 2 * np.dtype(precision).itemsize * (p.components << p.num_bits)


@cache
def compiled(precision: str) -> float:
    """Seconds that compiling the kernels for a precision took in this process; 0 if the code was on disk.

    Kernels compile on their first call; this is one, on a single qubit. Raises UserError when the code cannot be kept.
    """
    start, seconds = plan(program(1, [Gate("u3", 0)])), list[float]()
    try:
        with event.install_timer("numba:compile", seconds.append):
            x, trig_G = state(start, np.zeros(3), np.dtype(precision))
            gradient(start, trig_G, x, probabilities(x, 1))
    except OSError as error:
        raise UserError(
            f"cannot keep compiled code on disk ({error}): set NUMBA_CACHE_DIR to a folder with room"
        ) from None
    return sum(seconds)


class StateVector:
    """Our exact device; shots are drawn from the exact distribution."""

    def __init__(self, circuit: Program, settings: Qpu) -> None:
        refuse(settings, "statevector", ("device", "options", "noise"))
        self.program, self.shots = circuit, settings.shots
        self.exact: tuple[str, ...] = () if settings.shots else ("adjoint",)
        self._plan, self._dtype = plan(circuit), np.dtype(settings.precision)
        self.compile_s = compiled(settings.precision)

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        p_KS = np.stack([self.differentiable(theta_P, "adjoint")[0] for theta_P in theta_KP])
        return p_KS if self.shots is None else sampled(p_KS, self.shots, seeds_K)

    def differentiable(self, theta_P: Array, method: str) -> tuple[Array, Callable[[Array], Array]]:
        x, trig_G = state(self._plan, theta_P, self._dtype)
        p_S = probabilities(x, self.program.num_qubits)
        return p_S, lambda v_S: gradient(self._plan, trig_G, x, v_S)


def sampled(p_KS: Array, shots: int, seeds_K: list[int]) -> Array:
    """Relative frequencies of shots drawn from each distribution."""
    rows = zip(p_KS, seeds_K, strict=True)
    draws = [np.random.Generator(np.random.Philox(seed)).multinomial(shots, p_S / p_S.sum()) for p_S, seed in rows]
    return np.stack(draws) / shots
