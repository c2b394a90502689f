"""The soft actor-critic learner: a replica with twin critics, their targets, a deviation network and a temperature."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm import sac
from distqtrl.algorithm.replay import Transitions
from distqtrl.policy import network
from distqtrl.policy.network import Architecture
from distqtrl.training.gradient import Array
from distqtrl.training.learner import Learner
from distqtrl.training.step import descend_policies, pull_back

CRITIC, POLICY = ("value_loss", "value_mean"), ("policy_loss", "entropy", "temperature")


class SoftActorCritic(Learner):
    """SAC. The generator makes the weights of the mean; deviation and critics serve training only."""

    def build(self) -> list[tuple[list[Tensor], float]]:
        """Critics, their targets, the deviation's network, the temperature."""
        a, num_actions = self.config.algorithm, self.head.num_outputs
        num_inputs = self.architecture.num_inputs
        self.deviates = Architecture(num_inputs, a.deviation_hidden, num_actions, "relu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.integer(self.config.train.seed, "initialise", 2))
            self.critics = sac.Critics(num_inputs + num_actions, a.value_hidden).to(self.dtype)
            self.targets = sac.Critics(num_inputs + num_actions, a.value_hidden).to(self.dtype)
            deviation_M = torch.cat([(torch.rand(size) * 2 - 1) / fan**0.5 for size, fan in self.deviates.layers])
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)
        self.deviation_M = nn.Parameter(deviation_M.to(self.dtype))
        self.log_temperature = nn.Parameter(torch.zeros((), dtype=self.dtype))
        self.target_entropy = -num_actions if a.target_entropy is None else a.target_entropy
        for name, module in (("critics", self.critics), ("targets", self.targets)):
            self.trained.add_module(name, module)
        for name, p in (("deviation_M", self.deviation_M), ("log_temperature", self.log_temperature)):
            self.trained.register_parameter(name, p)
        self.direct: list[Tensor] = [self.deviation_M, *self.scales, self.log_temperature]  # beside the generator
        self.critic_parameters: list[Tensor] = list(self.critics.parameters())
        return [
            ([*self.generator.parameters(), self.deviation_M, *self.scales], a.learning_rate),
            ([self.log_temperature, *self.critic_parameters], a.value_learning_rate),
        ]

    def deviation(self) -> Callable[[np.ndarray], np.ndarray]:
        """Normalised observations -> the deviations of the actions before tanh, in NumPy, as the parameters stand."""
        outputs = network.acting(self.deviates, self.deviation_M)
        return lambda obs_BO: sac.log_deviation(torch.from_numpy(outputs(obs_BO))).exp().numpy()

    def _actions(
        self, w_M: Tensor, raw_NO: Tensor, obs_NO: Tensor, noise_NA: Tensor, collect: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Drawn actions in (-1, 1) and their log densities, differentiable in w_M and the deviation's weights."""
        mean_NA = self.outputs(w_M, raw_NO, obs_NO, collect)
        layers = network.unpack(self.deviates, self.deviation_M)
        log_std_NA = sac.log_deviation(network.outputs(self.deviates, layers, obs_NO))
        return sac.squashed(mean_NA, log_std_NA, noise_NA)

    def critic_step(self, batch: Transitions, noise_NA: Tensor, count: int, where: str) -> Array:
        """One step of the critics on count samples of all ranks; returns the means of CRITIC over them."""
        a = self.config.algorithm
        with self.profile("loss"):
            with torch.no_grad():
                next_NO = self.observed(batch.next_obs_NO)
                raw_NO = torch.from_numpy(batch.next_obs_NO)
                actions_NA, log_prob_N = self._actions(self.weights(), raw_NO, next_NO, noise_NA)
                rewards_N, ended_N = torch.from_numpy(batch.rewards_N), torch.from_numpy(batch.terminated_N)
                next_q_2N, temperature = self.targets(next_NO, actions_NA), float(self.log_temperature.exp())
                y_N = sac.targets(rewards_N, ended_N, next_q_2N, log_prob_N, temperature, a.gamma)
            q_2N = self.critics(self.observed(batch.obs_NO), torch.from_numpy(batch.actions_NA).to(self.dtype))
            loss = ((q_2N - y_N.to(self.dtype)) ** 2).sum() / count
            self.differentiate(loss, self.critic_parameters)
            sums = np.array([float(loss.detach()), float(q_2N.detach().mean(0).sum()) / count])
        means, _ = self.descend(self.critic_parameters, sums, f"{where}, critics")
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), self.critic_parameters, a.tau)
        return means

    def policy_step(self, batch: Transitions, noise_NA: Tensor, count: int, where: str) -> tuple[Array, float]:
        """One step of policy and temperature; returns the means of POLICY, and the gradient's norm."""
        leaf_M = self.weights().detach().requires_grad_()
        with self.profile("loss"):
            raw_NO, obs_NO = torch.from_numpy(batch.obs_NO), self.observed(batch.obs_NO)
            actions_NA, log_prob_N = self._actions(leaf_M, raw_NO, obs_NO, noise_NA, collect=True)
            q_N = self.critics(obs_NO, actions_NA).min(0).values
            temperature = self.log_temperature.exp()
            policy_loss = (temperature.detach() * log_prob_N - q_N).sum() / count
            entropy = -log_prob_N.detach().sum() / count
            share = len(log_prob_N) / count
            loss = policy_loss + temperature * (entropy - share * self.target_entropy)
            self.differentiate(loss, [leaf_M, *self.direct])
            sums = torch.stack([policy_loss, entropy, temperature * share]).detach().double().numpy()
        assert leaf_M.grad is not None
        pull_back([self], [leaf_M.grad])
        own = [*self.generator.parameters(), *self.direct]
        (means,), (norm,) = descend_policies([self], [own], [sums], [share], f"{where}, policy")
        return means, norm
