"""What is trained on this rank, whatever the algorithm: generator, normaliser, optimizer, one step over all ranks.

Weights are generated once per optimizer step. A loss is differentiated to dL/dw_M, that cotangent is sent through the
generator, and one flat float64 vector holding every gradient of the step is reduced over the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm.adam import Adam
from distqtrl.allreduce.communicator import REDUCTIONS, Communicator, Refused, agreed, ordered_sum
from distqtrl.circuit.qpu import Ledger
from distqtrl.circuit.shift import Ranks
from distqtrl.config import Config, Diverged, UserError
from distqtrl.generator import Generator
from distqtrl.policy import adapter, behaviour, lower, network
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.quantize import integers
from distqtrl.quantize.aware import Quantizer
from distqtrl.record import Profile

REMEDY = "lower the learning rates or check the environment"
Array = npt.NDArray[np.float64]
Result = TypeVar("Result")


class DeviceLost(Refused):
    """A QPU of the job failed while it was in use."""

    exit_code = 1


class NotFinite(Refused, Diverged):
    """A sum over ranks is not finite, or a scale of all ranks has collapsed."""


class Replica:
    """Base of the learners. Equal configurations give equal replicas.

    num_environments: of all ranks that share a gradient.
    """

    def __init__(
        self,
        config: Config,
        architecture: Architecture,
        head: Head,
        comm: Communicator,
        profile: Profile,
        num_environments: int,
    ) -> None:
        self.config, self.architecture, self.head = config, architecture, head
        self.comm, self.profile, self.num_environments = comm, profile, num_environments
        self.dtype = torch.float32 if config.train.precision == "float32" else torch.float64
        ranks = Ranks(comm.rank, comm.size, lambda v_S: ordered_sum(comm, v_S))
        base, rank = adapter.base(config.adapter, architecture, head), config.adapter.rank
        layers = architecture.layers if base is None else adapter.layers(architecture, rank)
        self.generator = Generator(config, layers, ranks)
        self.generator.set_precision(self.dtype)
        if base is not None and base.normalizer.count == 0 and config.policy.normalize_observations:
            raise UserError(
                f"adapter.base = {config.adapter.base} reads observations as they are, policy.normalize_observations "
                "would change them under it: set it to false"
            )
        self.normalizer = Normalizer.fresh(architecture.num_inputs) if base is None else base.normalizer
        self.trained = nn.Module()
        self.trained.add_module("generator", self.generator)
        self.adapter: adapter.Adapter | None = None
        if base is not None:
            start_F, base_M = self.generator.ideal(), base.w_M.to(self.dtype)
            self.adapter = adapter.Adapter(architecture, rank, base_M, start_F)
            self.trained.add_module("adapter", self.adapter)
        behaviour.checked(config.rollout, architecture)
        self.quantizer: Quantizer | None = None
        if config.quantize.aware:
            self.quantizer = lower.quantizer(config.quantize, architecture, head).to(self.dtype)
            self.trained.add_module("quantizer", self.quantizer)
        self.scales: list[Tensor] = [] if self.quantizer is None else list(self.quantizer.parameters())
        self.num_steps = 0  # of the policy
        self.external = any(config.qpu.of_rank(r).backend != "statevector" for r in range(comm.size))
        self.done, self.noise = 0.0, (0.0, 0)  # part of the budget; the acting policy's deviation and layers with noise
        self._w_M: Tensor | None = None
        self._ledger = self._counted()
        self.optimizer = Adam(self.build(), config.algorithm.adam_epsilon)
        self.parameters = self.optimizer.parameters
        self._rates = self.optimizer.rates

    def build(self) -> list[tuple[list[Tensor], float]]:
        """Register in ``trained`` what a learner has beside the policy; all that is optimized, with learning rates."""
        raise NotImplementedError

    def weights(self) -> Tensor:
        """w_M of the present parameters, made once and kept (with its graph) until they change.

        Raises DeviceLost on every rank when a device that is not our own fails on any.
        """
        if self._w_M is None:
            with self.profile("generate"), torch.enable_grad():  # also where who asks first needs no gradient
                self._ledger = self._counted()
                if self.generator.qpu is not None:
                    self.generator.qpu.seek(self.num_steps)
                self._w_M = self._on_devices(self._generated)
        return self._w_M

    def _generated(self) -> Tensor:
        made: Tensor = self.generator()
        return made if self.adapter is None else self.adapter(made)

    def acting_weights(self, update: int) -> Tensor:
        """w_M of the policy that acts in this update's rollout, detached."""
        w_M, r = self.weights().detach(), self.config.rollout
        if not behaviour.differs(r):
            return w_M
        rng = seeding.stream(self.config.train.seed, "noise", update)
        w_M, deviation, reached = self._alike(lambda: behaviour.weights(r, self.architecture, w_M, self.done, rng))
        self.noise = (deviation, reached)
        return w_M

    def deployed_weights(self) -> Tensor:
        """w_M as rank 0's QPU measured it, on every rank: what is validated, saved and evaluated."""
        return torch.from_numpy(self.comm.allgather(self.weights().detach().numpy())[0])

    def pull_back(self, cotangent_M: Tensor) -> None:
        """Send dL/dw_M through the generator, into the gradients of its parameters."""
        w_M = self.weights()
        with self.profile("generate"):
            if w_M.requires_grad:
                # not w_M.backward(cotangent_M), which imports sympy: a second of every rank's start
                self._on_devices(lambda: torch.dot(w_M, cotangent_M).backward())

    def _alike(self, action: Callable[[], Result]) -> Result:
        """action(); what it raises for these parameters, every rank that has the same raises."""
        try:
            return action()
        except UserError as error:
            if self.config.allreduce.aggregation == "average":
                raise
            raise (NotFinite if isinstance(error, Diverged) else Refused)(str(error)) from None

    def _on_devices(self, action: Callable[[], Result]) -> Result:
        if not self.external or self.generator.qpu is None:
            return action()
        try:
            return agreed(self.comm, action)
        except Refused as error:
            raise DeviceLost(str(error)) from None

    def observed(self, obs: np.ndarray) -> Tensor:
        """Observations as this replica's networks see them."""
        return torch.from_numpy(self.normalizer.apply(obs)).to(self.dtype)

    def acting(self, w_M: Tensor) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """raw and normalised observations (B, O) -> outputs (B, A), in NumPy, under these weights."""
        if self.quantizer is not None:
            quantizer, layers = self.quantizer, network.unpack(self.architecture, w_M)
            on_integers = self._alike(lambda: integers.acting(quantizer.network(layers, *self.normalizer.affine)))
            dtype = w_M.numpy().dtype
            return lambda raw_BO, obs_BO: on_integers(raw_BO).astype(dtype)
        outputs = network.acting(self.architecture, w_M)
        return lambda raw_BO, obs_BO: outputs(obs_BO)

    def outputs(self, w_M: Tensor, raw_NO: Tensor, obs_NO: Tensor, collect: bool = False) -> Tensor:
        """The policy's outputs (N, A) with these weights; obs_NO are the normalised raw_NO.

        collect: keep what a quantizer that warms up wants to know of this batch.
        """
        layers = network.unpack(self.architecture, w_M)
        if self.quantizer is not None:
            quantizer, affine = self.quantizer, self.normalizer.affine
            return self._alike(lambda: quantizer.outputs(layers, raw_NO, *affine, collect=collect))
        return network.outputs(self.architecture, layers, obs_NO)

    def differentiate(self, loss: Tensor, leaves: Sequence[Tensor]) -> None:
        """Gradients of a loss for these leaves, and no others; zeros where it does not depend on one."""
        for p in self.parameters:
            p.grad = None
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for leaf, gradient in zip(leaves, found, strict=True):
            leaf.grad = gradient

    def descend(self, parameters: Sequence[Tensor], sums: Array, where: str) -> tuple[Array, float]:
        """One optimizer step on these parameters along their gradients; returns sums and the gradient's norm.

        Gradients and ``sums`` are this rank's parts, and are summed over the ranks. Raises Refused, naming the rank,
        when one is not finite (Diverged on that rank alone while ranks step by themselves).
        """
        averaging, num = self.config.allreduce.aggregation == "average", len(sums)
        with self.profile("allreduce"):
            flat = np.concatenate([*(_flat(p) for p in parameters), sums])
            total = flat if averaging else self._reduced(flat, where)
            if averaging and not np.isfinite(flat).all():
                raise Diverged(f"gradient is not finite at {where}: {REMEDY}")
        with self.profile("optimize"):
            gradient_N = total[: total.size - num]
            if self.config.allreduce.aggregation == "sum":
                gradient_N = gradient_N * self.comm.size
            norm = float(np.linalg.norm(gradient_N))
            if self.config.algorithm.max_grad_norm is not None:
                gradient_N = gradient_N * min(1.0, self.config.algorithm.max_grad_norm / (norm + 1e-12))
            for p in self.parameters:
                p.grad = None
            for p, part in zip(parameters, _parts(gradient_N, parameters), strict=True):
                p.grad = part
            self.optimizer.step()
        return total[total.size - num :], norm

    def descend_policy(
        self, parameters: Sequence[Tensor], sums: Array, share: float, where: str
    ) -> tuple[Array, float]:
        """``descend`` for parameters that the policy is among; share is this rank's part of the step's samples."""
        seen_S, quantizer = np.zeros(0), self.quantizer
        if quantizer is not None and quantizer.warming:
            if self.normalizer.count or not self.config.policy.normalize_observations:  # else it will look different
                seen_S = quantizer.statistics() * share
            fixed = {id(p) for p in self.scales}  # a gradient of 0 would count as one in Adam's moments
            parameters = [p for p in parameters if id(p) not in fixed]
        total, norm = self.descend(parameters, np.concatenate([sums, seen_S]), where)
        if quantizer is not None and len(seen_S):
            quantizer.update_scales(total[len(sums) :])
        self.num_steps += 1
        self._w_M = None
        return total[: len(sums)], norm

    def _reduced(self, flat: Array, where: str) -> Array:
        return finite_sum(self.comm, self.config.allreduce.reduction, flat, f"gradient or loss at {where}")

    def set_progress(self, done: float) -> None:
        """Say what part of the budget is spent, 0 to 1: learning rates and noise depend on it."""
        self.done = done
        if self.config.algorithm.anneal:
            self.optimizer.rates = [rate * (1 - done) for rate in self._rates]

    def average(self) -> None:
        """Replace every parameter by its mean over the ranks (moments of the optimizer stay local)."""
        with self.profile("allreduce"), torch.no_grad():
            flat = np.concatenate([p.detach().double().numpy().ravel() for p in self.parameters])
            mean = self._reduced(flat, "parameter averaging") / self.comm.size
            for p, part in zip(self.parameters, _parts(mean, self.parameters), strict=True):
                p.copy_(part)
            self._w_M = None

    def fingerprint(self) -> bytes:
        """The bytes of every parameter, in order."""
        return b"".join(p.detach().numpy().tobytes() for p in self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs of this replica."""
        state = dict(self.trained.state_dict())
        state["num_steps"] = torch.tensor([self.num_steps])
        for i, moments in self.optimizer.state.items():
            state |= {f"optimizer.{i}.{name}": t for name, t in moments.items()}
        n = self.normalizer
        state["normalizer.count"] = torch.tensor([n.count], dtype=torch.float64)
        return state | {"normalizer.mean_O": torch.from_numpy(n.mean_O), "normalizer.m2_O": torch.from_numpy(n.m2_O)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` gave; raises KeyError or RuntimeError when names or shapes differ."""
        self.trained.load_state_dict({name: state[name] for name in self.trained.state_dict()})
        self.num_steps = int(state["num_steps"][0])
        self.optimizer.state = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                self.optimizer.state.setdefault(int(index), {})[key] = tensor
        self.normalizer = Normalizer(
            float(state["normalizer.count"]), state["normalizer.mean_O"].numpy(), state["normalizer.m2_O"].numpy()
        )
        self._w_M = None

    def ledger(self) -> np.ndarray:
        """This rank's ledger as a resumed run needs it: weights that are kept are generated anew."""
        return np.array(self._counted() if self._w_M is None else self._ledger, dtype=np.int64)

    def set_ledger(self, counts: np.ndarray) -> None:
        """Take over what ``ledger`` gave."""
        if self.generator.qpu is not None:
            self.generator.qpu.ledger = Ledger(*(int(count) for count in counts))

    def _counted(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.generator.qpu is None else astuple(self.generator.qpu.ledger)


def finite_sum(comm: Communicator, reduction: str, local_N: Array, what: str) -> Array:
    """Sum over ranks; raises NotFinite on every rank, naming those whose part is not finite."""
    total_N = REDUCTIONS[reduction](comm, local_N)
    if not np.isfinite(total_N).all():
        finite_R = comm.allgather(np.array([np.isfinite(local_N).all()]))[:, 0]
        ranks = ", ".join(str(rank) for rank in np.flatnonzero(~finite_R)) or "none alone (the sum overflows)"
        raise NotFinite(f"{what} is not finite on rank {ranks}: {REMEDY}")
    return total_N


def _flat(p: Tensor) -> Array:
    gradient = torch.zeros_like(p) if p.grad is None else p.grad
    return gradient.detach().double().numpy().ravel()


def _parts(flat_N: Array, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into tensors like the parameters."""
    parts = torch.split(torch.from_numpy(flat_N), [p.numel() for p in parameters])
    return [part.to(p.dtype).view(p.shape) for p, part in zip(parameters, parts, strict=True)]
