"""SAC: a learner with twin critics, their targets, a deviation network and a temperature."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.algorithm import sac
from distqtrl.algorithm.replay import Replay, Transitions
from distqtrl.config.run import Config
from distqtrl.environment.spaces import Spaces
from distqtrl.errors import UserError
from distqtrl.policy import distribution, network
from distqtrl.policy.distribution import Categorical, Head, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.training import demand
from distqtrl.training.demand import FLOAT, Need
from distqtrl.training.gradient import Array
from distqtrl.training.learner import Setup
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.roles import Spec
from distqtrl.training.step import Loss, backward, reduce, step, zero

CRITIC, POLICY = ("value_loss", "value_mean"), ("policy_loss", "entropy", "temperature")


class SoftActorCritic(NetworkLearner):
    """SAC. The generator makes the weights of the mean; deviation and critics serve training only."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        a = self.config.algorithm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.integer(self.config.train.seed, "initialise", 2))
            self.critics, self.targets = (self.twins(self.config, setup.spec).to(self.dtype) for _ in range(2))
            beside = self._beside(setup.spec)
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.zeros((), dtype=self.dtype))
        self.target_entropy = self._target_entropy()
        for name, module in (("critics", self.critics), ("targets", self.targets)):
            self.trained.add_module(name, module)
        for name, p in (*beside.items(), ("log_temperature", self.log_temperature)):
            self.trained.register_parameter(name, p)
        self.direct: list[Tensor] = [*beside.values(), *self.scales, self.log_temperature]  # beside the generator
        self.critic_parameters: list[Tensor] = list(self.critics.parameters())
        self._optimize(
            [
                *self.policy_groups([*beside.values(), *self.scales]),
                ([self.log_temperature, *self.critic_parameters], a.value_learning_rate),
            ]
        )
        places = range(len(self.parameters))
        first = len(places) - len(self.critic_parameters)
        self._of_policy, self._of_critics = places[:first], places[first:]

    @property
    def num_noise(self) -> int:
        """How many numbers a sample of a gradient step needs."""
        return self.head.num_outputs

    @staticmethod
    def twins(config: Config, spec: Spec) -> nn.Module:
        """The critics of a policy, newly drawn."""
        num_inputs = spec.architecture.num_inputs + spec.head.num_outputs
        return sac.Critics(num_inputs, config.algorithm.value_hidden)

    def _beside(self, spec: Spec) -> dict[str, nn.Parameter]:
        """What is trained of the policy beside the generator, newly drawn."""
        self.deviates = _deviates(self.config, spec)
        drawn_M = torch.cat([(torch.rand(size) * 2 - 1) / fan**0.5 for size, fan in self.deviates.layers])
        self.deviation_M = nn.Parameter(drawn_M.to(self.dtype))
        return {"deviation_M": self.deviation_M}

    def _target_entropy(self) -> float:
        """What the temperature keeps the policy's entropy at."""
        target = self.config.algorithm.target_entropy
        return -self.head.num_outputs if target is None else target

    @staticmethod
    def head_for(config: Config, spaces: Spaces) -> Head:
        if spaces.low:
            return SquashedGaussian(spaces.low, spaces.high)
        if spaces.num_actions and not spaces.masked:
            return Categorical(spaces.num_actions, spaces.action_start)
        found = f"choices among {spaces.factors}" if spaces.factors else "masks"
        raise UserError(
            f"algorithm.name = sac takes continuous actions or one of several, {config.environment.id} has {found}: "
            "use algorithm.name ppo"
        )

    @staticmethod
    def check(config: Config, num_environments: int) -> None:
        if (batch := config.algorithm.batch_size) < num_environments:
            raise UserError(
                f"algorithm.batch_size = {batch} gives some of {num_environments} environments no sample: use "
                f"{num_environments} or more, or fewer ranks"
            )

    @staticmethod
    def needs(config: Config, spec: Spec) -> Iterator[Need]:
        a, num_inputs = config.algorithm, spec.architecture.num_inputs
        row = FLOAT * num_inputs
        largest, filled = row * a.replay, 2 * row * min(a.replay, config.train.steps or a.replay)
        what = f"algorithm.replay = {a.replay:,} with {num_inputs:,} numbers per observation"
        yield max(largest, filled), what, "algorithm.replay"
        yield 2 * row * a.batch_size, f"algorithm.batch_size = {a.batch_size:,}", "algorithm.batch_size"
        critic = demand.num_weights((num_inputs + spec.head.num_outputs, *a.value_hidden, 1))
        yield demand.beside(config, "value_hidden", 4 * critic)  # two, and their targets
        deviates = demand.num_weights((num_inputs, *a.deviation_hidden, spec.head.num_outputs))
        yield demand.beside(config, "deviation_hidden", deviates)

    @staticmethod
    def num_training_only(config: Config, spec: Spec) -> int:
        critics = sum(p.numel() for p in SoftActorCritic.twins(config, spec).parameters())
        return critics + _deviates(config, spec).num_weights + 1

    @staticmethod
    def steps_per_update(config: Config, num_environments: int) -> tuple[int, int]:
        a = config.algorithm
        silent = -(-a.learning_starts // (num_environments * a.rollout_steps))
        return a.rollout_steps * a.gradient_steps // a.policy_every * a.policy_every, silent

    @staticmethod
    def replay(config: Config, spec: Spec, local_num: int, num_environments: int) -> Replay:
        """This rank's part of the replay."""
        a = config.algorithm
        capacity = max(a.replay // num_environments, a.rollout_steps)
        num_actions = 1 if isinstance(spec.head, Categorical) else spec.head.num_outputs
        return Replay(local_num, capacity, spec.architecture.num_inputs, num_actions)

    def drawn_uniformly(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Actions as the policy says them, before anything is learned, (steps, A)."""
        return rng.uniform(-1, 1, (steps, self.head.num_outputs))

    def deviation(self) -> Callable[[np.ndarray], np.ndarray]:
        """Normalised observations -> the deviations of the actions before tanh, in NumPy, as the parameters stand."""
        outputs = network.acting(self.deviates, self.deviation_M)
        return lambda obs_BO: sac.log_deviation(torch.from_numpy(outputs(obs_BO))).exp().numpy()

    def actions(
        self, w_M: Tensor, raw_NO: Tensor, obs_NO: Tensor, noise_NA: Tensor, collect: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Drawn actions in (-1, 1) and their log densities, differentiable in w_M and the deviation's weights."""
        mean_NA = self.outputs(w_M, raw_NO, obs_NO, collect)
        layers = network.unpack(self.deviates, self.deviation_M)
        log_std_NA = sac.log_deviation(network.outputs(self.deviates, layers, obs_NO))
        return distribution.squashed(mean_NA, log_std_NA, noise_NA)

    def critic_step(self, batch: Transitions, noise_NA: Tensor, count: int, where: str) -> Array:
        """One step of the critics on count samples of all ranks; returns the means of CRITIC over them."""
        zero([self])
        loss = self._critic_loss(batch, noise_NA, count)
        backward([self], [loss])
        (total,) = reduce([self], [loss], f"{where}, critics")
        step([self], [total])
        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.parameters()), self.critic_parameters, self.config.algorithm.tau)
        return total.sums

    def policy_step(
        self, batch: Transitions, noise_NA: Tensor, count: int, where: str, measured: bool = False
    ) -> tuple[Array, float]:
        """One step of policy and temperature; returns the means of POLICY, and the gradient's norm.

        measured: its noise scale, too.
        """
        zero([self])
        loss = self._policy_loss(batch, noise_NA, count)
        if measured:
            loss.local_batch, loss.global_batch = len(noise_NA), count
        backward([self], [loss])
        (total,) = reduce([self], [loss], f"{where}, policy")
        (norm,) = step([self], [total])
        return total.sums, norm

    def _critic_loss(self, batch: Transitions, noise_NA: Tensor, count: int) -> Loss:
        a = self.config.algorithm
        with self.profile("loss"):
            with torch.no_grad():
                next_NO = self.observed(batch.next_obs_NO)
                raw_NO = torch.from_numpy(batch.next_obs_NO)
                actions_NA, log_prob_N = self.actions(self.weights(), raw_NO, next_NO, noise_NA)
                rewards_N, ended_N = torch.from_numpy(batch.rewards_N), torch.from_numpy(batch.terminated_N)
                next_q_2N, temperature = self.targets(next_NO, actions_NA), float(self.log_temperature.exp())
                y_N = sac.targets(rewards_N, ended_N, next_q_2N, log_prob_N, temperature, a.gamma)
            q_2N = self.critics(self.observed(batch.obs_NO), torch.from_numpy(batch.actions_NA).to(self.dtype))
            loss = ((q_2N - y_N.to(self.dtype)) ** 2).sum() / count
            sums = np.array([float(loss.detach()), float(q_2N.detach().mean(0).sum()) / count])
        return Loss(value=loss, leaf_M=None, direct=self.critic_parameters, moves=self._of_critics, sums=sums)

    def _policy_loss(self, batch: Transitions, noise_NA: Tensor, count: int) -> Loss:
        leaf_M = self.weights().detach().requires_grad_()
        with self.profile("loss"):
            raw_NO, obs_NO = torch.from_numpy(batch.obs_NO), self.observed(batch.obs_NO)
            actions_NA, log_prob_N = self.actions(leaf_M, raw_NO, obs_NO, noise_NA, collect=True)
            q_N = self.critics(obs_NO, actions_NA).min(0).values
            temperature = self.log_temperature.exp()
            policy_loss = (temperature.detach() * log_prob_N - q_N).sum() / count
            entropy = -log_prob_N.detach().sum() / count
            share = len(log_prob_N) / count
            loss = policy_loss + temperature * (entropy - share * self.target_entropy)
            sums = torch.stack([policy_loss, entropy, temperature * share]).detach().double().numpy()
        return Loss(value=loss, leaf_M=leaf_M, direct=self.direct, moves=self._of_policy, sums=sums, share=share)


def _deviates(config: Config, spec: Spec) -> Architecture:
    """The network that gives the deviations."""
    return Architecture(spec.architecture.num_inputs, config.algorithm.deviation_hidden, spec.head.num_outputs, "relu")
