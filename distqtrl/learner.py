"""The policy-gradient learner: a replica with a value network, and one optimizer step on samples of a rollout."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm import ppo, reinforce
from distqtrl.config import Config
from distqtrl.replica import Array, Replica

LOSSES = {"ppo": ppo.loss, "reinforce": reinforce.loss}
STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


@dataclass
class Samples:
    """N samples as tensors; ``obs_NO`` are the normalised ``raw_NO``."""

    raw_NO: Tensor
    obs_NO: Tensor
    actions: Tensor
    old_log_prob_N: Tensor
    adv_N: Tensor
    returns_N: Tensor
    entropy_N: Tensor  # of the policy that acted

    def at(self, index: Tensor) -> "Samples":
        return Samples(*(getattr(self, f.name)[index] for f in fields(self)))


class Learner(Replica):
    """PPO and REINFORCE. The losses of ``algorithm.loss = sum`` are divided by ``num_environments``."""

    def build(self) -> list[tuple[list[Tensor], float]]:
        """The deviations of a Gaussian head, and a value network where the algorithm has one."""
        a, num_outputs = self.config.algorithm, self.head.num_outputs
        self.log_std = nn.Parameter(torch.full((num_outputs,), self.config.policy.log_std, dtype=self.dtype))
        self.trained.register_parameter("log_std", self.log_std)
        self.direct: list[Tensor] = [self.log_std, *self.scales]  # trained, and not through the generator
        groups = [([*self.generator.parameters(), *self.direct], a.learning_rate)]
        self.value: nn.Module | None = None
        if a.uses_values:
            self.value = value_network(self.architecture.num_inputs, a.value_hidden, self.config.train.seed)
            self.trained.add_module("value", self.value.to(self.dtype))
            groups.append((list(self.value.parameters()), a.value_learning_rate))
            self.direct += self.value.parameters()
        return groups

    def values(self, obs_NO: Tensor) -> Tensor:
        """The value network's V (N,) of normalised observations; zeros where there is none."""
        if self.value is None:
            return obs_NO.new_zeros(obs_NO.shape[:-1])
        out: Tensor = self.value(obs_NO)
        return out.squeeze(-1)

    def step(self, samples: Samples, global_count: float, where: str) -> tuple[Array, float]:
        """One optimizer step; returns the mean of STATISTICS over all ranks' samples and the gradient's norm.

        global_count is the number of samples of this step on all ranks. Raises as ``descend``.
        """
        averaging = self.config.allreduce.aggregation == "average"
        count = max(len(samples.adv_N), 1) if averaging else global_count
        divisor = float(count)
        if self.config.algorithm.loss == "sum":
            divisor = self.num_environments
        statistics = self._backward(samples, divisor) * (divisor / count)
        return self.descend_policy(self.parameters, statistics, len(samples.adv_N) / count, where)

    def _backward(self, samples: Samples, divisor: float) -> Array:
        """Gradients of sum/divisor on this rank's parameters; returns the statistics' sums/divisor."""
        w_M, a = self.weights(), self.config.algorithm
        with self.profile("loss"):
            leaf_M = w_M.detach().requires_grad_()
            outputs = self.outputs(leaf_M, samples.raw_NO, samples.obs_NO, collect=True)
            log_prob_N = self.head.log_prob(outputs, samples.actions, self.log_std)
            policy_loss = LOSSES[a.name](log_prob_N, samples.old_log_prob_N, samples.adv_N, a.clip)
            entropy = self.head.entropy(outputs, self.log_std).sum()
            loss, value_loss = policy_loss - a.entropy * entropy, torch.zeros(())
            if self.value is not None:
                value_loss = 0.5 * ((self.values(samples.obs_NO) - samples.returns_N) ** 2).sum()
                loss = loss + a.value_weight * value_loss
            self.differentiate(loss / divisor, [leaf_M, *self.direct])
            with torch.no_grad():
                log_ratio_N = log_prob_N - samples.old_log_prob_N
                kl = (log_ratio_N.exp() - 1 - log_ratio_N).sum()  # http://joschu.net/blog/kl-approx.html
                clipped = ((log_ratio_N.exp() - 1).abs() > a.clip).sum()
            sums = torch.stack([policy_loss, value_loss, entropy, kl, clipped]).detach().double().numpy()
        assert leaf_M.grad is not None
        self.pull_back(leaf_M.grad)
        return sums / divisor


def minibatches(
    config: Config, indices: list[int], valid_TB: npt.NDArray[np.bool_], update: int
) -> Iterator[list[Tensor]]:
    """For every epoch, the sample numbers (into the flattened valid samples) of each minibatch.

    Every environment's steps are dealt out by a stream of its own, so the union over ranks does not depend
    on how environments are spread over ranks.
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
        for index, column in zip(indices, columns, strict=True):
            rng = seeding.stream(config.train.seed, "minibatch", index, update, epoch)
            for part, numbers in zip(dealt, np.array_split(rng.permutation(column), parts), strict=True):
                part.append(numbers)
        yield [torch.from_numpy(np.concatenate(part)) for part in dealt]


def value_network(num_inputs: int, hidden: tuple[int, ...], seed: int) -> nn.Module:
    """A freshly initialised V: observation (N, O) -> (N, 1), tanh between the layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.integer(seed, "initialise", 2))
        layers: list[nn.Module] = []
        for i, o in pairwise((num_inputs, *hidden)):
            layers += [nn.Linear(i, o), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear((num_inputs, *hidden)[-1], 1))
