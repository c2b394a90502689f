"""From a replica and its environments to training samples, and to greedy returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distqtrl import seeding
from distqtrl.algorithm.advantage import advantages
from distqtrl.allreduce.communicator import Communicator, allgather_bytes
from distqtrl.config import Algorithm, Config
from distqtrl.environment.rollout import Rollout, collect, evaluation
from distqtrl.environment.vector import Environments
from distqtrl.learner import STATISTICS, Learner, Samples, minibatches, step
from distqtrl.policy.distribution import read
from distqtrl.policy.policy_file import Policy
from distqtrl.roles import num_states
from distqtrl.team import Player, Team

Totals = Callable[[dict[str, object]], dict[str, np.ndarray]]


def rollout(config: Config, environments: Environments, update: int, players: Sequence[Player]) -> Rollout:
    """One update's rollout, every role of the environments played by its own."""
    a, roles = config.algorithm, range(len(players))
    streams = [
        [seeding.stream(config.train.seed, "action", number, update) for number in environments.numbers(role)]
        for role in roles
    ]

    def noise(steps: int) -> Any:
        drawn = [
            np.stack([p.head.noise(s, steps) for s in own], axis=1) for p, own in zip(players, streams, strict=True)
        ]
        return drawn[0] if len(drawn) == 1 else list(zip(*drawn, strict=True))

    steps = a.rollout_steps if a.rollout == "steps" else None
    if len(players) == 1 and environments.obs_BO.shape[1] == environments.widths[0]:
        return collect(environments, players[0].act, noise, steps)

    def act(obs_BO: np.ndarray, block: Any) -> tuple[np.ndarray, np.ndarray]:
        drawn = block if len(players) > 1 else [block]
        parts = [
            p.act(obs_BO[rows, :width], noise_B)
            for p, rows, width, noise_B in zip(players, environments.rows, environments.widths, drawn, strict=True)
        ]
        chosen, scaled = zip(*parts, strict=True)
        return environments.merged(chosen), environments.merged(scaled)

    return collect(environments, act, noise, steps)


def samples(learner: Learner, rollout: Rollout, w_M: torch.Tensor) -> Samples:
    """The valid steps of a role's rollout as samples of its policy with these weights; advantages as they are."""
    with learner.profile("loss"), torch.no_grad():
        obs_TBO = learner.observed(rollout.obs_TBO)
        critic_TBO = obs_TBO if rollout.states_TES is None else _critic(learner, rollout, rollout.states_TES)
        values_TB, next_values_TB = _values(learner, rollout, critic_TBO)
        a = learner.config.algorithm
        lam = a.gae_lambda if a.name == "ppo" else 1.0
        ends = (rollout.terminated_TB, rollout.truncated_TB)
        adv_TB = torch.from_numpy(advantages(rollout.rewards_TB, values_TB, next_values_TB, *ends, a.gamma, lam))
        valid_TB = torch.from_numpy(rollout.valid_TB)
        raw_NO = torch.from_numpy(rollout.obs_TBO)[valid_TB]
        obs_NO, actions = obs_TBO[valid_TB], torch.from_numpy(rollout.actions)[valid_TB]
        outputs = learner.outputs(w_M, raw_NO, obs_NO)
        log_prob_N = learner.head.log_prob(outputs, actions, learner.log_std)
        returns_N = (adv_TB + torch.from_numpy(values_TB))[valid_TB].to(learner.dtype)
        entropy_N = learner.head.entropy(outputs, learner.log_std)
        critic_NO = critic_TBO[valid_TB]
        return Samples(raw_NO, obs_NO, critic_NO, actions, log_prob_N, adv_TB[valid_TB], returns_N, entropy_N)


def team_rewards(rewards_TB: np.ndarray, num_agents: int) -> np.ndarray:
    """Every agent's reward replaced by the mean over the agents of its environment.

    >>> team_rewards(np.array([[1.0, -2.0, 0.0, 0.0]]), 2)
    array([[-0.5, -0.5,  0. ,  0. ]])
    """
    mean_TE = rewards_TB.reshape(len(rewards_TB), -1, num_agents).mean(-1)
    return np.repeat(mean_TE, num_agents, axis=1)


def critic_inputs(states_TES: np.ndarray, num_rows: int) -> np.ndarray:
    """What a centralised critic sees (T, B, S): a row's environment's state, and which of several agents it is."""
    num = num_rows // states_TES.shape[1]
    out = np.repeat(states_TES, num, axis=1)
    if num == 1:
        return out
    which = np.broadcast_to(np.tile(np.eye(num, dtype=np.float32), (states_TES.shape[1], 1)), (*out.shape[:2], num))
    return np.concatenate([out, which], axis=-1)


def _critic(learner: Learner, rollout: Rollout, states_TES: np.ndarray) -> torch.Tensor:
    seen = learner.state_normalizer.apply(critic_inputs(states_TES, rollout.valid_TB.shape[1]))
    return torch.from_numpy(seen).to(learner.dtype)


def update(team: Team, environments: Environments, number: int, totals: Totals) -> dict[str, Any]:
    """One update, the number-th: a rollout and the optimizer steps on it; returns metrics.

    ``totals`` sums named parts over the ranks, together with what the loop itself asks for.
    """
    config, held, learners = team.config, team.held, team.policy_gradient
    acting = [learner.acting_weights(number) for learner in learners]
    players = team.players(acting)
    with team.profile("rollout"):
        whole = rollout(config, environments, number, players)
    if config.agents.reward == "team":
        whole.rewards_TB = team_rewards(whole.rewards_TB, environments.num_agents)
    found = [
        whole.of(environments.rows[role], environments.widths[role], r.head.unpadded)
        for role, r in zip(held, learners, strict=True)
    ]
    batches = [samples(r, own, w_M) for r, own, w_M in zip(learners, found, acting, strict=True)]
    if config.algorithm.normalize_advantages and config.algorithm.normalize_over == "episode":
        for batch, own in zip(batches, found, strict=True):
            normalise_episodes(batch, own, config.algorithm.normalize_epsilon)
    dealt = [
        list(minibatches(config, environments.numbers(role), own.valid_TB, number))
        for role, own in zip(held, found, strict=True)
    ]
    total = totals(_parts(team, environments, whole, found, batches, dealt))
    counts_KP = total["counts"].reshape(len(team.roles), -1)[held]
    for batch, count, adv in zip(batches, counts_KP.sum(1), total["adv"].reshape(-1, 2)[held], strict=True):
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
    _merge(team, total, counts_KP.sum(1))
    return _metrics(team, total, sums / max(steps, 1), norms)


def _parts(
    team: Team,
    environments: Environments,
    whole: Rollout,
    found: Sequence[Rollout],
    batches: Sequence[Samples],
    dealt: Sequence[list[list[torch.Tensor]]],
) -> dict[str, Any]:
    """What the ranks sum of a rollout; of every policy its own place, empty on ranks that do not learn it."""
    a, own, learners = team.config.algorithm, team.held, team.policy_gradient
    num_parts = len(dealt[0][0])
    counts, adv = np.zeros((len(team.roles), num_parts)), np.zeros((len(team.roles), 2))
    entropy, central = np.zeros(len(team.roles)), a.uses_values
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
    if team.config.policy.normalize_observations:
        for role, learner, rows in zip(own, learners, found, strict=True):
            parts[f"obs{role}"] = learner.normalizer.sums(read(learner.head, rows.obs_TBO[rows.valid_TB]))
            if central and rows.states_TES is not None:
                seen = critic_inputs(rows.states_TES, rows.valid_TB.shape[1])
                parts[f"states{role}"] = learner.state_normalizer.sums(seen[rows.valid_TB])
        for role, (architecture, _) in enumerate(team.fits):
            parts.setdefault(f"obs{role}", np.zeros(2 * architecture.num_inputs))  # another rank's
            if central and (num := num_states(environments, environments.roles[role])):
                parts.setdefault(f"states{role}", np.zeros(2 * num))
    return dict(sorted(parts.items()))


def _merge(team: Team, total: dict[str, np.ndarray], counts_K: np.ndarray) -> None:
    """Let the normalisers take in what all ranks saw."""
    for role, learner, count in zip(team.held, team.policy_gradient, counts_K.tolist(), strict=True):
        if f"obs{role}" in total and count:
            learner.normalizer.merge(count, total[f"obs{role}"])
        if f"states{role}" in total and count:
            learner.state_normalizer.merge(count, total[f"states{role}"])


def _metrics(team: Team, total: dict[str, np.ndarray], means_K: np.ndarray, norms: Sequence[float]) -> dict[str, Any]:
    """Means over all policies' samples; with several policies those of each, too."""
    count_K = total["counts"].reshape(len(team.roles), -1).sum(1)
    rows_K = team.gathered(np.column_stack([means_K, norms]))
    names = (*STATISTICS, "gradient_norm")
    weight_K = count_K / count_K.sum()
    if len(team.roles) == 1:
        whole: dict[str, Any] = {name: float(x) for name, x in zip(names, rows_K[0], strict=True)}
    else:
        whole = {name: float(x) for name, x in zip(names, weight_K @ rows_K, strict=True)}
        whole["policies"] = {
            name: {key: float(x) for key, x in zip(names, row, strict=True)}
            for name, row in zip(team.names, rows_K, strict=True)
        }
    return {**whole, "acting_entropy": float(total["entropy"].sum() / count_K.sum())}


def _normalise(samples: Samples, count: float, sums: np.ndarray, a: Algorithm) -> None:
    """Advantages to zero mean and unit deviation over all ranks' samples, in the networks' precision."""
    if a.normalize_advantages and a.normalize_over == "update" and count:
        adv_sum, squares = sums
        deviation = max(squares / count - (adv_sum / count) ** 2, 0.0) ** 0.5
        samples.adv_N = (samples.adv_N - adv_sum / count) / (deviation + a.normalize_epsilon)
    samples.adv_N = samples.adv_N.to(samples.returns_N.dtype)


def normalise_episodes(samples: Samples, rollout: Rollout, epsilon: float) -> None:
    """Advantages to zero mean and unit deviation in every episode by itself: (A - mean) / (std + epsilon).

    The deviation divides by n - 1, as the code of arXiv 2407.06103 does; an episode of one step gets 0.
    """
    adv_TB = np.zeros(rollout.valid_TB.shape)
    adv_TB[rollout.valid_TB] = samples.adv_N.numpy()
    for b, valid_T in enumerate(rollout.valid_TB.T):
        adv_T = adv_TB[valid_T, b]
        deviation = adv_T.std(ddof=1) if len(adv_T) > 1 else 0.0
        adv_TB[valid_T, b] = (adv_T - adv_T.mean()) / (deviation + epsilon)
    samples.adv_N = torch.from_numpy(adv_TB[rollout.valid_TB])


def _values(learner: Learner, rollout: Rollout, critic_TBO: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """V of what the critic sees and of what followed; zeros without a baseline."""
    if learner.value is None:
        return np.zeros_like(rollout.rewards_TB), np.zeros_like(rollout.rewards_TB)
    values_TB = learner.values(critic_TBO).double().numpy()
    next_values_TB = np.roll(values_TB, -1, axis=0)
    cut_TB = rollout.truncated_TB.copy()  # what followed is not the next row
    cut_TB[-1] = True
    if rollout.next_states_TES is None:
        following = learner.observed(rollout.next_obs_TBO[cut_TB])
    else:
        following = _critic(learner, rollout, rollout.next_states_TES)[torch.from_numpy(cut_TB)]
    next_values_TB[cut_TB] = learner.values(following).double().numpy()
    return values_TB, next_values_TB


@dataclass
class Greedy:
    """Returns of greedy episodes (means over agents), the agents' (G, num), all steps, and how many were cut."""

    returns: np.ndarray
    returns_GE: np.ndarray
    steps: int
    cut: int


def greedy_episodes(
    config: Config, comm: Communicator, policies: Sequence[Policy], purpose: str, episode: int, num: int
) -> Greedy:
    """num greedy episodes in environments of their own, spread over the ranks; cut where the policies' origin says."""
    acts, played_by = [policy.act for policy in policies], [policy.agents for policy in policies]
    indices, most = range(comm.rank, num, comm.size), policies[0].origin.get("max_steps")
    own = evaluation(config.environment, indices, 0, purpose, acts, played_by, episode, most)
    played = np.concatenate([own.returns_EG.T, own.length_E[np.newaxis], own.cut_E[np.newaxis]])
    gathered = np.empty((len(played), num))
    for rank, part in enumerate(allgather_bytes(comm, played.tobytes())):
        gathered[:, rank :: comm.size] = np.frombuffer(part).reshape(len(played), -1)
    return Greedy(gathered[:-2].mean(0), gathered[:-2], int(gathered[-2].sum()), int(gathered[-1].sum()))
