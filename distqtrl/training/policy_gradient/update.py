"""An update of PPO or REINFORCE: a rollout, what all ranks sum of it, and the optimizer steps on its samples."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from distqtrl.algorithm import noise_scale
from distqtrl.environment.rollout import Rollout
from distqtrl.policy.distribution import read
from distqtrl.policy.normalizer import Normalizer
from distqtrl.training.gradient import Array
from distqtrl.training.policies import Policies
from distqtrl.training.policy_gradient.learner import STATISTICS, PolicyGradient, Samples, step
from distqtrl.training.policy_gradient.samples import (
    critic_inputs,
    minibatches,
    normalise,
    normalise_episodes,
    rollout,
    samples,
    team_rewards,
)
from distqtrl.training.roles import Spec
from distqtrl.training.run import Run
from distqtrl.training.sums import RolloutSums, rollout_sums, summed


@dataclass
class PolicySums:
    """What ranks sum of one policy's samples; zeros on a rank that does not learn it."""

    counts: Array  # samples of every minibatch
    advantages: Array  # their sum, and that of their squares
    entropy: Array  # of the policy that acted
    observations: Array  # for its normaliser, see Normalizer.sums; nothing where there is none
    states: Array  # for its centralised critic's


@dataclass
class Sums:
    """What ranks sum of a rollout, in one reduction."""

    rollout: RolloutSums
    policies: list[PolicySums]


def update(run: Run, pending: Sequence[signal.Signals]) -> tuple[RolloutSums, dict[str, Any]]:
    """One update; returns what all ranks summed of the rollout, and metrics. pending: signals that came meanwhile."""
    config, policies, environments, number = run.config, run.policies, run.environments, run.counters.update
    a, learners = config.algorithm, cast(Sequence[PolicyGradient], policies.learners)

    # the rollout of every environment, all policies acting
    acting = [learner.acting_weights(number) for learner in learners]
    players = policies.players(acting)
    with policies.profile("rollout"):
        whole = rollout(config, environments, number, players)
    if config.agents.reward == "team":
        whole.rewards_TB = team_rewards(whole.rewards_TB, environments.num_agents)

    # each policy's samples of it, and how they are dealt out over minibatches
    rollouts = [
        whole.of(environments.rows[role], environments.widths[role], learner.head.unpadded)
        for role, learner in zip(policies.local_roles, learners, strict=True)
    ]
    batches = [samples(*each) for each in zip(learners, rollouts, acting, strict=True)]
    if a.normalize_advantages and a.normalize_over == "episode":
        for batch, played in zip(batches, rollouts, strict=True):
            normalise_episodes(batch, played, a.normalize_epsilon)
    dealt = [
        list(minibatches(learner.recipe, config.train.seed, environments.numbers(role), played.valid_TB, number))
        for role, learner, played in zip(policies.local_roles, learners, rollouts, strict=True)
    ]

    # one reduction over the ranks
    acted_G = whole.valid_TB.sum(0).reshape(environments.num, -1).sum(0)
    steps = whole.rewards_TB.size // environments.num_agents
    local = Sums(
        rollout=rollout_sums(run, acted_G, steps, pending),
        policies=[_nothing(learners[0], spec) for spec in policies.specs],
    )
    for role, found in zip(policies.local_roles, zip(learners, rollouts, batches, dealt, strict=True), strict=True):
        local.policies[role] = _policy_sums(*found)
    total = summed(run, local, f"rollout of update {number}")
    totals = [total.policies[role] for role in policies.local_roles]

    # epochs of optimizer steps
    for batch, policy in zip(batches, totals, strict=True):
        normalise(batch, float(policy.counts.sum()), policy.advantages, a)
    counts = np.array([policy.counts for policy in totals]).T
    sums_K, num_steps, norms = np.zeros((len(learners), len(STATISTICS))), 0, [0.0] * len(learners)
    chosen_K = _minibatches(batches, dealt)
    for part, chosen in ((part, chosen) for epoch in chosen_K for part, chosen in enumerate(epoch)):
        if not counts[part].any():
            continue  # episodes were too short for so many minibatches
        where = f"update {number}, optimizer step {num_steps}"
        rows = None if num_steps else [len(environments.numbers(role)) for role in policies.local_roles]
        statistics_K, norms = step(learners, chosen, counts[part].tolist(), where, rows)
        sums_K, num_steps = sums_K + statistics_K, num_steps + 1
        if a.target_kl is not None and statistics_K[:, STATISTICS.index("approx_kl")].max() > a.target_kl:
            break

    # what all ranks saw is how the next observations are normalised
    for learner, policy in zip(learners, totals, strict=True):
        _merge(learner, policy)
    means_K = np.column_stack([sums_K / max(num_steps, 1), norms, [learner.noise_scale.take() for learner in learners]])
    return total.rollout, _metrics(policies, total.policies, means_K)


def _minibatches(
    batches: Sequence[Samples], dealt: Sequence[list[list[torch.Tensor]]]
) -> Iterator[list[list[Samples]]]:
    """For every epoch and minibatch the samples of all policies, put in this order once per epoch."""
    for epoch in zip(*dealt, strict=True):
        of_each = [[b] if len(parts) == 1 else b.dealt(parts) for b, parts in zip(batches, epoch, strict=True)]
        yield [list(chosen) for chosen in zip(*of_each, strict=True)]


def _nothing(learner: PolicyGradient, spec: Spec) -> PolicySums:
    """A policy's part on a rank that does not learn it."""
    normalizes = learner.config.policy.normalize_observations
    return PolicySums(
        counts=np.zeros(learner.recipe.minibatches),
        advantages=np.zeros(2),
        entropy=np.zeros(()),
        observations=np.zeros(2 * spec.architecture.num_inputs if normalizes else 0),
        states=np.zeros(2 * spec.num_states if normalizes and learner.recipe.uses_values else 0),
    )


def _policy_sums(
    learner: PolicyGradient, rollout: Rollout, batch: Samples, epochs: Sequence[list[torch.Tensor]]
) -> PolicySums:
    """This rank's part of one of its policies."""
    adv_N, observations, states = batch.adv_N.numpy(), np.zeros(0), np.zeros(0)
    if learner.config.policy.normalize_observations:
        observations = Normalizer.sums(read(learner.head, rollout.obs_TBO[rollout.valid_TB]))
        if rollout.states_TES is not None and learner.recipe.uses_values:
            seen_TBS = critic_inputs(rollout.states_TES, rollout.valid_TB.shape[1])
            states = Normalizer.sums(seen_TBS[rollout.valid_TB])
    return PolicySums(
        counts=np.array([float(len(part)) for part in epochs[0]]),
        advantages=np.array([adv_N.sum(), (adv_N**2).sum()]),
        entropy=np.array(float(batch.entropy_N.double().sum())),
        observations=observations,
        states=states,
    )


def _merge(learner: PolicyGradient, total: PolicySums) -> None:
    """Let the normalisers take in what all ranks saw."""
    count = float(total.counts.sum())
    if count and len(total.observations):
        learner.normalizer.merge(count, total.observations)
    if count and len(total.states):
        learner.state_normalizer.merge(count, total.states)


def _metrics(policies: Policies, totals: Sequence[PolicySums], means_K: np.ndarray) -> dict[str, Any]:
    """Means over all policies' samples; with several policies those of each, too."""
    count_K = np.array([total.counts.sum() for total in totals])
    names = (*STATISTICS, "gradient_norm")
    rows_K, noise_K = np.split(policies.gathered(means_K), [len(names)], axis=1)
    weight_K = count_K / count_K.sum()
    if len(totals) == 1:
        whole: dict[str, Any] = {name: float(x) for name, x in zip(names, rows_K[0], strict=True)}
    else:
        whole = {name: float(x) for name, x in zip(names, weight_K @ rows_K, strict=True)}
        whole["policies"] = {
            name: {key: float(x) for key, x in zip(names, row, strict=True)} | noise_scale.facts(noise[np.newaxis])
            for name, row, noise in zip(policies.names, rows_K, noise_K, strict=True)
        }
    entropy = np.array([total.entropy for total in totals]).sum()
    return {**whole, **noise_scale.facts(noise_K), "acting_entropy": float(entropy / count_K.sum())}
