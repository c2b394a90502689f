"""The policy-gradient learner: a replica with a value network, and one optimizer step on samples of a rollout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm import ppo, reinforce
from distqtrl.config.run import Config
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training.gradient import Array
from distqtrl.training.learner import Learner
from distqtrl.training.step import descend_policies, pull_back

LOSSES = {"ppo": ppo.loss, "reinforce": reinforce.loss}
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
        return Samples(*(getattr(self, f.name)[index] for f in fields(self)))


class PolicyGradient(Learner):
    """PPO and REINFORCE. The losses of ``algorithm.loss = sum`` are divided by ``num_environments``.

    num_states: what a centralised critic sees, none = the policy's observation.
    """

    def __init__(self, *args: Any, num_states: int = 0, **kwargs: Any) -> None:
        self.num_states = num_states
        super().__init__(*args, **kwargs)

    def build(self) -> list[tuple[list[Tensor], float]]:
        """The deviations of a Gaussian head, and a value network where the algorithm has one."""
        a, num_outputs = self.config.algorithm, self.head.num_outputs
        self.log_std = nn.Parameter(torch.full((num_outputs,), self.config.policy.log_std, dtype=self.dtype))
        self.trained.register_parameter("log_std", self.log_std)
        self.direct: list[Tensor] = [self.log_std, *self.scales]  # trained, and not through the generator
        groups = [([*self.generator.parameters(), *self.direct], a.learning_rate)]
        self.value: nn.Module | None = None
        self.state_normalizer = Normalizer.fresh(self.num_states)
        if a.uses_values:
            num_inputs = self.num_states or self.architecture.num_inputs
            self.value = value_network(num_inputs, a.value_hidden, self.config.train.seed, *self.key)
            self.trained.add_module("value", self.value.to(self.dtype))
            groups.append((list(self.value.parameters()), a.value_learning_rate))
            self.direct += self.value.parameters()
        return groups

    def tensors(self) -> dict[str, Tensor]:
        n = self.state_normalizer
        central = {"count": np.array([n.count]), "mean_S": n.mean_O, "m2_S": n.m2_O} if self.num_states else {}
        return super().tensors() | {f"states.{name}": torch.from_numpy(x) for name, x in central.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        if self.num_states:
            count, mean_S, m2_S = (state[f"states.{name}"].numpy() for name in ("count", "mean_S", "m2_S"))
            self.state_normalizer = Normalizer(float(count[0]), mean_S, m2_S)

    def values(self, obs_NO: Tensor) -> Tensor:
        """The value network's V (N,) of what it sees, normalised; zeros where there is none."""
        if self.value is None:
            return obs_NO.new_zeros(obs_NO.shape[:-1])
        out: Tensor = self.value(obs_NO)
        return out.squeeze(-1)

    def backward(self, samples: Samples, divisor: float) -> tuple[Array, Tensor]:
        """Gradients of sum/divisor on what is not generated; returns the statistics' sums/divisor, and dL/dw_M."""
        w_M, a = self.weights(), self.config.algorithm
        with self.profile("loss"):
            leaf_M = w_M.detach().requires_grad_()
            outputs = self.outputs(leaf_M, samples.raw_NO, samples.obs_NO, collect=True)
            log_prob_N = self.head.log_prob(outputs, samples.actions, self.log_std)
            policy_loss = LOSSES[a.name](log_prob_N, samples.old_log_prob_N, samples.adv_N, a.clip)
            entropy = self.head.entropy(outputs, self.log_std).sum()
            loss, value_loss = policy_loss - a.entropy * entropy, torch.zeros(())
            if self.value is not None:
                value_loss = 0.5 * ((self.values(samples.critic_NO) - samples.returns_N) ** 2).sum()
                loss = loss + a.value_weight * value_loss
            self.differentiate(loss / divisor, [leaf_M, *self.direct])
            with torch.no_grad():
                log_ratio_N = log_prob_N - samples.old_log_prob_N
                kl = (log_ratio_N.exp() - 1 - log_ratio_N).sum()  # http://joschu.net/blog/kl-approx.html
                clipped = ((log_ratio_N.exp() - 1).abs() > a.clip).sum()
            sums = torch.stack([policy_loss, value_loss, entropy, kl, clipped]).detach().double().numpy()
        assert leaf_M.grad is not None
        return sums / divisor, leaf_M.grad


def step(
    learners: Sequence[PolicyGradient], samples: Sequence[Samples], global_counts: Sequence[float], where: str
) -> tuple[Array, list[float]]:
    """One optimizer step of several policies; returns the means of STATISTICS over all ranks' samples, a row per
    policy, and the norms of their gradients.

    global_counts are the numbers of samples of this step on all ranks. Raises as ``descend_policies``.
    """
    config = learners[0].config
    if config.allreduce.aggregation == "average":
        global_counts = [len(part.adv_N) for part in samples]
    counts = [max(count, 1) for count in global_counts]
    divisors = [
        r.num_environments if config.algorithm.loss == "sum" else n for r, n in zip(learners, counts, strict=True)
    ]
    found = [r.backward(part, divisor) for r, part, divisor in zip(learners, samples, divisors, strict=True)]
    pull_back(learners, [cotangent_M for _, cotangent_M in found])
    sums = [each * (divisor / n) for (each, _), divisor, n in zip(found, divisors, counts, strict=True)]
    shares = [len(part.adv_N) / n for part, n in zip(samples, counts, strict=True)]
    means, norms = descend_policies(learners, [r.parameters for r in learners], sums, shares, where)
    return np.array(means), norms


def minibatches(
    config: Config, rows: list[int], valid_TB: npt.NDArray[np.bool_], update: int
) -> Iterator[list[Tensor]]:
    """For every epoch, the sample numbers (into the flattened valid samples) of each minibatch.

    rows: the global numbers of the B rows, each an environment or one of its agents. Every row's steps are dealt out by
    a stream of its own, so the union over ranks does not depend on how environments are spread over ranks.
    """
    a = config.algorithm
    epochs, parts = (a.epochs, a.minibatches) if a.name == "ppo" else (1, 1)
    number_TB = np.cumsum(valid_TB.ravel()).reshape(valid_TB.shape) - 1
    columns = [number_TB[valid_TB[:, b], b] for b in range(valid_TB.shape[1])]
    for epoch in range(epochs):
        if parts == 1:
            yield [torch.arange(int(valid_TB.sum()))]
            continue
        dealt: list[list[np.ndarray]] = [[] for _ in range(parts)]
        for index, column in zip(rows, columns, strict=True):
            rng = seeding.stream(config.train.seed, "minibatch", index, update, epoch)
            for part, numbers in zip(dealt, np.array_split(rng.permutation(column), parts), strict=True):
                part.append(numbers)
        yield [torch.from_numpy(np.concatenate(part)) for part in dealt]


def value_network(num_inputs: int, hidden: tuple[int, ...], seed: int, *key: int) -> nn.Module:
    """A freshly initialised V: observation (N, O) -> (N, 1), tanh between the layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.integer(seed, "initialise", 2, *key))
        layers: list[nn.Module] = []
        for i, o in pairwise((num_inputs, *hidden)):
            layers += [nn.Linear(i, o), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((num_inputs, *hidden)[-1], 1))
