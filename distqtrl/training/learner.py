"""What is trained on this rank, whatever the algorithm: generator, normaliser, optimizer, one step over all ranks.

Weights are generated once per optimizer step. A loss is differentiated to dL/dw_M, that cotangent is sent through the
generator, and one flat float64 vector holding every gradient of the step is reduced over the ranks. Several policies
(of several agents) are several replicas that step together: one batch of circuits, one reduction.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm.adam import Adam
from distqtrl.allreduce.agreement import Refused, agreed
from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.errors import Diverged, UserError
from distqtrl.generator.generator import Generator
from distqtrl.policy import adapter, behaviour, distribution, lower, network
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.quantize import integers
from distqtrl.quantize.aware import Quantizer
from distqtrl.record.profile import Profile
from distqtrl.training.gradient import REMEDY, Array, NotFinite, _flat, _parts, finite_sum
from distqtrl.training.weights import DeviceLost, Generated, shares

Result = TypeVar("Result")


class Learner:
    """Base of the learners: one policy and what it learns by. Equal configurations give equal replicas.

    num_environments: of all ranks that share a gradient, times the agents that the policy plays. number: of the policy
    among all, which have their own initial parameters; ``generated`` holds the weights of those on this rank, this
    one's being the place-th.
    """

    def __init__(
        self,
        config: Config,
        architecture: Architecture,
        head: Head,
        comm: Communicator,
        profile: Profile,
        num_environments: int,
        number: int = 0,
        generated: Generated | None = None,
        place: int = 0,
    ) -> None:
        self.config, self.architecture, self.head = config, architecture, head
        self.comm, self.profile, self.num_environments = comm, profile, num_environments
        self.dtype = torch.float32 if config.train.precision == "float32" else torch.float64
        base, rank = adapter.base(config.adapter, architecture, head), config.adapter.rank
        if generated is None:
            layers = architecture.layers if base is None else adapter.layers(architecture, rank)
            generated = Generated([Generator(config, layers, shares(comm), number)], profile)
        self.generated, self.number, self.place = generated, number, place
        self.generator = generated.generators[place]
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
        self.external = any(config.qpu.of_rank(r).backend != "statevector" for r in range(comm.size))
        self.done, self.noise = 0.0, (0.0, 0)  # part of the budget; the acting policy's deviation and layers with noise
        self._w_M: Tensor | None = None
        self.optimizer = Adam(self.build(), config.algorithm.adam_epsilon)
        self.parameters = self.optimizer.parameters
        self._rates = self.optimizer.rates

    def build(self) -> list[tuple[list[Tensor], float]]:
        """Register in ``trained`` what a learner has beside the policy; all that is optimized, with learning rates."""
        raise NotImplementedError

    @property
    def num_steps(self) -> int:
        """Of the policy."""
        return self.generated.num_steps

    @property
    def key(self) -> tuple[int, ...]:
        """What makes this policy's random streams its own: nothing where there is one policy."""
        return (self.number,) if self.number else ()

    def weights(self) -> Tensor:
        """w_M of the present parameters, made once and kept (with its graph) until they change.

        Raises DeviceLost on every rank when a device that is not our own fails on any.
        """
        if self._w_M is None:
            with torch.enable_grad():
                made = self._on_devices(lambda: self.generated.weights(self.place))
                self._w_M = made if self.adapter is None else self.adapter(made)
        return self._w_M

    def acting_weights(self, update: int) -> Tensor:
        """w_M of the policy that acts in this update's rollout, detached."""
        w_M, r = self.weights().detach(), self.config.rollout
        if not behaviour.differs(r):
            return w_M
        rng = seeding.stream(self.config.train.seed, "noise", update, *self.key)
        w_M, deviation, reached = self._alike(lambda: behaviour.weights(r, self.architecture, w_M, self.done, rng))
        self.noise = (deviation, reached)
        return w_M

    def deployed_weights(self) -> Tensor:
        """w_M as rank 0's QPU measured it, on every rank: what is validated, saved and evaluated."""
        return torch.from_numpy(self.comm.allgather(self.weights().detach().numpy())[0])

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
        return torch.from_numpy(self.normalizer.apply(distribution.read(self.head, obs))).to(self.dtype)

    def acting(self, w_M: Tensor) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """raw and normalised observations (B, O), without masks -> outputs (B, A), in NumPy, under these weights."""
        if self.quantizer is not None:
            quantizer, layers = self.quantizer, network.unpack(self.architecture, w_M)
            on_integers = self._alike(lambda: integers.acting(quantizer.network(layers, *self.normalizer.affine)))
            dtype = w_M.numpy().dtype
            return lambda raw_BO, obs_BO: on_integers(raw_BO).astype(dtype)
        outputs = network.acting(self.architecture, w_M)
        return lambda raw_BO, obs_BO: outputs(obs_BO)

    def outputs(self, w_M: Tensor, raw_NO: Tensor, obs_NO: Tensor, collect: bool = False) -> Tensor:
        """The policy's outputs (N, A) with these weights, masked; obs_NO are the normalised raw_NO without the masks.

        collect: keep what a quantizer that warms up wants to know of this batch.
        """
        layers = network.unpack(self.architecture, w_M)
        if self.quantizer is not None:
            quantizer, affine, read_NO = self.quantizer, self.normalizer.affine, distribution.read(self.head, raw_NO)
            outputs = self._alike(lambda: quantizer.outputs(layers, read_NO, *affine, collect=collect))
        else:
            outputs = network.outputs(self.architecture, layers, obs_NO)
        return distribution.allowed_of(outputs, distribution.masks(self.head, raw_NO)) if self.head.masked else outputs

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
        total = self._total(self._flat(parameters, sums), where)
        norm = self._move(parameters, total[: total.size - len(sums)])
        return total[total.size - len(sums) :], norm

    def _flat(self, parameters: Sequence[Tensor], sums: Array) -> Array:
        with self.profile("allreduce"):
            return np.concatenate([*(_flat(p) for p in parameters), sums])

    def _total(self, flat: Array, where: str) -> Array:
        """Summed over the ranks, or this rank's own while ranks step by themselves."""
        averaging = self.config.allreduce.aggregation == "average"
        with self.profile("allreduce"):
            total = flat if averaging else self._reduced(flat, where)
        if averaging and not np.isfinite(flat).all():
            raise Diverged(f"gradient is not finite at {where}: {REMEDY}")
        return total

    def _move(self, parameters: Sequence[Tensor], gradient_N: Array) -> float:
        with self.profile("optimize"):
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
        return norm

    def _warmed(self, share: float) -> Array:
        """What a quantizer that warms up saw of this rank's samples."""
        if self.quantizer is None or not self.quantizer.warming:
            return np.zeros(0)
        if self.config.policy.normalize_observations and not self.normalizer.count:
            return np.zeros(0)  # it will look different
        return self.quantizer.statistics() * share

    def _stepping(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Those that may move now: scales that are warming up would take a gradient of 0 for one, in Adam's moments."""
        warming = self.quantizer is not None and self.quantizer.warming
        fixed = {id(p) for p in self.scales} if warming else set()
        return [p for p in parameters if id(p) not in fixed]

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
            self._forget()

    def _forget(self) -> None:
        """Parameters have changed, but no step was made."""
        self._w_M = None
        self.generated.forget(self.num_steps)

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

    def _check(self, state: dict[str, Tensor]) -> None:
        """Raise ValueError unless this is the state of such a replica."""
        wanted = {name: _saved(t) for name, t in self.tensors().items() if not name.startswith("optimizer.")}
        moved = {name.split(".")[1] for name in state if name.startswith("optimizer.")}
        for index, p in enumerate(self.parameters):
            if str(index) in moved:
                like = {"step": torch.zeros(1), "exp_avg": p, "exp_avg_sq": p}
                wanted |= {f"optimizer.{index}.{key}": _saved(t) for key, t in like.items()}
        for name in sorted(state.keys() ^ wanted.keys()):
            raise ValueError(f"{name} {'is missing' if name in wanted else 'does not belong there'}")
        for name, (dtype, shape) in wanted.items():
            if _saved(state[name]) != (dtype, shape):
                found = f"{state[name].dtype} {tuple(state[name].shape)}"
                raise ValueError(f"{name} is {found}, this run's is {dtype} {shape}")
            positive = name.endswith((".count", ".m2_O", ".m2_S", ".exp_avg_sq", ".step", "num_steps", "num_observed"))
            if positive and bool((state[name] < 0).any()):
                raise ValueError(f"{name} is negative")

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` gave; raises ValueError when names, types, shapes or signs do not fit."""
        self._check(state)
        self.trained.load_state_dict({name: state[name] for name in self.trained.state_dict()})
        self.generated.forget(int(state["num_steps"][0]))
        self.optimizer.state = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                self.optimizer.state.setdefault(int(index), {})[key] = tensor
        self.normalizer = Normalizer(
            float(state["normalizer.count"]), state["normalizer.mean_O"].numpy(), state["normalizer.m2_O"].numpy()
        )
        self._w_M = None


def _saved(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape in a file, where a number is a vector of one."""
    return tensor.dtype, tuple(tensor.shape) or (1,)
