"""The QPU a rank hosts: a device, how its gradient is made, its ledger, and the bridge to torch's autograd.

A QPU turns theta_P into p_S, and a cotangent v_S on p_S into a gradient of theta_P. Devices are chosen by name
from BACKENDS; to add one, write a subclass of Device in this folder and name it there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from distqtrl import seeding
from distqtrl.circuit import ansatz, decomposition, shift
from distqtrl.circuit.aer import Aer
from distqtrl.circuit.batched import Batched
from distqtrl.circuit.cuda import Cuda
from distqtrl.circuit.device import Device, Gradient
from distqtrl.circuit.gates import Array
from distqtrl.circuit.pennylane import PennyLane
from distqtrl.circuit.runtime import Runtime
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import Diverged, UserError, lookup

TOLERANCE = 1e-6  # of a distribution's sum, per unit
PERIOD = 4 * np.pi  # of a controlled rotation; every other gate's divides it
EXACT = ("adjoint", "backprop")

BACKENDS: dict[str, type[Device]] = {
    "statevector": StateVector,
    "torch": Batched,
    "cuda": Cuda,
    "pennylane": PennyLane,
    "aer": Aer,
    "runtime": Runtime,
}


class DeviceFailure(UserError):
    """A device broke down, or returned something other than a distribution, while it was in use."""


@dataclass
class Ledger:
    """What this rank's QPU was asked to do: circuit executions, shots, and exact gradients."""

    circuits: int = 0
    gradients: int = 0
    shots: int = 0


@dataclass
class QPU:
    """A device that holds one circuit, and the way its gradient is made.

    Shots and directions are drawn from streams keyed by (rank, step, number of the circuit since ``seek``), so that
    a resumed run measures what the uninterrupted one did.
    """

    device: Device
    settings: Qpu  # of this rank
    seed: int
    ranks: shift.Ranks
    spread_DP: Array | None = None  # from theta_P to the device's angles, when gates were decomposed
    one_job: bool = False  # circuits that ranks share all run on rank 0, which sends them together
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        program = self.device.program
        self.num_qubits = program.num_qubits
        self.num_angles = program.num_angles if self.spread_DP is None else self.spread_DP.shape[1]
        self.method = _method(self.settings, self.device)
        self._rule = shift.rule(self.device.program)
        self._shares = self.settings.shift == "distributed"
        self._mine = self._share() if self._shares else slice(None)
        self.seek(0)

    def _share(self) -> slice:
        """This rank's circuits, of those of a gradient that all share."""
        if self.one_job:
            return slice(None) if self.ranks.rank == 0 else slice(0)
        return slice(self.ranks.rank, None, len(self.ranks.numbers))

    @property
    def shot_us(self) -> float:
        """Microseconds of QPU time per shot: the backend's own estimate, or the settings' assumption."""
        return self.settings.shot_us if self.device.shot_us is None else self.device.shot_us

    @property
    def billed(self) -> bool:
        """Whether circuits leave this machine, for a device that somebody waits or pays for."""
        return self.device.billed

    def confirm(self) -> None:
        """Let a device that is billed send circuits from now on; others always do."""
        self.device.confirm()

    @property
    def circuits_per_gradient(self) -> int:
        """Circuits that this rank executes for one gradient."""
        counts = {"parameter-shift": len(self._rule.angle_K[self._mine]), "spsa": 2 * self.settings.spsa_samples}
        return counts.get(self.method, 0)

    def facts(self) -> dict[str, Any]:
        """What the settings were resolved to, for output."""
        s = self.settings
        return {
            "backend": s.backend,
            "device": s.device,
            "shots": s.shots,
            "noise": s.noise,
            "gradient": self.method,
            "circuits_per_gradient": self.circuits_per_gradient,
        }

    def seek(self, step: int) -> None:
        """Start the streams of an optimizer step."""
        self._step, self._executed = step, 0

    def probabilities(self, theta_P: Array) -> tuple[Array, Gradient]:
        """p_S, and the function v_S -> d(v.p)/d theta_P; raises DeviceFailure, and Diverged (angles)."""
        theta_D = self._device_angles(theta_P)
        if self.method in EXACT:
            self.ledger.circuits += 1
            p_S, gradient = self._guarded(lambda: self.device.differentiable(theta_D, self.method))
            return self._checked(p_S), lambda v_S: self._back(self._exact(gradient, v_S))
        p_S = self._measured(theta_D[None], self.ranks.number, [self._next()])[0]
        if self.method == "spsa":
            return p_S, lambda v_S: self._perturbed(theta_P, v_S)
        return p_S, lambda v_S: self._back(self._shifted(theta_D[None], v_S[None])[0])

    def probabilities_batch(self, theta_KP: Array) -> tuple[Array, Gradient]:
        """p_KS, and the function v_KS -> d(v.p)/d theta_KP: as one batch where the device can, else one by one."""
        if self.method == "parameter-shift":
            theta_KD, num = self._device_angles(theta_KP), len(theta_KP)
            p_KS = self._measured(theta_KD, self.ranks.number, [self._next() for _ in range(num)])
            return p_KS, lambda v_KS: self._back(self._shifted(theta_KD, v_KS))
        found, num = None, len(theta_KP)
        if self.method in EXACT:
            theta_KD = self._device_angles(theta_KP)
            found = self._guarded(lambda: self.device.differentiable_batch(theta_KD))
        if found is None:
            p, gradients = zip(*(self.probabilities(theta_P) for theta_P in theta_KP), strict=True)
            return np.stack(p), lambda v_KS: np.stack([f(v_S) for f, v_S in zip(gradients, v_KS, strict=True)])
        p_KS, gradient = found
        self.ledger.circuits += num

        def back(v_KS: Array) -> Array:
            self.ledger.gradients += num
            return self._back(self._guarded(lambda: gradient(v_KS)))

        return self._checked(p_KS), back

    def jacobian(self, theta_P: Array) -> Array:
        """J_SP = d p / d theta by shifted circuits; in no ledger. Exact where the device is."""
        theta_D, (angle_K, offset_K, weight_K) = self._device_angles(theta_P), self._rule
        jacobian_DS = np.zeros((len(theta_D), 2**self.num_qubits))
        for part in shift.batches(len(angle_K), jacobian_DS.shape[1]):
            theta_KD = shift.shifted(theta_D, angle_K[part], offset_K[part])
            p_KS = self._guarded(partial(self.device.probabilities, theta_KD, [0] * len(theta_KD)))
            np.add.at(jacobian_DS, angle_K[part], weight_K[part, None] * p_KS)
        return self._back(jacobian_DS.T)

    def _device_angles(self, theta: Array) -> Array:
        """The device's angles of one or several parameter sets, large ones less whole periods: devices may round them.

        Raises Diverged for NaN and infinity, which some devices sample from as if they were numbers.
        """
        largest = np.abs(theta).max(initial=0)
        if not np.isfinite(largest):
            first = tuple(np.argwhere(~np.isfinite(theta))[0].tolist())
            index, value = first[-1], theta[first]
            raise Diverged(
                f"angle {index} of the circuit (theta_P[{index}]) is {value} on rank {self.ranks.number}, not a "
                "finite number: lower algorithm.learning_rate"
            )
        theta_D = theta if self.spread_DP is None else theta @ self.spread_DP.T
        return theta_D if largest <= PERIOD else _reduced(theta_D)

    def _back(self, gradient_D: Array) -> Array:
        return gradient_D if self.spread_DP is None else gradient_D @ self.spread_DP

    def _exact(self, gradient: Gradient, v_S: Array) -> Array:
        self.ledger.gradients += 1
        return self._guarded(lambda: gradient(v_S))

    def _shifted(self, theta_ND: Array, v_NS: Array) -> Array:
        """The gradients of N parameter sets by shifted circuits, which a device gets together.

        Where ranks share them, this rank's part of those of the summed v.p.
        """
        if self._shares:
            v_NS = self.ranks.total(v_NS.reshape(-1)).reshape(v_NS.shape)
        angle_K, offset_K, weight_K = self._rule
        angle_K, offset_K, weight_K = angle_K[self._mine], offset_K[self._mine], weight_K[self._mine]
        num, every = len(angle_K), len(self._rule.angle_K)
        first_N = [self._next(every) for _ in theta_ND]
        numbers = [first + number for first in first_N for number in range(every)[self._mine]]
        owner = 0 if self._shares else self.ranks.number
        gradient_ND = np.zeros_like(theta_ND)
        for part in shift.batches(len(numbers), max(2**self.num_qubits, theta_ND.shape[1])):
            set_K, k = np.divmod(np.arange(len(numbers))[part], num)
            theta_KD = shift.shifted(theta_ND[set_K], angle_K[k], offset_K[k])
            p_KS = self._measured(theta_KD, owner, numbers[part])
            for n in np.unique(set_K):
                own = set_K == n
                value_K = p_KS[own] @ v_NS[n]
                np.add.at(gradient_ND[n], angle_K[k[own]], weight_K[k[own]] * value_K)
        return gradient_ND

    def _perturbed(self, theta_P: Array, v_S: Array) -> Array:
        """Simultaneous perturbation (Spall 1992): the mean over random directions of +-1 per angle."""
        c, num = self.settings.spsa_step, self.settings.spsa_samples
        rng = seeding.stream(self.seed, "spsa", self.ranks.number, self._step, self._executed)
        direction_KP = rng.choice([-1.0, 1.0], size=(num, len(theta_P)))
        theta_KP = np.concatenate([theta_P + c * direction_KP, theta_P - c * direction_KP])
        first = self._next(2 * num)
        theta_KD, numbers_K = self._device_angles(theta_KP), list(range(first, first + 2 * num))
        value_K = self._measured(theta_KD, self.ranks.number, numbers_K) @ v_S
        slope_K = (value_K[:num] - value_K[num:]) / (2 * c)
        gradient_P: Array = slope_K @ direction_KP / num
        return gradient_P

    def _next(self, count: int = 1) -> int:
        """Count the next ``count`` circuits of this step; returns the number of the first."""
        self._executed += count
        return self._executed - count

    def _measured(self, theta_KD: Array, owner: int, numbers_K: list[int]) -> Array:
        seeds_K = [0] * len(theta_KD)
        if self.settings.shots is not None:
            seeds_K = [seeding.integer(self.seed, "shot", owner, self._step, number) for number in numbers_K]
            self.ledger.shots += len(theta_KD) * self.settings.shots
        self.ledger.circuits += len(theta_KD)
        return self._checked(self._guarded(lambda: self.device.probabilities(theta_KD, seeds_K)))

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UserError:  # what it refuses
            raise
        except Exception as error:
            raise DeviceFailure(f"{self._name} failed: {type(error).__name__}: {error}") from error

    def _checked(self, p: Array) -> Array:
        """p as it is, never renormalised; raises DeviceFailure unless it is a distribution."""
        sums = p.sum(axis=-1)
        wrong = ~(np.isfinite(p).all(axis=-1) & (p.min(axis=-1) >= -TOLERANCE) & (abs(sums - 1) <= self._tolerance))
        if wrong.any():
            worst = p.reshape(-1, p.shape[-1])[np.flatnonzero(wrong)[0]]
            raise DeviceFailure(
                f"{self._name} returned an invalid distribution: sum {worst.sum():.9g}, smallest {worst.min():.3g}"
            )
        return p

    @property
    def _tolerance(self) -> float:
        return 1e-4 if self.settings.precision == "float32" else TOLERANCE

    @property
    def _name(self) -> str:
        return f"qpu.backend {self.settings.backend}" + (
            f", device {self.settings.device}" if self.settings.device else ""
        )


def build(circuit: Circuit, settings: Qpu, num_qubits: int, seed: int = 0, ranks: shift.Ranks | None = None) -> QPU:
    """This rank's QPU; raises UserError for a backend or method that does not exist or cannot do what is asked."""
    ranks = ranks or shift.Ranks()
    own = settings.of_rank(ranks.number)
    backend = lookup("qpu.backend", own.backend, BACKENDS)
    program, spread_DP = ansatz.build(circuit, num_qubits), None
    each = [settings.of_rank(rank) for rank in ranks.numbers]
    every = [lookup("qpu.backend", one.backend, BACKENDS) for one in each]
    noisy = [one.noise is not None or kind.noisy for one, kind in zip(each, every, strict=True)]
    if own.noise is not None or backend.noisy or (own.shift == "distributed" and any(noisy)):
        program, spread_DP = decomposition.decomposed(program)  # on all ranks that share the circuits of a gradient
    one_job = any(kind.one_job for kind in every)
    return QPU(backend(program, own), own, seed, ranks, spread_DP, one_job)


def _method(settings: Qpu, device: Device) -> str:
    """The gradient method that was asked for, or the one that auto stands for."""
    wanted = settings.gradient
    sampled = settings.shots is not None or settings.noise is not None
    if settings.shift == "distributed":
        if wanted not in ("auto", "parameter-shift"):
            raise UserError(f"qpu.shift = distributed needs qpu.gradient = parameter-shift, not {wanted}")
        return "parameter-shift"
    if wanted == "auto":
        return device.exact[0] if device.exact else "parameter-shift"
    if wanted in EXACT and wanted not in device.exact:
        why = " with shots or noise" if sampled else ""
        can = ", ".join((*device.exact, "parameter-shift", "spsa"))
        raise UserError(f"qpu.gradient = {wanted} does not exist for qpu.backend {settings.backend}{why}: use {can}")
    return wanted


def _reduced(theta: Array) -> Array:
    """The same angles within half a period. A remainder would take the rounding of the period as often as it fits.

    >>> _reduced(np.array([3.0, 7.0, 9 * np.pi])).round(6).tolist()
    [3.0, -5.566371, 3.141593]
    """
    half = theta / 2
    return 2 * np.arctan2(np.sin(half), np.cos(half))


class _Probabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: torch.Tensor, qpu: QPU) -> torch.Tensor:
        circuits = qpu.probabilities if theta.dim() == 1 else qpu.probabilities_batch
        p, ctx.gradient = circuits(theta.detach().numpy().astype(np.float64))
        return torch.from_numpy(p)

    @staticmethod
    def backward(ctx: Any, *v: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(ctx.gradient(v[0].numpy())), None


def probabilities(qpu: QPU, theta: torch.Tensor) -> torch.Tensor:
    """p_S (float64) of theta_P (float64), or p_KS of theta_KP, differentiable in theta whatever the device."""
    p: torch.Tensor = _Probabilities.apply(theta, qpu)
    return p
