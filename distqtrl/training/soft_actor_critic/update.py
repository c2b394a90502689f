"""An update of SAC: steps of every environment into the replay, and gradient steps on samples of it in between."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from distqtrl import seeding
from distqtrl.algorithm import noise_scale
from distqtrl.algorithm.replay import Replay
from distqtrl.environment.rollout import collect
from distqtrl.environment.vector import Environments
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training.gradient import Array
from distqtrl.training.run import Run
from distqtrl.training.soft_actor_critic.learner import CRITIC, POLICY, SoftActorCritic
from distqtrl.training.sums import RolloutSums, rollout_sums, summed

METRICS = (*CRITIC, *POLICY, "gradient_norm")


@dataclass
class Sums:
    """What ranks sum of a rollout, in one reduction."""

    rollout: RolloutSums
    observations: Array  # for the normaliser, see Normalizer.sums; nothing where there is none


def update(run: Run, pending: Sequence[signal.Signals]) -> tuple[RolloutSums, dict[str, Any]]:
    """One update; returns what all ranks summed of the rollout, and metrics (None where nothing was learned).

    Until ``algorithm.learning_starts`` actions are uniform and nothing is learned, in whole updates. pending: signals
    that came meanwhile.
    """
    config, environments, number, replay = run.config, run.environments, run.counters.update, run.replay
    a, learner = config.algorithm, cast(SoftActorCritic, run.learner)
    assert replay is not None
    learning = run.counters.env_steps >= a.learning_starts

    # steps of every environment, and gradient steps in between
    act, noise_TB = acting(learner, environments, number, uniform=not learning)
    draws = Draws(learner, environments, number)
    for begin in range(0, a.rollout_steps, a.train_every):
        with learner.profile("rollout"):
            chunk = collect(environments, act(), _from(noise_TB, begin), a.train_every)
            actions_TBA = chunk.actions if chunk.actions.ndim == 3 else chunk.actions[..., np.newaxis]
            replay.add(chunk.obs_TBO, actions_TBA, chunk.rewards_TB, chunk.terminated_TB, chunk.next_obs_TBO)
        for _ in range(a.train_every * a.gradient_steps if learning else 0):
            draws.step(replay)

    # one reduction over the ranks, and how the next observations are normalised
    seen_NO = replay.last(a.rollout_steps)
    local = Sums(
        rollout=rollout_sums(run, np.array([len(seen_NO)]), len(seen_NO), pending),
        observations=Normalizer.sums(seen_NO) if config.policy.normalize_observations else np.zeros(0),
    )
    total = summed(run, local, f"rollout of update {number}")
    if config.policy.normalize_observations:
        learner.normalizer.merge(float(total.rollout.steps), total.observations)
    return total.rollout, draws.metrics() if learning else dict.fromkeys((*METRICS, *noise_scale.FACTS))


def _from(noise_TB: np.ndarray, begin: int) -> Callable[[int], np.ndarray]:
    """The noise from a step on, so many steps at each call."""
    left = noise_TB[begin:]

    def following(steps: int) -> np.ndarray:
        nonlocal left
        given, left = left[:steps], left[steps:]
        return given

    return following


def acting(
    learner: SoftActorCritic, environments: Environments, number: int, uniform: bool
) -> tuple[Callable[[], Callable], np.ndarray]:
    """What makes the function that acts until the parameters change again, and the noise of every step, (T, B, ...)."""
    head, steps = learner.head, learner.config.algorithm.rollout_steps
    seed, dtype = learner.config.train.seed, learner.log_temperature.detach().numpy().dtype
    streams = [seeding.stream(seed, "action", index, number) for index in environments.indices]
    noise_TB = np.stack([(learner.drawn_uniformly if uniform else head.noise)(s, steps) for s in streams], axis=1)
    noise_TB = noise_TB.astype(dtype) if noise_TB.dtype == np.float64 else noise_TB
    kept: tuple[int, Callable] = (-1, lambda: None)

    def fresh() -> Callable:
        if uniform:
            return lambda obs_BO, drawn_BA: (drawn_BA, head.to_environment(head.unpadded(drawn_BA)))
        mean, deviation = learner.acting(learner.acting_weights(number)), learner.deviation()

        def act(obs_BO: np.ndarray, noise_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            normal_BO = learner.normalizer.apply(obs_BO).astype(dtype, copy=False)
            actions_B = head.sample(mean(obs_BO, normal_BO), noise_B, deviation(normal_BO))
            return actions_B, head.to_environment(actions_B)

        return act

    def made() -> Callable:
        nonlocal kept
        if kept[0] != learner.num_steps:
            kept = (learner.num_steps, fresh())
        return kept[1]

    return made, noise_TB


class Draws:
    """The gradient steps of one update: which samples, with which noise, and what came out.

    Every environment has a stream of its own, and its share of ``algorithm.batch_size``.
    """

    def __init__(self, learner: SoftActorCritic, environments: Environments, number: int) -> None:
        self.learner, self.number, self.done = learner, number, 0
        a, num = learner.config.algorithm, learner.num_environments
        self.streams = [seeding.stream(learner.config.train.seed, "replay", i, number) for i in environments.indices]
        self.shares = [a.batch_size // num + (i < a.batch_size % num) for i in environments.indices]
        self.critic_means: list[Array] = []
        self.policy_means: list[Array] = []
        self.norms: list[float] = []

    def step(self, replay: Replay) -> None:
        """One step of the critics; after every ``policy_every`` of them ``policy_steps`` of the policy."""
        a, learner = self.learner.config.algorithm, self.learner
        where = f"update {self.number}, gradient step {self.done}"
        batch = replay.sample([s.random(n) for s, n in zip(self.streams, self.shares, strict=True)])
        self.critic_means.append(learner.critic_step(batch, self._noise(), a.batch_size, where))
        self.done += 1
        if self.done % a.policy_every == 0:
            for i in range(a.policy_steps or a.policy_every):
                means, norm = learner.policy_step(batch, self._noise(), a.batch_size, where, measured=i == 0)
                self.policy_means.append(means)
                self.norms.append(norm)

    def metrics(self) -> dict[str, Any]:
        """Means over the update."""
        found = [*np.mean(self.critic_means, axis=0), *np.mean(self.policy_means, axis=0), np.mean(self.norms)]
        means = {name: float(x) for name, x in zip(METRICS, found, strict=True)}
        return means | noise_scale.facts(self.learner.noise_scale.take()[np.newaxis])

    def _noise(self) -> torch.Tensor:
        width = self.learner.num_noise
        drawn = [s.standard_normal((n, width)) for s, n in zip(self.streams, self.shares, strict=True)]
        return torch.from_numpy(np.concatenate(drawn)).to(self.learner.dtype)
