"""From a replica and its environments to training samples, and to greedy returns."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from distqtrl.environment.rollout import Rollout
from distqtrl.environment.vector import Environments
from distqtrl.policy.distribution import read
from distqtrl.training.policies import Policies
from distqtrl.training.policy_gradient.learner import STATISTICS, Samples, minibatches, step
from distqtrl.training.policy_gradient.samples import (
    _normalise,
    critic_inputs,
    normalise_episodes,
    rollout,
    samples,
    team_rewards,
)
from distqtrl.training.roles import num_states

Totals = Callable[[dict[str, object]], dict[str, np.ndarray]]


def update(policies: Policies, environments: Environments, number: int, totals: Totals) -> dict[str, Any]:
    """One update, the number-th: a rollout and the optimizer steps on it; returns metrics.

    ``totals`` sums named parts over the ranks, together with what the loop itself asks for.
    """
    config, local_roles, learners = policies.config, policies.local_roles, policies.policy_gradient
    acting = [learner.acting_weights(number) for learner in learners]
    players = policies.players(acting)
    with policies.profile("rollout"):
        whole = rollout(config, environments, number, players)
    if config.agents.reward == "team":
        whole.rewards_TB = team_rewards(whole.rewards_TB, environments.num_agents)
    found = [
        whole.of(environments.rows[role], environments.widths[role], r.head.unpadded)
        for role, r in zip(local_roles, learners, strict=True)
    ]
    batches = [samples(r, own, w_M) for r, own, w_M in zip(learners, found, acting, strict=True)]
    if config.algorithm.normalize_advantages and config.algorithm.normalize_over == "episode":
        for batch, own in zip(batches, found, strict=True):
            normalise_episodes(batch, own, config.algorithm.normalize_epsilon)
    dealt = [
        list(minibatches(config, environments.numbers(role), own.valid_TB, number))
        for role, own in zip(local_roles, found, strict=True)
    ]
    total = totals(_parts(policies, environments, whole, found, batches, dealt))
    counts_KP = total["counts"].reshape(len(policies.roles), -1)[local_roles]
    for batch, count, adv in zip(batches, counts_KP.sum(1), total["adv"].reshape(-1, 2)[local_roles], strict=True):
        _normalise(batch, float(count), adv, config.algorithm)
    sums, steps, norms = np.zeros((len(learners), len(STATISTICS))), 0, [0.0] * len(learners)
    most = config.algorithm.target_kl
    for epoch in zip(*dealt, strict=True):
        for part, counts_K in enumerate(counts_KP.T):
            if not counts_K.any():
                continue  # episodes were too short for so many minibatches
            chosen = [b if len(own) == 1 else b.at(own[part]) for b, own in zip(batches, epoch, strict=True)]
            statistics_K, norms = step(learners, chosen, counts_K.tolist(), f"update {number}, optimizer step {steps}")
            sums, steps = sums + statistics_K, steps + 1
            if most is not None and statistics_K[:, STATISTICS.index("approx_kl")].max() > most:
                break
        else:
            continue
        break
    _merge(policies, total, counts_KP.sum(1))
    return _metrics(policies, total, sums / max(steps, 1), norms)


def _parts(
    policies: Policies,
    environments: Environments,
    whole: Rollout,
    found: Sequence[Rollout],
    batches: Sequence[Samples],
    dealt: Sequence[list[list[torch.Tensor]]],
) -> dict[str, Any]:
    """What the ranks sum of a rollout; of every policy its own place, empty on ranks that do not learn it."""
    a, own, learners = policies.config.algorithm, policies.local_roles, policies.policy_gradient
    num_parts = len(dealt[0][0])
    counts, adv = np.zeros((len(policies.roles), num_parts)), np.zeros((len(policies.roles), 2))
    entropy, central = np.zeros(len(policies.roles)), a.uses_values
    for role, batch, epochs in zip(own, batches, dealt, strict=True):
        counts[role] = [len(part) for part in epochs[0]]
        adv_N = batch.adv_N.numpy()
        adv[role] = adv_N.sum(), (adv_N**2).sum()
        entropy[role] = float(batch.entropy_N.double().sum())
    acted = whole.valid_TB.sum(0).reshape(environments.num, -1).sum(0)
    parts = {
        "counts": counts.ravel(),
        "steps": [whole.rewards_TB.size // environments.num_agents],
        "adv": adv.ravel(),
        "entropy": entropy,
        "acted": acted if environments.num_agents > 1 else [],
    }
    if policies.config.policy.normalize_observations:
        for role, learner, rows in zip(own, learners, found, strict=True):
            parts[f"obs{role}"] = learner.normalizer.sums(read(learner.head, rows.obs_TBO[rows.valid_TB]))
            if central and rows.states_TES is not None:
                seen = critic_inputs(rows.states_TES, rows.valid_TB.shape[1])
                parts[f"states{role}"] = learner.state_normalizer.sums(seen[rows.valid_TB])
        for role, (architecture, _) in enumerate(policies.architectures):
            parts.setdefault(f"obs{role}", np.zeros(2 * architecture.num_inputs))  # another rank's
            if central and (num := num_states(environments, environments.roles[role])):
                parts.setdefault(f"states{role}", np.zeros(2 * num))
    return dict(sorted(parts.items()))


def _merge(policies: Policies, total: dict[str, np.ndarray], counts_K: np.ndarray) -> None:
    """Let the normalisers take in what all ranks saw."""
    for role, learner, count in zip(policies.local_roles, policies.policy_gradient, counts_K.tolist(), strict=True):
        if f"obs{role}" in total and count:
            learner.normalizer.merge(count, total[f"obs{role}"])
        if f"states{role}" in total and count:
            learner.state_normalizer.merge(count, total[f"states{role}"])


def _metrics(
    policies: Policies, total: dict[str, np.ndarray], means_K: np.ndarray, norms: Sequence[float]
) -> dict[str, Any]:
    """Means over all policies' samples; with several policies those of each, too."""
    count_K = total["counts"].reshape(len(policies.roles), -1).sum(1)
    rows_K = policies.gathered(np.column_stack([means_K, norms]))
    names = (*STATISTICS, "gradient_norm")
    weight_K = count_K / count_K.sum()
    if len(policies.roles) == 1:
        whole: dict[str, Any] = {name: float(x) for name, x in zip(names, rows_K[0], strict=True)}
    else:
        whole = {name: float(x) for name, x in zip(names, weight_K @ rows_K, strict=True)}
        whole["policies"] = {
            name: {key: float(x) for key, x in zip(names, row, strict=True)}
            for name, row in zip(policies.names, rows_K, strict=True)
        }
    return {**whole, "acting_entropy": float(total["entropy"].sum() / count_K.sum())}
