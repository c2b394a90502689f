"""The QPU a rank hosts: a small protocol, its ledger, and the bridge to torch's autograd.

A QPU turns theta_P into p_S, and a cotangent v_S on p_S into a gradient of theta_P. Backends are chosen by
name from BACKENDS; to add one, write a class with the protocol's methods in this folder and name it there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from distqtrl.circuit import ansatz, statevector
from distqtrl.circuit.statevector import Array
from distqtrl.config import Circuit, Qpu, lookup


@dataclass
class Ledger:
    """What a QPU was asked to do since it was made: executions of the circuit and gradient sweeps."""

    circuits: int = 0
    gradients: int = 0


class QPU(Protocol):
    """A device that holds one circuit."""

    num_qubits: int
    num_angles: int
    ledger: Ledger

    def probabilities(self, theta_P: Array) -> tuple[Array, Any]:
        """p_S, and whatever ``gradient`` needs to know of this execution."""

    def gradient(self, execution: Any, v_S: Array) -> Array:
        """d(v.p)/d theta_P of an earlier execution."""


class SimulatedQPU:
    """Exact state vector, adjoint gradient, no shots, no noise."""

    def __init__(self, program: ansatz.Program) -> None:
        self.program = program
        self.num_qubits, self.num_angles = program.num_qubits, program.num_angles
        self.ledger = Ledger()

    def probabilities(self, theta_P: Array) -> tuple[Array, Any]:
        self.ledger.circuits += 1
        psi_S = statevector.state(self.program, theta_P)
        return statevector.probabilities(psi_S), (theta_P, psi_S)

    def gradient(self, execution: Any, v_S: Array) -> Array:
        self.ledger.gradients += 1
        theta_P, psi_S = execution
        return statevector.gradient(self.program, theta_P, psi_S, v_S)


BACKENDS: dict[str, Callable[[ansatz.Program], QPU]] = {"statevector": SimulatedQPU}


def build(circuit: Circuit, qpu: Qpu, num_qubits: int) -> QPU:
    """The rank's QPU; raises UserError for an unknown backend or ansatz."""
    backend = lookup("qpu.backend", qpu.backend, BACKENDS)
    return backend(ansatz.build(circuit.ansatz, num_qubits, circuit.layers))


class _Probabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta_P: torch.Tensor, qpu: QPU) -> torch.Tensor:
        p_S, ctx.execution = qpu.probabilities(theta_P.detach().numpy().astype(np.float64))
        ctx.qpu = qpu
        return torch.from_numpy(p_S)

    @staticmethod
    def backward(ctx: Any, *v_S: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(ctx.qpu.gradient(ctx.execution, v_S[0].numpy())), None


def probabilities(qpu: QPU, theta_P: torch.Tensor) -> torch.Tensor:
    """p_S (float64) of theta_P (float64), differentiable in theta_P whatever the device."""
    p_S: torch.Tensor = _Probabilities.apply(theta_P, qpu)
    return p_S
