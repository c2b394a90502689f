"""SAC of one action of several: critics say a value for each, and what is expected of actions is a sum over all."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl.algorithm import discrete_sac
from distqtrl.algorithm.replay import Transitions
from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.training import demand
from distqtrl.training.demand import Need
from distqtrl.training.roles import Spec
from distqtrl.training.soft_actor_critic.learner import SoftActorCritic
from distqtrl.training.step import Loss

PART = 0.5  # of log A: the entropy where algorithm.target_entropy says nothing


class DiscreteSoftActorCritic(SoftActorCritic):
    """SAC whose policy says logits, all of them the generator's; nothing is drawn in a gradient step."""

    @property
    def num_noise(self) -> int:
        return 0

    @staticmethod
    def twins(config: Config, spec: Spec) -> discrete_sac.Critics:
        a, inputs, actions = config.algorithm, spec.architecture.num_inputs, spec.head.num_outputs
        return discrete_sac.Critics(inputs, a.value_hidden, a.critic_norm, a.renorm_warmup, actions)

    def _beside(self, spec: Spec) -> dict[str, nn.Parameter]:
        return {}

    def _target_entropy(self) -> float:
        part = self.config.algorithm.target_entropy
        if part is not None and not 0 <= part < 1:
            raise UserError(
                f"algorithm.target_entropy = {part:g}: of discrete actions it is a part of log A, the most that there "
                "can be: choose one from 0 to below 1, or none"
            )
        return (PART if part is None else part) * math.log(self.head.num_outputs)

    @staticmethod
    def needs(config: Config, spec: Spec) -> Iterator[Need]:
        *of_replay, _, _ = SoftActorCritic.needs(config, spec)
        yield from of_replay
        widths = (spec.architecture.num_inputs, *config.algorithm.value_hidden, spec.head.num_outputs)
        yield demand.beside(config, "value_hidden", 4 * demand.num_weights(widths))  # two, and their targets

    @staticmethod
    def num_training_only(config: Config, spec: Spec) -> int:
        return sum(p.numel() for p in DiscreteSoftActorCritic.twins(config, spec).parameters()) + 1

    def drawn_uniformly(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        return rng.integers(self.head.num_outputs, size=(steps, 1))

    def deviation(self) -> Callable[[np.ndarray], np.ndarray]:
        return lambda obs_BO: np.zeros(0)

    def _critic_loss(self, batch: Transitions, noise_NA: Tensor, count: int) -> Loss:
        a = self.config.algorithm
        with self.profile("loss"):
            obs_NO, next_NO = self.observed(batch.obs_NO), self.observed(batch.next_obs_NO)
            values_2NA, next_2NA = self._values((obs_NO,), (next_NO,))
            rewards_N, temperature = torch.from_numpy(batch.rewards_N), float(self.log_temperature.detach().exp())
            with torch.no_grad():
                logits_NA = self.outputs(self.weights(), torch.from_numpy(batch.next_obs_NO), next_NO)
                y_N = discrete_sac.targets(
                    rewards_N,
                    torch.from_numpy(batch.terminated_N),
                    next_2NA.detach(),
                    logits_NA,
                    temperature=temperature,
                    gamma=a.gamma,
                )
                soft_N = rewards_N + a.gamma * temperature * discrete_sac.entropy(*discrete_sac.policy(logits_NA))
            q_2N = discrete_sac.of_actions(values_2NA, torch.from_numpy(batch.actions_NA[:, 0]).long())
            return self._of_values(q_2N, y_N, soft_N, count)

    def _policy_loss(self, batch: Transitions, noise_NA: Tensor, count: int) -> Loss:
        leaf_M = self.weights().detach().requires_grad_()
        with self.profile("loss"):
            raw_NO, obs_NO = torch.from_numpy(batch.obs_NO), self.observed(batch.obs_NO)
            with torch.no_grad():
                values_2NA = self.critics(obs_NO)
            logits_NA = self.outputs(leaf_M, raw_NO, obs_NO, collect=True)
            loss_N, entropy_N = discrete_sac.policy_loss(logits_NA, values_2NA, self.log_temperature.detach().exp())
            entropy, share = entropy_N.detach().sum() / count, len(entropy_N) / count
            return self._tempered(leaf_M, loss_N.sum() / count, entropy=entropy, share=share)
