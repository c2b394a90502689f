"""PPO and REINFORCE: a learner with a value network, and one optimizer step on samples of a rollout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm import ppo, reinforce
from distqtrl.config.run import Config
from distqtrl.config.stages import Algorithm
from distqtrl.environment.spaces import Spaces
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, Head
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training import demand
from distqtrl.training.demand import Need
from distqtrl.training.gradient import Array
from distqtrl.training.learner import Setup
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.roles import Spec
from distqtrl.training.step import Loss, backward, reduce, zero
from distqtrl.training.step import step as optimizer_step

STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


@dataclass
class Samples:
    """N samples as tensors; ``obs_NO`` are the normalised ``raw_NO``, ``critic_NO`` what the value network sees."""

    raw_NO: Tensor
    obs_NO: Tensor
    critic_NO: Tensor
    actions: Tensor
    old_log_prob_N: Tensor
    adv_N: Tensor
    returns_N: Tensor
    entropy_N: Tensor  # of the policy that acted

    def at(self, index: Tensor) -> "Samples":
        """The samples with these numbers."""
        return Samples(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Recipe:
    """What an algorithm of this kind makes of its settings."""

    epochs: int
    minibatches: int
    gae_lambda: float
    uses_values: bool  # whether there is a value network


class PolicyGradient(NetworkLearner):
    """Base of what ascends log probabilities times advantages; by itself it has no ``objective``.

    The losses of ``algorithm.loss = sum`` are divided by ``num_environments``.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        a, num_outputs = self.config.algorithm, self.head.num_outputs
        self.recipe = self.recipe_of(a)
        self.num_states = setup.spec.num_states
        self.log_std = nn.Parameter(torch.full((num_outputs,), self.config.policy.log_std, dtype=self.dtype))
        self.trained.register_parameter("log_std", self.log_std)
        self.direct: list[Tensor] = [self.log_std, *self.scales]  # trained, and not through the generator
        groups = self.policy_groups(self.direct)
        self.value: nn.Module | None = None
        self.state_normalizer = Normalizer.fresh(self.num_states)
        if self.recipe.uses_values:
            self.value = value_network(
                setup.spec.num_critic_inputs, a.value_hidden, self.config.train.seed, *self.key
            ).to(self.dtype)
            self.trained.add_module("value", self.value)
            groups.append((list(self.value.parameters()), a.value_learning_rate))
            self.direct += self.value.parameters()
        self._optimize(groups)

    @staticmethod
    def objective(log_prob_N: Tensor, old_log_prob_N: Tensor, adv_N: Tensor, clip: float) -> Tensor:
        """The summed loss of N samples."""
        raise NotImplementedError

    @classmethod
    def recipe_of(cls, a: Algorithm) -> Recipe:
        """By default PPO's: every setting counts."""
        return Recipe(epochs=a.epochs, minibatches=a.minibatches, gae_lambda=a.gae_lambda, uses_values=True)

    @staticmethod
    def head_for(config: Config, spaces: Spaces) -> Head:
        if spaces.low:
            return Gaussian(spaces.low, spaces.high)
        if spaces.num_actions is None:
            return Factored(spaces.factors, spaces.starts, spaces.masked)
        return Categorical(spaces.num_actions, spaces.action_start, spaces.masked)

    @classmethod
    def needs(cls, config: Config, spec: Spec) -> Iterator[Need]:
        a = config.algorithm
        if cls.recipe_of(a).uses_values:
            widths = (spec.architecture.num_inputs, *a.value_hidden, 1)
            yield demand.beside(config, "value_hidden", demand.num_weights(widths))

    @classmethod
    def num_training_only(cls, config: Config, spec: Spec) -> int:
        a, deviations = config.algorithm, spec.head.num_outputs if isinstance(spec.head, Gaussian) else 0
        if not cls.recipe_of(a).uses_values:
            return deviations
        return deviations + sum(
            p.numel() for p in value_network(spec.num_critic_inputs, a.value_hidden, 0).parameters()
        )

    @classmethod
    def steps_per_update(cls, config: Config, num_environments: int) -> tuple[int, int]:
        recipe = cls.recipe_of(config.algorithm)
        return recipe.epochs * recipe.minibatches, 0

    @property
    def std_A(self) -> np.ndarray:
        return self.log_std.detach().exp().numpy()

    def tensors(self) -> dict[str, Tensor]:
        central = self.state_normalizer.tensors("S") if self.num_states else {}
        return super().tensors() | {f"states.{name}": torch.from_numpy(x) for name, x in central.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        if self.num_states:
            found = {name: t.numpy() for name, t in state.items()}
            self.state_normalizer = Normalizer.of(found, prefix="states.", letter="S")

    def values(self, obs_NO: Tensor) -> Tensor:
        """The value network's V (N,) of what it sees, normalised; zeros where there is none."""
        if self.value is None:
            return obs_NO.new_zeros(obs_NO.shape[:-1])
        out: Tensor = self.value(obs_NO)
        return out.squeeze(-1)

    def batch(self, steps: float, global_steps: float, rows: int) -> tuple[float, float]:
        """This rank's batch and that of all, in what its noise is measured in: whole episodes where a step takes whole
        episodes of so many rows, else environment steps."""
        if self.config.algorithm.rollout == "episodes" and self.recipe.minibatches == 1:
            return rows if steps else 0, self.num_environments
        return steps, global_steps

    def loss(self, samples: Samples, divisor: float, count: float) -> Loss:
        """The loss, sum/divisor, of this rank's samples; its sums are the statistics' over count samples."""
        w_M, a = self.weights(), self.config.algorithm
        with self.profile("loss"):
            leaf_M = w_M.detach().requires_grad_()
            outputs = self.outputs(leaf_M, samples.raw_NO, samples.obs_NO, collect=True)
            log_prob_N = self.head.log_prob(outputs, samples.actions, self.log_std)
            policy_loss = self.objective(log_prob_N, samples.old_log_prob_N, samples.adv_N, a.clip)
            entropy = self.head.entropy(outputs, self.log_std).sum()
            loss, value_loss = policy_loss - a.entropy * entropy, torch.zeros(())
            if self.value is not None:
                value_loss = 0.5 * ((self.values(samples.critic_NO) - samples.returns_N) ** 2).sum()
                loss = loss + a.value_weight * value_loss
            with torch.no_grad():
                log_ratio_N = log_prob_N - samples.old_log_prob_N
                kl = (log_ratio_N.exp() - 1 - log_ratio_N).sum()  # http://joschu.net/blog/kl-approx.html
                clipped = ((log_ratio_N.exp() - 1).abs() > a.clip).sum()
            sums = torch.stack([policy_loss, value_loss, entropy, kl, clipped]).detach().double().numpy()
        return Loss(
            value=loss / divisor,
            leaf_M=leaf_M,
            direct=self.direct,
            moves=range(len(self.parameters)),
            sums=sums / divisor * (divisor / count),
            share=len(samples.adv_N) / count,
        )


class PPO(PolicyGradient):
    """Proximal policy optimization with the clipped surrogate."""

    objective = staticmethod(ppo.loss)


class Reinforce(PolicyGradient):
    """REINFORCE: one step on all samples, returns (lambda = 1), and a value network where a baseline is wanted."""

    objective = staticmethod(reinforce.loss)

    @classmethod
    def recipe_of(cls, a: Algorithm) -> Recipe:
        return Recipe(epochs=1, minibatches=1, gae_lambda=1.0, uses_values=a.baseline)


def step(
    learners: Sequence[PolicyGradient],
    samples: Sequence[Samples],
    global_counts: Sequence[float],
    where: str,
    rows: Sequence[int] | None = None,
) -> tuple[Array, list[float]]:
    """One optimizer step of several policies; returns the means of STATISTICS over all ranks' samples, a row per
    policy, and the norms of their gradients.

    global_counts are the numbers of samples of this step on all ranks. rows: of this rank's rollout, for every policy,
    in the step whose noise scale is measured. Raises as ``training.step.reduce``.
    """
    config = learners[0].config
    if config.allreduce.aggregation == "average":
        global_counts = [len(part.adv_N) for part in samples]
    counts = [max(count, 1) for count in global_counts]
    divisors = [
        r.num_environments if config.algorithm.loss == "sum" else n for r, n in zip(learners, counts, strict=True)
    ]
    zero(learners)
    losses = [
        learner.loss(part, divisor, count)
        for learner, part, divisor, count in zip(learners, samples, divisors, counts, strict=True)
    ]
    if rows is not None:
        for learner, loss, part, count, num in zip(learners, losses, samples, counts, rows, strict=True):
            loss.local_batch, loss.global_batch = learner.batch(len(part.adv_N), count, num)
    backward(learners, losses)
    totals = reduce(learners, losses, where)
    norms = optimizer_step(learners, totals)
    return np.array([total.sums for total in totals]), norms


def value_network(num_inputs: int, hidden: tuple[int, ...], seed: int, *key: int) -> nn.Module:
    """A freshly initialised V: observation (N, O) -> (N, 1), tanh between the layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.integer(seed, "initialise", 2, *key))
        layers: list[nn.Module] = []
        for i, o in pairwise((num_inputs, *hidden)):
            layers += [nn.Linear(i, o), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((num_inputs, *hidden)[-1], 1))
