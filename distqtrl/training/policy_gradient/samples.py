"""From a rollout to training samples."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distqtrl import seeding
from distqtrl.algorithm.advantage import advantages
from distqtrl.config.run import Config
from distqtrl.config.stages import Algorithm
from distqtrl.environment.rollout import Rollout, collect
from distqtrl.environment.vector import Environments
from distqtrl.training.player import Player
from distqtrl.training.policy_gradient.learner import PolicyGradient, Recipe, Samples


def rollout(config: Config, environments: Environments, update: int, players: Sequence[Player]) -> Rollout:
    """One update's rollout, every role of the environments played by its own."""
    a, roles = config.algorithm, range(len(players))
    streams = [
        [seeding.stream(config.train.seed, "action", number, update) for number in environments.numbers(role)]
        for role in roles
    ]

    def noise(steps: int) -> Any:
        drawn = [p.noise(own, steps) for p, own in zip(players, streams, strict=True)]
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


def samples(learner: PolicyGradient, rollout: Rollout, w_M: torch.Tensor) -> Samples:
    """The valid steps of a role's rollout as samples of its policy with these weights; advantages as they are."""
    with learner.profile("loss"), torch.no_grad():
        obs_TBO = learner.observed(rollout.obs_TBO)
        critic_TBO = obs_TBO if rollout.states_TES is None else _critic(learner, rollout, rollout.states_TES)
        values_TB, next_values_TB = _values(learner, rollout, critic_TBO)
        a = learner.config.algorithm
        lam = learner.recipe.gae_lambda
        ends = (rollout.terminated_TB, rollout.truncated_TB)
        adv_TB = torch.from_numpy(advantages(rollout.rewards_TB, values_TB, next_values_TB, *ends, a.gamma, lam))
        valid_TB = torch.from_numpy(rollout.valid_TB)
        raw_NO = torch.from_numpy(rollout.obs_TBO)[valid_TB]
        obs_NO, actions = obs_TBO[valid_TB], torch.from_numpy(rollout.actions)[valid_TB]
        outputs = learner.outputs(w_M, raw_NO, obs_NO)
        log_prob_N = learner.head.log_prob(outputs, actions, learner.log_std)
        returns_N = (adv_TB + torch.from_numpy(values_TB))[valid_TB].to(learner.dtype)
        return Samples(
            raw_NO=raw_NO,
            obs_NO=obs_NO,
            critic_NO=critic_TBO[valid_TB],
            actions=actions,
            old_log_prob_N=log_prob_N,
            adv_N=adv_TB[valid_TB],
            returns_N=returns_N,
            entropy_N=learner.head.entropy(outputs, learner.log_std),
        )


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


def _critic(learner: PolicyGradient, rollout: Rollout, states_TES: np.ndarray) -> torch.Tensor:
    seen = learner.state_normalizer.apply(critic_inputs(states_TES, rollout.valid_TB.shape[1]))
    return torch.from_numpy(seen).to(learner.dtype)


def normalise(samples: Samples, count: float, sums: np.ndarray, a: Algorithm) -> None:
    """Advantages to zero mean and unit deviation over all ranks' samples, in the networks' precision."""
    if a.normalize_advantages and a.normalize_over == "update" and count:
        adv_sum, squares = sums
        deviation = max(squares / count - (adv_sum / count) ** 2, 0.0) ** 0.5
        samples.adv_N = (samples.adv_N - adv_sum / count) / (deviation + a.normalize_epsilon)
    samples.adv_N = samples.adv_N.to(samples.returns_N.dtype)


def minibatches(
    recipe: Recipe, seed: int, rows: list[int], valid_TB: npt.NDArray[np.bool_], update: int
) -> Iterator[list[torch.Tensor]]:
    """For every epoch, the sample numbers (into the flattened valid samples) of each minibatch.

    rows: the global numbers of the B rows, each an environment or one of its agents. Every row's steps are dealt out by
    a stream of its own, so the union over ranks does not depend on how environments are spread over ranks.
    """
    number_TB = np.cumsum(valid_TB.ravel()).reshape(valid_TB.shape) - 1
    columns = [number_TB[valid_TB[:, b], b] for b in range(valid_TB.shape[1])]
    for epoch in range(recipe.epochs):
        if recipe.minibatches == 1:
            yield [torch.arange(int(valid_TB.sum()))]
            continue
        dealt: list[list[np.ndarray]] = [[] for _ in range(recipe.minibatches)]
        for index, column in zip(rows, columns, strict=True):
            rng = seeding.stream(seed, "minibatch", index, update, epoch)
            for part, numbers in zip(dealt, np.array_split(rng.permutation(column), recipe.minibatches), strict=True):
                part.append(numbers)
        yield [torch.from_numpy(np.concatenate(part)) for part in dealt]


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


def _values(learner: PolicyGradient, rollout: Rollout, critic_TBO: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
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
