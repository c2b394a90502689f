"""PPO and REINFORCE: a learner with a value network, and one optimizer step on samples of a rollout."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from distqtrl.policy import network, slopes
from distqtrl.policy.distribution import Array, Categorical, Factored, Gaussian, Head, allowed, masks
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training import demand
from distqtrl.training.demand import Need
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

    def dealt(self, parts: Sequence[Tensor]) -> list["Samples"]:
        """The samples with the numbers of every part."""
        index, sizes = torch.cat([*parts]), [len(part) for part in parts]
        columns = [getattr(self, f.name)[index].split(sizes) for f in fields(self)]
        return [Samples(*each) for each in zip(*columns, strict=True)]


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

    @classmethod
    def slope(cls, log_prob_N: Array, old_log_prob_N: Array, adv_N: Array, clip: float) -> tuple[float, Array]:
        """``objective``, and its derivative by log_prob_N."""
        leaf_N, old_N, weights_N = (torch.from_numpy(x) for x in (log_prob_N, old_log_prob_N, adv_N))
        loss = cls.objective(leaf_N.requires_grad_(), old_N, weights_N, clip)
        (by_N,) = torch.autograd.grad(loss, leaf_N)
        return loss.item(), by_N.numpy()

    def loss(self, samples: Samples, divisor: float, count: float) -> Loss:
        """The loss, sum/divisor, of this rank's samples; its sums are the statistics' over count samples."""
        w_M, a = self.weights(), self.config.algorithm
        with self.profile("loss"), np.errstate(over="ignore", invalid="ignore"):  # sums over ranks are asked
            leaf_M = w_M.detach().requires_grad_()
            outputs, pull = self._outputs(leaf_M, samples)
            found = slopes.scores(self.head, outputs, samples.actions.numpy(), self.log_std.detach().numpy())
            old_N, adv_N = samples.old_log_prob_N.numpy(), samples.adv_N.numpy()
            policy_loss, by_log_prob_N = self.slope(found.log_prob_B, old_N, adv_N, a.clip)
            by_outputs, by_log_std = found.pull(by_log_prob_N / divisor, -a.entropy / divisor)
            by_M, *by_scales = pull(by_outputs)
            value_loss, by_values = self._value_loss(samples, divisor)
            entropy, log_ratio_N = float(found.entropy_B.sum()), found.log_prob_B - old_N
            change_N = np.exp(log_ratio_N) - 1
            kl = float((change_N - log_ratio_N).sum())  # http://joschu.net/blog/kl-approx.html
            clipped = float(np.count_nonzero(np.abs(change_N) > a.clip))
        return Loss(
            value=None,
            leaf_M=leaf_M,
            direct=self.direct,
            known=[by_M, torch.from_numpy(by_log_std), *by_scales, *by_values],
            moves=range(len(self.parameters)),
            sums=np.array([policy_loss, value_loss, entropy, kl, clipped]) / count,
            share=len(adv_N) / count,
        )

    def _outputs(self, leaf_M: Tensor, samples: Samples) -> tuple[Array, Callable[[Array], list[Tensor]]]:
        """The policy's outputs (N, A), and what sends dL/d of them to the weights and a quantizer's scales."""
        if self.quantizer is not None:
            outputs = self.outputs(leaf_M, samples.raw_NO, samples.obs_NO, collect=True)
            leaves = [leaf_M, *self.scales]
            return outputs.detach().numpy(), lambda by_NA: list(
                torch.autograd.grad(outputs, leaves, torch.from_numpy(by_NA), materialize_grads=True)
            )
        kind = self.architecture.activation
        layers = [(w.numpy(), b.numpy()) for w, b in network.unpack(self.architecture, leaf_M.detach())]
        seen = slopes.forward(layers, kind, samples.obs_NO.numpy())
        mask = masks(self.head, samples.raw_NO.numpy()) if self.head.masked else None

        def pull(by_NA: Array) -> list[Tensor]:
            by_NA = by_NA if mask is None else np.where(mask, by_NA, 0)
            return [torch.from_numpy(slopes.of_weights(self.architecture, slopes.backward(layers, kind, seen, by_NA)))]

        return seen[-1] if mask is None else allowed(seen[-1], mask), pull

    def _value_loss(self, samples: Samples, divisor: float) -> tuple[float, list[Tensor]]:
        """Half the sum of squared errors, and its part of the loss's gradient by the value network's parameters."""
        if self.value is None:
            return 0.0, []
        own = [p.detach().numpy() for p in self.value.parameters()]
        layers = list(zip(own[::2], own[1::2], strict=True))
        seen = slopes.forward(layers, "tanh", samples.critic_NO.numpy())
        error_N1 = seen[-1] - samples.returns_N.numpy()[:, np.newaxis]
        slope_N1 = error_N1 * (self.config.algorithm.value_weight / divisor)
        found = slopes.cut([weight.shape for weight, _ in layers], slopes.backward(layers, "tanh", seen, slope_N1))
        return 0.5 * float((error_N1 * error_N1).sum()), [torch.from_numpy(x) for layer in found for x in layer]


class PPO(PolicyGradient):
    """Proximal policy optimization with the clipped surrogate."""

    objective = staticmethod(ppo.loss)
    slope = staticmethod(ppo.slope)


class Reinforce(PolicyGradient):
    """REINFORCE: one step on all samples, returns (lambda = 1), and a value network where a baseline is wanted."""

    objective = staticmethod(reinforce.loss)
    slope = staticmethod(reinforce.slope)

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
        torch.manual_seed(seeding.integer(seed, "initialise", seeding.CRITICS, *key))
        layers: list[nn.Module] = []
        for i, o in pairwise((num_inputs, *hidden)):
            layers += [nn.Linear(i, o), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((num_inputs, *hidden)[-1], 1))
