"""Exact simulation: p_S and, for any cotangent v_S on it, the gradient by one adjoint sweep.

    psi = U_G ... U_1 |0>,   p_i = |psi_i|^2
    d(v.p)/d theta = 2 Re <lambda_g| dU_g/d theta |psi_{g-1}>,   lambda_G = diag(v) psi      (v.p = <diag(v)>)

The sweep runs the gates backwards and un-computes the state (Jones & Gacon, arXiv 2009.02823), so memory does not
grow with depth; cost O(G 2^n). With psi and lambda as they are after gate g, and M_ab = sum of conj(lambda_a) psi_b
over the pairs that the gate mixes, the derivative is 2 Re sum_ab A_ab M_ab, where A = dU_g/d theta U_g^dagger is
anti-Hermitian and known in closed form (``generators``): one pass yields all angles of a gate, and of all gates
that plan.py fuses with it.

A state of real gates is real and takes half the memory. Kernels run on one thread and are compiled once: the code
is cached on disk.
"""

import pickle
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from distqtrl.circuit import compiled, kernels
from distqtrl.circuit.ansatz import Gate, Program, program
from distqtrl.circuit.gates import Array, Complexes, generators, inverses, matrices, matrix, trigonometry
from distqtrl.circuit.plan import Plan, plan
from distqtrl.circuit.simd import BITS, LANES
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError

Floats = npt.NDArray[np.floating]
LINE = 64  # bytes of a cache line


@numba.njit()
def _coefficients(p: Plan, w_J: Complexes, like: Floats) -> Floats:  # pragma: no cover (compiled)
    """The steps' matrices for control 0 and 1 as the kernels take them: (J, 2, 64).

    A control among the lanes needs one set only, the last: lanes take the matrix of their control bit.
    """
    coef_J = np.empty((len(p.step_J), 2, 8 * LANES), dtype=like.dtype)
    for j in range(len(p.step_J)):
        target, control = p.step_J[j].target, p.step_J[j].control
        among = 0 <= control < BITS
        for value in range(0 if control >= BITS and not p.step_J[j].idle else 1, 2):
            for slot in range(4):
                row, column = slot >> 1, slot & 1
                if target >= BITS and not among:
                    coef_J[j, value, slot] = w_J[j, value, row, column].real
                    coef_J[j, value, slot + 4] = w_J[j, value, row, column].imag
                    continue
                for lane in range(LANES):
                    which = (lane >> control) & 1 if among else value
                    if target < BITS:
                        row = (lane >> target) & 1
                        column = row ^ (slot & 1)  # slots 0, 1: d, o
                    coef_J[j, value, slot * LANES + lane] = w_J[j, which, row, column].real
                    coef_J[j, value, (slot + 4) * LANES + lane] = w_J[j, which, row, column].imag
    return coef_J


@numba.njit()
def _move(x: Floats, block: Floats, local: int, fixed: np.int64, out: np.int64) -> None:  # pragma: no cover (compiled)
    """Copy the block with these local bits, whose other bits are ``fixed``, out of the state or back into it."""
    run = 1
    while local & run:
        run <<= 1
    mask = local & ~(run - 1)
    for component in range(len(x)):
        source, target = x[component], block[component]
        free, at = np.int64(0), np.int64(0)
        while True:
            if out:
                kernels.copy(source, fixed | free, target, at, run)
            else:
                kernels.copy(target, at, source, fixed | free, run)
            at += run
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


@compiled.kept
def _aligned(rows: int, size: int, like: Floats) -> Floats:  # pragma: no cover (compiled)
    """An empty array of the dtype of ``like`` that starts on a cache line; NumPy's start 16 bytes after one."""
    raw = np.empty(rows * size + LINE // like.itemsize, dtype=like.dtype)
    start = (-raw.ctypes.data % LINE) // like.itemsize
    return raw[start : start + rows * size].reshape((rows, size))


@numba.njit()
def _apply(x: Floats, size: int, p: Plan, j: int, coef: Floats) -> None:  # pragma: no cover (compiled)
    step = p.step_J[j]
    for value in range(0 if step.control >= BITS and not step.idle else 1, 2):
        kernels.apply(x, size, step.swap, step.real, step.target, step.control, value, coef[value])


@numba.njit()
def _apply_all(x: Floats, size: int, p: Plan, i: int, coef_J: Floats) -> None:  # pragma: no cover (compiled)
    for j in range(p.pass_I[i].first, p.pass_I[i].end):
        _apply(x, size, p, j, coef_J[j])


@numba.njit()
def _sweep_all(
    x: Floats, y: Floats, size: int, p: Plan, i: int, coef_J: Floats, sums_J: Floats
) -> None:  # pragma: no cover (compiled)
    for j in range(p.pass_I[i].end - 1, p.pass_I[i].first - 1, -1):
        step = p.step_J[j]
        if not step.turns:
            _apply(x, size, p, j, coef_J[j])
            _apply(y, size, p, j, coef_J[j])
            continue
        for value in range(0 if step.control >= BITS and not step.idle else 1, 2):
            coef, sums = coef_J[j, value], sums_J[j, value]
            kernels.sweep(x, y, size, step.real, step.target, step.control, value, coef, sums)


@compiled.kept
def _forward(p: Plan, theta_P: Array, x: Floats) -> tuple:  # pragma: no cover (compiled)
    """Run all gates on x; returns trig_G and w_J."""
    out, back = np.int64(1), np.int64(0)
    trig_G = trigonometry(p, theta_P)
    w_J = matrices(p, trig_G)
    coef_J = _coefficients(p, w_J, x)
    for i in range(len(p.pass_I)):
        size, others = _size(p.pass_I[i].local), ((1 << p.num_bits) - 1) & ~p.pass_I[i].local
        if others == 0:
            _apply_all(x, size, p, i, coef_J)
            continue
        block, fixed = _aligned(len(x), size, x[0]), np.int64(0)
        while True:
            _move(x, block, p.pass_I[i].local, fixed, out)
            _apply_all(block, size, p, i, coef_J)
            _move(x, block, p.pass_I[i].local, fixed, back)
            fixed = (fixed - others) & others
            if fixed == 0:
                break
    return trig_G, w_J


@compiled.kept
def _backward(p: Plan, trig_G: Array, w_J: Complexes, x: Floats, y: Floats) -> Array:  # pragma: no cover (compiled)
    """The gradient, from psi (x) and lambda (y), both of which are un-computed."""
    out, back = np.int64(1), np.int64(0)
    coef_J = _coefficients(p, inverses(w_J), x)
    sums_J = np.zeros((len(p.step_J), 2, 4 * LANES), dtype=x.dtype)
    for i in range(len(p.pass_I) - 1, -1, -1):
        size, others = _size(p.pass_I[i].local), ((1 << p.num_bits) - 1) & ~p.pass_I[i].local
        if others == 0:
            _sweep_all(x, y, size, p, i, coef_J, sums_J)
            continue
        blocks, fixed = _aligned(2 * len(x), size, x[0]), np.int64(0)
        block_x, block_y = blocks[: len(x)], blocks[len(x) :]
        while True:
            _move(x, block_x, p.pass_I[i].local, fixed, out)
            _move(y, block_y, p.pass_I[i].local, fixed, out)
            _sweep_all(block_x, block_y, size, p, i, coef_J, sums_J)
            _move(x, block_x, p.pass_I[i].local, fixed, back)
            _move(y, block_y, p.pass_I[i].local, fixed, back)
            fixed = (fixed - others) & others
            if fixed == 0:
                break
    return _collected(p, trig_G, sums_J)


@numba.njit()
def _collected(p: Plan, trig_G: Array, sums_J: Floats) -> Array:  # pragma: no cover (compiled)
    """The gradient from every step's sums, which are still one per lane.

    Of M only k = (M - M^dagger) / 2 matters. It belongs to the state after the step; G^T k conj(G) belongs to the
    state before the step's last gate G, where the gate before it needs it.
    """
    gradient_P, a, u = np.zeros(p.num_angles), np.empty((3, 4)), np.empty((2, 2), dtype=np.complex128)
    for j in range(len(p.step_J)):
        if not p.step_J[j].turns:
            continue
        for value in range(2):
            if value == 0 and (p.step_J[j].control < 0 or p.step_J[j].idle):
                continue
            k00, k11, k01 = _moments(p.step_J[j].target, p.step_J[j].control, value, sums_J[j])
            for g in range(p.step_J[j].end - 1, p.step_J[j].first - 1, -1):
                if p.gate_G[g].controlled and value == 0:
                    continue
                num = generators(p.gate_G[g].code, trig_G[g], a)
                for i in range(num):
                    total = 2 * (a[i, 2] * k01.real - a[i, 3] * k01.imag) - a[i, 0] * k00 - a[i, 1] * k11
                    gradient_P[p.gate_G[g].angle + i] += 2 * total
                if g > p.step_J[j].first:
                    matrix(p.gate_G[g].code, trig_G[g], u)
                    k00, k11, k01 = _before(u, k00, k11, k01)
    return gradient_P


@numba.njit()
def _moments(target: int, control: int, value: int, sums: Floats) -> tuple:  # pragma: no cover (compiled)
    """Im k_00, Im k_11 and k_01 of the lanes (or vectors) where the control has the value."""
    low, high, cross, turn = 0.0, 0.0, 0.0, 0.0
    among = 0 <= control < BITS
    part = sums[1 if among else value]
    for lane in range(LANES):
        if among and (lane >> control) & 1 != value:
            continue
        if target < BITS and (lane >> target) & 1:
            high += part[lane]
            cross -= part[2 * LANES + lane]
        else:
            low += part[lane]
            cross += part[2 * LANES + lane]
        high += part[LANES + lane]
        turn += part[3 * LANES + lane]
    return low, high, complex(cross / 2, turn / 2)


@numba.njit()
def _before(u: Complexes, k00: float, k11: float, k01: complex) -> tuple:  # pragma: no cover (compiled)
    """u^T k conj(u) of an anti-Hermitian k, again as Im k_00, Im k_11, k_01."""
    a, b, c, d = u[0, 0], u[0, 1], u[1, 0], u[1, 1]
    k10 = -k01.conjugate()
    top, bottom = a * 1j * k00 + c * k10, a * k01 + c * 1j * k11  # first row of u^T k
    right, under = b * 1j * k00 + d * k10, b * k01 + d * 1j * k11
    new00 = top * a.conjugate() + bottom * c.conjugate()
    new01 = top * b.conjugate() + bottom * d.conjugate()
    new11 = right * b.conjugate() + under * d.conjugate()
    return new00.imag, new11.imag, new01


@compiled.kept
def _squared(x: Floats, p_S: Array) -> None:  # pragma: no cover (compiled)
    for i in range(len(p_S)):
        p_S[i] = x[0, i] * x[0, i]
    if len(x) == 2:
        for i in range(len(p_S)):
            p_S[i] += x[1, i] * x[1, i]


class State(NamedTuple):
    """A state, one row of real parts and one of imaginary parts if there are any, and the circuit it came from."""

    x: Floats
    trig_G: Array
    w_J: Complexes


def state(p: Plan, theta_P: Array, dtype: npt.DTypeLike = np.float64) -> State:
    """The state after all gates on |0...0>."""
    x = _aligned(p.components, 1 << p.num_bits, np.empty(0, dtype))
    x[:] = 0
    x[0, 0] = 1
    return State(x, *_forward(p, theta_P, x))


def probabilities(x: Floats, num_qubits: int) -> Array:
    """p_S = |psi_S|^2.

    >>> from distqtrl.circuit.ansatz import Gate, program
    >>> flip = plan(program(2, [Gate("x", 0)]))  # wire 0 is the most significant bit: |10> has index 2
    >>> probabilities(state(flip, np.empty(0)).x, num_qubits=2).tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    p_S = np.empty(1 << num_qubits)
    _squared(x, p_S)
    return p_S


def gradient(p: Plan, after: State, v_S: Array) -> Array:
    """d(v.p)/d theta_P for a cotangent v_S, given what ``state`` returned (left as it is)."""
    both = _aligned(2 * p.components, 1 << p.num_bits, np.empty(0, after.x.dtype))
    x, y = both[: p.components], both[p.components :]
    x[:] = after.x
    y[:, len(v_S) :] = 0
    np.multiply(x[:, : len(v_S)], v_S, out=y[:, : len(v_S)], casting="same_kind")
    return _backward(p, after.trig_G, after.w_J, x, y)


@cache
def _compile(precision: str) -> None:
    """Compile the kernels for a precision, which happens on their first call, by one on a single qubit.

    Raises UserError when the code cannot be kept.
    """
    start = plan(program(1, [Gate("u3", 0)]))

    def first_call() -> None:
        after = state(start, np.zeros(3), np.dtype(precision))
        gradient(start, after, probabilities(after.x, 1))

    try:
        compiled.once(precision, first_call)
    except OSError as error:
        raise UserError(
            f"cannot keep compiled code on disk ({error}): set NUMBA_CACHE_DIR to a folder with room"
        ) from None
    except (EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"compiled code in {compiled.FOLDER} is damaged ({error}): remove that folder") from None


class StateVector:
    """Our exact device; shots are drawn from the exact distribution."""

    def __init__(self, circuit: Program, settings: Qpu) -> None:
        refuse(settings, "statevector", ("device", "options", "noise"))
        self.program, self.shots = circuit, settings.shots
        self.exact: tuple[str, ...] = () if settings.shots else ("adjoint",)
        self._plan, self._dtype = plan(circuit), np.dtype(settings.precision)
        _compile(settings.precision)

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        p_KS = np.stack([self.differentiable(theta_P, "adjoint")[0] for theta_P in theta_KP])
        return p_KS if self.shots is None else sampled(p_KS, self.shots, seeds_K)

    def differentiable(self, theta_P: Array, method: str) -> tuple[Array, Callable[[Array], Array]]:
        after = state(self._plan, theta_P, self._dtype)
        p_S = probabilities(after.x, self.program.num_qubits)
        return p_S, lambda v_S: gradient(self._plan, after, v_S)


def sampled(p_KS: Array, shots: int, seeds_K: list[int]) -> Array:
    """Relative frequencies of shots drawn from each distribution."""
    rows = zip(p_KS, seeds_K, strict=True)
    draws = [np.random.Generator(np.random.Philox(seed)).multinomial(shots, p_S / p_S.sum()) for p_S, seed in rows]
    return np.stack(draws) / shots
