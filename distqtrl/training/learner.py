"""What is trained on this rank, whatever the algorithm and the policy: a generator, and the optimizer of one policy.

Weights are generated once per optimizer step. A loss is differentiated to dL/dw_M, that cotangent is sent through the
generator, and one flat float64 vector holding every gradient of the step is reduced over the ranks (``step``). Several
policies (of several agents) are several learners that step together: one batch of circuits, one reduction.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl.algorithm.adam import Adam
from distqtrl.algorithm.noise_scale import NoiseScale
from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.config.run import Config
from distqtrl.errors import Diverged, UserError
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
    """Base of the learners: what makes one policy's weights, and what moves it.

    A learner says, in static methods, what the rest of training must know before there is one.
    """

    def __init__(self, setup: Setup) -> None:
        self.config, self.comm, self.profile = setup.config, setup.comm, setup.profile
        self.num_environments, self.number, self.place = setup.num_environments, setup.number, setup.place
        self.generated = setup.generated
        self.generator, self.dtype = self.generated.generators[self.place], self.generated.dtype
        self.trained = nn.Module()
        self.trained.add_module("generator", self.generator)
        self.noise_scale = NoiseScale()
        self.done, self.noise = 0.0, (0.0, 0)  # part of the budget; the acting policy's deviation and layers with noise

    def policy_groups(self, beside: Sequence[Tensor]) -> list[tuple[list[Tensor], float]]:
        """Parameters with their learning rates: what the generator trains, and what is trained beside it."""
        a, rest = self.config.algorithm, [*self.generator.of_mapping(), *beside]
        source: list[Tensor] = list(self.generator.of_source())
        if a.source_learning_rate is None or not source:
            return [([*source, *rest], a.learning_rate)]
        return [(source, a.source_learning_rate), (rest, a.learning_rate)]

    def _optimize(self, groups: list[tuple[list[Tensor], float]]) -> None:
        """Train these parameters, with these learning rates."""
        self.optimizer = Adam(groups, self.config.algorithm.adam_epsilon, self.config.algorithm.adam_beta1)
        self.parameters = self.optimizer.parameters
        self.gradients = Gradients(self.parameters)
        self._num_generated = self.generator.counts()["total"]
        factor = self.config.algorithm.rate_factor(self.comm.size)
        self._rates = [rate * factor for rate in self.optimizer.rates]
        self.optimizer.rates = self._rates

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

    @property
    def still(self) -> Collection[int]:
        """Which of the parameters stay where they are for now: their gradients are 0, and no gradients to Adam."""
        return ()

    def local_gradient(self, moves: range) -> Array:
        """This rank's gradient of neighbouring parameters, in float64."""
        for i in self.still:
            self.gradients.write(range(i, i + 1), np.zeros(self.parameters[i].numel()))
        return self.gradients.read(moves)

    def scales_seen(self, share: float) -> Array:
        """What a quantizer that warms up saw of this rank's share of the samples: here is none."""
        return np.zeros(0)

    def take_scales(self, scales_S: Array) -> None:
        """Take in what all ranks' quantizers saw."""

    def of_generator(self, gradient_N: Array) -> Array:
        """The part of a gradient that is of what the generator trains, the first of the parameters."""
        return gradient_N[: self._num_generated]

    def move(self, moves: range, gradient_N: Array) -> float:
        """Adam's step on neighbouring parameters along a gradient of all ranks, clipped; returns its norm before."""
        with self.profile("optimize"):
            if self.config.allreduce.aggregation == "sum":
                gradient_N = gradient_N * self.comm.size
            norm = float(np.linalg.norm(gradient_N))
            if self.config.algorithm.max_grad_norm is not None:
                gradient_N = gradient_N * min(1.0, self.config.algorithm.max_grad_norm / (norm + 1e-12))
            self.gradients.write(moves, gradient_N)
            still = self.still
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
        return state | {f"noise_scale.{name}": torch.from_numpy(t) for name, t in self.noise_scale.state().items()}

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
        self.generated.forget(int(state["num_steps"][0]))
