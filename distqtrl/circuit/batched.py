"""Many parameter sets at once: an exact state vector in torch, on a CPU or a GPU, differentiable by an adjoint sweep.

    p_KS = |psi_KS|^2,   d(v.p)/d theta = 2 Re <lambda_g| dU_g/d theta |psi_{g-1}>,   lambda_G = diag(v) psi

As in ``statevector`` (Jones & Gacon, arXiv 2009.02823) the sweep un-computes the states gate by gate: memory is
O(K 2^n) whatever the depth, where torch's own graph would keep a state per gate. Inside, the K sets are the last
axis of every array, so that each kernel reads consecutive numbers; nothing loops over them. A gate's matrix is
one row of four numbers, u00 u01 u10 u11. Matrices are made in float64 whatever the state's precision is: an angle of
10^6 in float32 is off by 0.03.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distqtrl.circuit import shift
from distqtrl.circuit.ansatz import KINDS, Gate, Program
from distqtrl.circuit.device import Device, Gradient
from distqtrl.circuit.gates import Array
from distqtrl.circuit.memory import machine_memory, refuse_memory
from distqtrl.circuit.statevector import sampled
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError

STATES = 6  # of one parameter set, held while its gradient is made: psi, lambda, p, and what is being computed
DTYPES = {"float64": torch.float64, "float32": torch.float32}
ROOT_HALF = math.sqrt(0.5)
CONSTANTS = {
    "h": (ROOT_HALF, ROOT_HALF, ROOT_HALF, -ROOT_HALF),
    "x": (0, 1, 1, 0),
    "y": (0, -1j, 1j, 0),
    "z": (1, 0, 0, -1),
}
PHASES = {  # (kind, angle) -> the numbers of the matrix that hold exp(i angle); other angles are rotations' angles
    ("phase", 0): (0, 0, 0, 1),
    ("u3", 1): (0, 0, 1, 1),
    ("u3", 2): (0, 1, 0, 1),
}


class Batched(Device):
    """The device of many parameter sets: ``settings.device`` is cpu (the default), cuda or cuda:1.

    Probabilities are float64 whatever ``settings.precision`` is; shots are drawn from the exact distribution.
    Raises UserError for a device that torch does not have, and for a state that does not fit its memory; many
    parameter sets are never refused: so many are held at a time as ``shift.batches`` says.
    """

    def __init__(self, program: Program, settings: Qpu) -> None:
        refuse(settings, "torch", ("options", "noise"))
        self.program, self.shots, self.dtype = program, settings.shots, DTYPES[settings.precision]
        self.device = _device(settings.device or "cpu")
        self.exact: tuple[str, ...] = () if settings.shots else ("adjoint",)
        needed = settings.replicas * STATES * 2 * self.dtype.itemsize * 2.0**program.num_qubits
        refuse_memory(program, needed, f"qpu.backend torch on {self.device}", _available(self.device))

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of K parameter sets; with shots, relative frequencies drawn from seeds_K."""
        parts = shift.batches(len(theta_KP), 2**self.program.num_qubits)
        with torch.no_grad():
            p_KS = np.concatenate([self._probabilities(theta_KP[k]) for k in parts])
        return p_KS if self.shots is None else sampled(p_KS, self.shots, seeds_K)

    def differentiable_batch(self, theta_KP: Array) -> tuple[Array, Gradient]:
        """p_KS of K parameter sets, and the function v_KS -> d(v.p)/d theta_KP; K states stay in memory."""
        theta_PK = torch.tensor(theta_KP.T.copy(), device=self.device)
        psi_SK = _state(self.program, theta_PK, self.dtype)

        def gradients(v_KS: Array) -> Array:
            v_SK = torch.tensor(v_KS.T.copy(), dtype=self.dtype, device=self.device)
            return _array(_gradient(self.program, theta_PK, psi_SK, v_SK)).T.copy()

        return _array(_squares(psi_SK)).T.copy(), gradients

    def _probabilities(self, theta_KP: Array) -> Array:
        theta_PK = torch.tensor(theta_KP.T.copy(), device=self.device)
        return _array(_squares(_state(self.program, theta_PK, self.dtype))).T.copy()


def probabilities(program: Program, theta_KP: Tensor) -> Tensor:
    """p_KS of K parameter sets, differentiable once in theta_KP; the state's precision is that of theta_KP.

    >>> from distqtrl.circuit.ansatz import Gate, program
    >>> half_turn = torch.tensor([[0.0], [math.pi]], dtype=torch.float64)
    >>> probabilities(program(1, [Gate("ry", 0)]), half_turn).round(decimals=9).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    p_KS: Tensor = _Adjoint.apply(theta_KP, program)
    return p_KS


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta_KP: Tensor, program: Program) -> Tensor:
        theta_PK = theta_KP.T.contiguous()
        psi_SK = _state(program, theta_PK, theta_KP.dtype)
        ctx.program = program
        ctx.save_for_backward(theta_PK, psi_SK)
        return _squares(psi_SK).T.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_KS: Tensor) -> tuple[Tensor, None]:
        theta_PK, psi_SK = ctx.saved_tensors
        return _gradient(ctx.program, theta_PK, psi_SK, v_KS[0].T).T, None


def _squares(psi_SK: Tensor) -> Tensor:
    return psi_SK.real**2 + psi_SK.imag**2


def _state(program: Program, theta_PK: Tensor, dtype: torch.dtype) -> Tensor:
    psi_SK = theta_PK.new_zeros(2**program.num_qubits, theta_PK.shape[1], dtype=dtype.to_complex())
    psi_SK[0] = 1
    for gate, u_4K in zip(program.gates, _matrices(program, theta_PK, psi_SK.dtype), strict=True):
        _apply(u_4K, _pairs(psi_SK, program.num_qubits, gate))
    return psi_SK


def _gradient(program: Program, theta_PK: Tensor, psi_SK: Tensor, v_SK: Tensor) -> Tensor:
    """d(v.p)/d theta_PK; psi_SK is left as it is. What is swept for lambda is its conjugate."""
    psi_SK, conjugate_SK = psi_SK.clone(), v_SK * psi_SK.conj()
    transposed_G4K = _matrices(program, theta_PK, psi_SK.dtype)[:, [0, 2, 1, 3]]
    inverse_G4K = transposed_G4K.conj().resolve_conj()
    products_G4K = torch.zeros_like(inverse_G4K)
    for g, gate in reversed(list(enumerate(program.gates))):
        psi, conjugate = (_pairs(state_SK, program.num_qubits, gate) for state_SK in (psi_SK, conjugate_SK))
        _apply(inverse_G4K[g], psi)
        if KINDS[gate.kind].shifts:
            torch.cat([_sums(left * psi) for left in conjugate], out=products_G4K[g])
        _apply(transposed_G4K[g], conjugate)
    gate_P = [g for g, gate in enumerate(program.gates) for _ in KINDS[gate.kind].shifts]
    return 2 * (_derivatives(program, theta_PK, psi_SK.dtype) * products_G4K[gate_P]).sum(1).real


def _sums(values: Tensor) -> Tensor:
    """Sums over all axes but the first and the last."""
    return values.sum(tuple(range(1, values.dim() - 1)))


def _pairs(state_SK: Tensor, num_qubits: int, gate: Gate) -> Tensor:
    """A view of what a gate changes, the amplitudes whose control bit is 1: the target's bit first, K last."""
    wires = sorted({gate.target} if gate.control is None else {gate.target, gate.control})
    shape, first = [], 0
    for wire in wires:
        shape += [2 ** (wire - first), 2]
        first = wire + 1
    view = state_SK.view(*shape, 2 ** (num_qubits - first), -1)
    if gate.control is not None:
        view = view.narrow(2 * wires.index(gate.control) + 1, 1, 1)
    return view.movedim(2 * wires.index(gate.target) + 1, 0)


def _apply(u_4K: Tensor, pairs: Tensor) -> None:
    """Multiply the pairs by the matrix, in place."""
    u00, u01, u10, u11 = u_4K
    zero, one = pairs
    upper = (u00 * zero).addcmul_(u01, one)
    one.mul_(u11).addcmul_(u10, zero)
    zero.copy_(upper)


def _matrices(program: Program, theta_PK: Tensor, dtype: torch.dtype) -> Tensor:
    """u_G4K of all gates, rounded to a complex dtype."""
    u_G4K = theta_PK.new_empty(len(program.gates), 4, theta_PK.shape[1], dtype=dtype)
    for kind, gates, angles in _groups(program, theta_PK):
        rows = u_G4K.new_tensor(CONSTANTS[kind])[:, None] if kind in CONSTANTS else _rows(kind, angles)
        u_G4K[gates] = rows.to(dtype)
    return u_G4K


def _derivatives(program: Program, theta_PK: Tensor, dtype: torch.dtype) -> Tensor:
    """du_P4K: of every angle's gate, in that angle, rounded to a complex dtype."""
    num, sets = theta_PK.shape
    du_P4K = theta_PK.new_empty(num, 4, sets, dtype=dtype)
    for kind, gates, angles in _groups(program, theta_PK):
        for i in range(len(angles)):
            du_P4K[program.angle_G[gates] + i] = _slopes(kind, angles, i).to(dtype)
    return du_P4K


def _groups(program: Program, theta_PK: Tensor) -> Iterator[tuple[str, Any, list[Tensor]]]:
    """Per kind of gate: its name, the gates' numbers, and their first, second, ... angles (gates, K) in float64."""
    for code, (kind, facts) in enumerate(KINDS.items()):
        gates = np.flatnonzero(program.kind_G == code)
        if len(gates):
            first = program.angle_G[gates]
            yield kind, gates, [theta_PK[first + i].double() for i in range(len(facts.shifts))]


def _rows(kind: str, angles: list[Tensor], slope: bool = False) -> Tensor:
    """The matrices (gates, 4, K) of gates of one kind that has angles; slope: their derivatives in a rotation's."""
    if kind == "phase":
        entries = 1 + 0 * angles[0], 0 * angles[0], 0 * angles[0], torch.exp(1j * angles[0])
        return torch.stack(entries, dim=1)
    cos, sin = torch.cos(angles[0] / 2), torch.sin(angles[0] / 2)
    if slope:  # an angle half a turn further would be rounded
        cos, sin = -sin / 2, cos / 2
    if kind == "u3":
        to, fro = torch.exp(1j * angles[1]), torch.exp(1j * angles[2])
        entries = cos, -fro * sin, to * sin, to * fro * cos
    elif kind == "rx":
        entries = cos, -1j * sin, -1j * sin, cos
    elif kind == "ry":
        entries = cos, -sin, sin, cos
    else:
        entries = cos - 1j * sin, 0 * cos, 0 * cos, cos + 1j * sin
    return torch.stack(entries, dim=1)


def _slopes(kind: str, angles: list[Tensor], i: int) -> Tensor:
    """The derivative of the matrices in angle i."""
    if (kind, i) in PHASES:
        return 1j * angles[i].new_tensor(PHASES[kind, i])[:, None] * _rows(kind, angles)
    return _rows(kind, angles, slope=True)


def _available(device: torch.device) -> float:
    if device.type == "cpu":
        return machine_memory()
    return float(torch.cuda.get_device_properties(device).total_memory)


def _device(name: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"qpu.device = '{name}' is not a device of qpu.backend torch: use cpu, cuda or cuda:1")
    device, count = torch.device(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        lower = f" or cuda:{count - 1}" if count else ""
        raise UserError(f"qpu.device = {name}: torch sees {count} GPUs here: use cpu{lower}")
    return device


def _array(values: Tensor) -> Array:
    return values.detach().cpu().numpy().astype(np.float64)
