"""What is trained on this rank, whatever the algorithm: generator, normaliser, quantizer, optimizer of one policy.

Weights are generated once per optimizer step. A loss is differentiated to dL/dw_M, that cotangent is sent through the
generator, and one flat float64 vector holding every gradient of the step is reduced over the ranks (``step``). Several
policies (of several agents) are several learners that step together: one batch of circuits, one reduction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm.adam import Adam
from distqtrl.algorithm.noise_scale import NoiseScale
from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.environment.spaces import Spaces
from distqtrl.errors import Diverged, UserError
from distqtrl.policy import adapter, behaviour, distribution, lower, network
from distqtrl.policy.distribution import Head
from distqtrl.policy.normalizer import Normalizer
from distqtrl.quantize import integers
from distqtrl.quantize.aware import Quantizer
from distqtrl.record.profile import Profile
from distqtrl.training import saved
from distqtrl.training.demand import Need
from distqtrl.training.gradient import Array, Gradients, NotFinite, finite_sum, parts
from distqtrl.training.roles import Spec
from distqtrl.training.weights import Generated

PREVIOUS = "noise_scale.previous_N"  # in a state of a rank that is alone, after its first update
Result = TypeVar("Result")


@dataclass(frozen=True)
class Setup:
    """What a learner is made of. Equal configurations give equal learners on all ranks.

    num_environments: of all ranks that share a gradient, times the agents that the policy plays. number: of the policy
    among all, which have their own initial parameters; ``generated`` holds the weights of those on this rank, this
    one's being the place-th.
    """

    config: Config
    spec: Spec
    generated: Generated
    comm: Communicator
    profile: Profile
    num_environments: int
    number: int = 0
    place: int = 0


class Learner:
    """Base of the learners: one policy and what it learns by.

    A learner says, in static methods, what the rest of training must know before there is one.
    """

    def __init__(self, setup: Setup) -> None:
        self.config, self.comm, self.profile = setup.config, setup.comm, setup.profile
        self.architecture, self.head = setup.spec.architecture, setup.spec.head
        self.num_environments, self.number, self.place = setup.num_environments, setup.number, setup.place
        self.generated = setup.generated
        self.generator, self.dtype = self.generated.generators[self.place], self.generated.dtype
        self.normalizer = Normalizer.fresh(self.architecture.num_inputs)
        self.trained = nn.Module()
        self.trained.add_module("generator", self.generator)
        if self.config.adapter.base is not None:
            self._adapt()
        behaviour.checked(self.config.rollout, self.architecture)
        self.quantizer: Quantizer | None = None
        if self.config.quantize.aware:
            self.quantizer = lower.quantizer(self.config.quantize, self.architecture, self.head).to(self.dtype)
            self.trained.add_module("quantizer", self.quantizer)
        self.noise_scale = NoiseScale()
        self.scales: list[Tensor] = [] if self.quantizer is None else list(self.quantizer.parameters())
        self.done, self.noise = 0.0, (0.0, 0)  # part of the budget; the acting policy's deviation and layers with noise

    def _adapt(self) -> None:
        """Let what is generated change a frozen policy."""
        config = self.config
        base, rank = adapter.base(config.adapter, self.architecture, self.head), config.adapter.rank
        assert base is not None
        if base.normalizer.count == 0 and config.policy.normalize_observations:
            raise UserError(
                f"adapter.base = {config.adapter.base} reads observations as they are, policy.normalize_observations "
                "would change them under it: set it to false"
            )
        self.normalizer = base.normalizer
        start_F, base_M = self.generator.ideal(), base.w_M.to(self.dtype)
        self.generated.adapter = adapter.Adapter(self.architecture, rank, base_M, start_F)
        self.trained.add_module("adapter", self.generated.adapter)

    def policy_groups(self, beside: Sequence[Tensor]) -> list[tuple[list[Tensor], float]]:
        """Parameters with their learning rates: what the generator trains, and what is trained beside it."""
        a, rest = self.config.algorithm, [*self.generator.of_mapping(), *beside]
        source: list[Tensor] = list(self.generator.of_source())
        if a.source_learning_rate is None or not source:
            return [([*source, *rest], a.learning_rate)]
        return [(source, a.source_learning_rate), (rest, a.learning_rate)]

    def _optimize(self, groups: list[tuple[list[Tensor], float]]) -> None:
        """Train these parameters, with these learning rates."""
        self.optimizer = Adam(groups, self.config.algorithm.adam_epsilon)
        self.parameters = self.optimizer.parameters
        self.gradients = Gradients(self.parameters)
        scales = {id(p) for p in self.scales}
        self._places_of_scales = [i for i, p in enumerate(self.parameters) if id(p) in scales]
        factor = self.config.algorithm.rate_factor(self.comm.size)
        self._rates = [rate * factor for rate in self.optimizer.rates]
        self.optimizer.rates = self._rates

    @staticmethod
    def head_for(config: Config, spaces: Spaces) -> Head:
        """The head that fits these actions; raises UserError where the algorithm has none."""
        raise NotImplementedError

    @staticmethod
    def check(config: Config, num_environments: int) -> None:
        """Raise UserError for settings that do not fit the environments of all ranks."""

    @staticmethod
    def needs(config: Config, spec: Spec) -> Iterator[Need]:
        """What the algorithm asks of memory beside the policy."""
        raise NotImplementedError

    @staticmethod
    def num_training_only(config: Config, spec: Spec) -> int:
        """Parameters that serve training only, and are in no policy file."""
        raise NotImplementedError

    @staticmethod
    def steps_per_update(config: Config, num_environments: int) -> tuple[int, int]:
        """Optimizer steps on the policy in one update, and updates before anything is learned."""
        raise NotImplementedError

    @property
    def std_A(self) -> np.ndarray:
        """Deviations of a rollout's actions, where they do not depend on observations."""
        return np.zeros(0)

    @property
    def num_steps(self) -> int:
        """How many optimizer steps the policy has made."""
        return self.generated.num_steps

    @property
    def key(self) -> tuple[int, ...]:
        """What makes this policy's random streams its own: nothing where there is one policy."""
        return (self.number,) if self.number else ()

    def weights(self) -> Tensor:
        """w_M of the present parameters, with its graph. Raises DeviceLost as ``Generated.weights``."""
        return self.generated.weights(self.place)

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

    def observed(self, obs: np.ndarray) -> Tensor:
        """Observations as this learner's networks see them."""
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

    def local_gradient(self, moves: range) -> Array:
        """This rank's gradient of neighbouring parameters, in float64; that of scales that warm up is 0."""
        if self._warming:
            for i in self._places_of_scales:
                self.gradients.write(range(i, i + 1), np.zeros(self.parameters[i].numel()))
        return self.gradients.read(moves)

    def of_generator(self, gradient_N: Array) -> Array:
        """The part of a gradient that is of what the generator trains, the first of the parameters."""
        return gradient_N[: sum(p.numel() for p in self.generator.parameters() if p.requires_grad)]

    @property
    def _warming(self) -> bool:
        return self.quantizer is not None and self.quantizer.warming

    def scales_seen(self, share: float) -> Array:
        """What a quantizer that warms up saw of this rank's share of the samples."""
        if self.quantizer is None or not self._warming:
            return np.zeros(0)
        if self.config.policy.normalize_observations and not self.normalizer.count:
            return np.zeros(0)  # it will look different
        return self.quantizer.statistics() * share

    def move(self, moves: range, gradient_N: Array) -> float:
        """Adam's step on neighbouring parameters along a gradient summed over ranks, clipped; returns its norm before.

        Scales that warm up stay: Adam's moments would take their 0 for a gradient.
        """
        with self.profile("optimize"):
            if self.config.allreduce.aggregation == "sum":
                gradient_N = gradient_N * self.comm.size
            norm = float(np.linalg.norm(gradient_N))
            if self.config.algorithm.max_grad_norm is not None:
                gradient_N = gradient_N * min(1.0, self.config.algorithm.max_grad_norm / (norm + 1e-12))
            self.gradients.write(moves, gradient_N)
            still = self._places_of_scales if self._warming else []
            self.optimizer.step([i for i in moves if i not in still])
        return norm

    def set_progress(self, done: float, update: int) -> None:
        """Say what part of the budget is spent, and which update begins: learning rates and noise depend on it."""
        self.done, a = done, self.config.algorithm
        part = 1 - done if a.anneal else 1.0
        if a.warmup:
            _, silent = self.steps_per_update(self.config, self.num_environments)
            part *= min(1.0, (max(update - silent, 0) + 1) / a.warmup)
        self.optimizer.rates = [rate * part for rate in self._rates]

    def average(self) -> None:
        """Replace every parameter by its mean over the ranks (moments of the optimizer stay local)."""
        with self.profile("allreduce"), torch.no_grad():
            own_N = np.concatenate([p.detach().double().numpy().ravel() for p in self.parameters])
            reduction, what = self.config.allreduce.reduction, "gradient or loss at parameter averaging"
            mean = finite_sum(self.comm, reduction, own_N, what) / self.comm.size
            for p, part in zip(self.parameters, parts(mean, self.parameters), strict=True):
                p.copy_(part)
            self.generated.forget()

    def fingerprint(self) -> bytes:
        """The bytes of every parameter, in order; with the angles that coordinates made anew are of."""
        angles = [self.generator.angles()] if self.generator.whitens_again else []
        return b"".join(p.detach().numpy().tobytes() for p in [*self.parameters, *angles])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs of this learner."""
        state = dict(self.trained.state_dict())
        state["num_steps"] = torch.tensor([self.num_steps])
        for i, moments in self.optimizer.state.items():
            state |= {f"optimizer.{i}.{name}": t for name, t in moments.items()}
        state |= {f"noise_scale.{name}": torch.from_numpy(t) for name, t in self.noise_scale.state().items()}
        return state | {f"normalizer.{name}": torch.from_numpy(t) for name, t in self.normalizer.tensors().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` gave; raises ValueError when names, types, shapes or signs do not fit."""
        previous_N = torch.zeros(self.generator.counts()["total"], dtype=torch.float64)
        saved.check(state, self.tensors(), self.parameters, {PREVIOUS: previous_N})
        self.trained.load_state_dict({name: state[name] for name in self.trained.state_dict()})
        self.optimizer.state = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                self.optimizer.state.setdefault(int(index), {})[key] = tensor
        told = (name for name in state if name.startswith("noise_scale."))
        self.noise_scale.restore({name.removeprefix("noise_scale."): state[name].numpy() for name in told})
        self.normalizer = Normalizer.of({name: t.numpy() for name, t in state.items()}, prefix="normalizer.")
        self.generated.forget(int(state["num_steps"][0]))
