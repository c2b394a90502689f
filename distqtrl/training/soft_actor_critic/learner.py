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
from distqtrl.training.gradient import REMEDY, Array, NotFinite
from distqtrl.training.learner import Setup
from distqtrl.training.network_learner import NetworkLearner
from distqtrl.training.roles import Spec
from distqtrl.training.step import Loss, backward, reduce, step, zero

BEYOND = 100.0  # times what rewards can add up to: critics that say so have diverged
CRITIC, POLICY = ("value_loss", "value_mean"), ("policy_loss", "entropy", "temperature")


class SoftActorCritic(NetworkLearner):
    """SAC. The generator makes the weights of the mean; deviation and critics serve training only."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        a = self.config.algorithm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.integer(self.config.train.seed, "initialise", seeding.CRITICS))
            self.critics, targets = (self.twins(self.config, setup.spec).to(self.dtype) for _ in range(2))
            beside = self._beside(setup.spec)
        targets.load_state_dict(self.critics.state_dict())
        self.targets = None if a.critic_norm == "batch_renorm" else targets.requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(a.temperature, dtype=self.dtype).log())
        self.target_entropy = self._target_entropy()
        for name, module in (("critics", self.critics), ("targets", self.targets)):
            if module is not None:
                self.trained.add_module(name, module)
        self.trained.register_buffer("largest_reward", torch.zeros((), dtype=torch.float64))
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
    def twins(config: Config, spec: Spec) -> sac.Critics:
        """The critics of a policy, newly drawn."""
        a, num_inputs = config.algorithm, spec.architecture.num_inputs + spec.head.num_outputs
        return sac.Critics(num_inputs, a.value_hidden, a.critic_norm, a.renorm_warmup)

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
        return a.rollout_steps * a.gradient_steps // a.policy_every * (a.policy_steps or a.policy_every), silent

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

    def fingerprint(self) -> bytes:
        """With the critics' running statistics."""
        return super().fingerprint() + b"".join(x.numpy().tobytes() for x in self.critics.buffers())

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
        """One step of the critics on count samples of all ranks; returns the means of CRITIC over them.

        Raises Diverged where they lose all relation to rewards.
        """
        zero([self])
        loss = self._critic_loss(batch, noise_NA, count)
        backward([self], [loss])
        (total,) = reduce([self], [loss], f"{where}, critics")
        _, mean, value_loss, reward = total.sums[:4]
        self._check_values(mean, reward, loss.sums[1] * count / len(noise_NA), f"{where}, critics")
        step([self], [total])
        self.critics.project()
        self.critics.observe(total.sums[4:])
        if self.targets is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.targets.parameters()), self.critic_parameters, self.config.algorithm.tau)
        return np.array([value_loss, mean])

    def _check_values(self, mean: float, reward: float, local_mean: float, where: str) -> None:
        """Raise NotFinite where the critics' mean value is far beyond all that rewards seen so far can add up to."""
        largest: Tensor = self.trained.largest_reward  # type: ignore[assignment]
        largest.clamp_(min=reward)
        most = float(largest) / max(1 - self.config.algorithm.gamma, 1e-6)
        if abs(mean) <= BEYOND * most:
            return
        means_R = self.comm.allgather(np.array([local_mean]))[:, 0]
        worst = int(np.abs(means_R).argmax())
        raise NotFinite(
            f"the critics diverge: their mean value at {where} is {means_R[worst]:.3g} on rank "
            f"{self.comm.ranks[worst]}, rewards and entropies seen so far add up to at most {most:.3g}: {REMEDY}"
        )

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
            obs_NO, next_NO = self.observed(batch.obs_NO), self.observed(batch.next_obs_NO)
            actions_NA = torch.from_numpy(batch.actions_NA).to(self.dtype)
            with torch.no_grad():
                raw_NO = torch.from_numpy(batch.next_obs_NO)
                next_NA, log_prob_N = self.actions(self.weights(), raw_NO, next_NO, noise_NA)
            q_2N, next_q_2N = self._values((obs_NO, actions_NA), (next_NO, next_NA))
            rewards_N, ended_N = torch.from_numpy(batch.rewards_N), torch.from_numpy(batch.terminated_N)
            temperature = float(self.log_temperature.detach().exp())
            y_N = sac.targets(rewards_N, ended_N, next_q_2N.detach(), log_prob_N, temperature, a.gamma)
            return self._of_values(q_2N, y_N, rewards_N - a.gamma * temperature * log_prob_N, count)

    def _values(self, now: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What the critics say of what they read now, and their targets of what comes after.

        CrossQ, which has no targets, reads both at once, so that statistics are of both.
        """
        if self.targets is not None:
            return self.critics(*now), self.targets(*after)
        both = self.critics(*(torch.cat(pair) for pair in zip(now, after, strict=True)), batch=True)
        return both.tensor_split(2, dim=1)

    def _of_values(self, q_2N: Tensor, y_N: Tensor, soft_N: Tensor, count: int) -> Loss:
        """The critics' loss against their targets y_N; soft_N: rewards and the entropies after them."""
        loss, share = ((q_2N - y_N.to(self.dtype)) ** 2).sum() / count, len(y_N) / count
        means = [y_N.mean() * share, q_2N.detach().mean() * share, loss.detach(), soft_N.abs().mean() * share]
        sums = np.concatenate([np.array([float(x) for x in means]), self.critics.statistics(share)])
        return Loss(
            value=loss,
            leaf_M=None,
            direct=self.critic_parameters,
            moves=self._of_critics,
            sums=sums,
            names=("target of the critics", "value of the critics", "loss of the critics"),
        )

    def _policy_loss(self, batch: Transitions, noise_NA: Tensor, count: int) -> Loss:
        leaf_M = self.weights().detach().requires_grad_()
        with self.profile("loss"):
            raw_NO, obs_NO = torch.from_numpy(batch.obs_NO), self.observed(batch.obs_NO)
            actions_NA, log_prob_N = self.actions(leaf_M, raw_NO, obs_NO, noise_NA, collect=True)
            q_N = self.critics(obs_NO, actions_NA).min(0).values
            policy_loss = (self.log_temperature.detach().exp() * log_prob_N - q_N).sum() / count
            entropy, share = -log_prob_N.detach().sum() / count, len(log_prob_N) / count
            return self._tempered(leaf_M, policy_loss, entropy=entropy, share=share)

    def _tempered(self, leaf_M: Tensor, policy_loss: Tensor, *, entropy: Tensor, share: float) -> Loss:
        """The policy's loss and the temperature's. entropy, share: this rank's part of the mean, and of the samples."""
        temperature = self.log_temperature.exp()
        loss = policy_loss + temperature * (entropy - share * self.target_entropy)
        sums = torch.stack([policy_loss, entropy, temperature * share]).detach().double().numpy()
        return Loss(value=loss, leaf_M=leaf_M, direct=self.direct, moves=self._of_policy, sums=sums, share=share)


def _deviates(config: Config, spec: Spec) -> Architecture:
    """The network that gives the deviations."""
    return Architecture(spec.architecture.num_inputs, config.algorithm.deviation_hidden, spec.head.num_outputs, "relu")
