"""Rollouts: T steps, or one whole episode, of every environment under one frozen policy.

The policy is a function handed in, so nothing here knows where its weights come from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distqtrl.config import UserError
from distqtrl.environment.vector import Environments

Act = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Noise = Callable[[int], np.ndarray]
Array = npt.NDArray[np.float64]
BLOCK = 64  # steps of noise drawn at a time


@dataclass
class Rollout:
    """Samples in time order. ``next_obs_TBO`` is what followed, final observations included.

    ``valid_TB`` is False for steps after an environment's episode, in rollouts of whole episodes.
    ``actions`` are the policy's own, (T, B) or (T, B, A), before they were scaled for the environment.
    """

    obs_TBO: npt.NDArray[np.float32]
    actions: np.ndarray
    rewards_TB: Array
    terminated_TB: npt.NDArray[np.bool_]
    truncated_TB: npt.NDArray[np.bool_]
    valid_TB: npt.NDArray[np.bool_]
    next_obs_TBO: npt.NDArray[np.float32]


def collect(environments: Environments, act: Act, noise: Noise, num_steps: int | None) -> Rollout:
    """num_steps steps of every environment, or (None) one whole episode of each.

    act(obs_BO, noise_B) gives the policy's actions and the environment's; noise(k) gives k steps of noise, (k, B, ...).
    """
    if num_steps is None:
        environments.restart()
    obs, actions, steps, valid = [], [], [], []
    running_B = np.ones(environments.num, dtype=np.bool_)
    block = noise(BLOCK)
    t = 0
    while t < num_steps if num_steps is not None else running_B.any():
        if t and t % BLOCK == 0:
            block = noise(BLOCK)
        obs.append(environments.obs_BO)
        valid.append(running_B)
        chosen, scaled = act(environments.obs_BO, block[t % BLOCK])
        step = environments.step(scaled, None if num_steps is not None else running_B)
        actions.append(chosen)
        steps.append(step)
        if num_steps is None:
            running_B = running_B & ~(step.terminated_B | step.truncated_B)
        t += 1
    rewards_TB, next_obs_TBO = np.array([s.rewards_B for s in steps]), np.array([s.obs_BO for s in steps])
    obs_TBO = np.array(obs)
    _check_finite(environments, obs_TBO, rewards_TB, next_obs_TBO)
    return Rollout(
        obs_TBO,
        np.array(actions),
        rewards_TB,
        np.array([s.terminated_B for s in steps]),
        np.array([s.truncated_B for s in steps]),
        np.array(valid),
        next_obs_TBO,
    )


def _check_finite(
    environments: Environments, obs_TBO: np.ndarray, rewards_TB: Array, next_obs_TBO: npt.NDArray[np.float32]
) -> None:
    """Raise UserError for the first reward or observation that is not a finite number."""
    start_TB, end_TB = np.isfinite(obs_TBO).all(-1), np.isfinite(next_obs_TBO).all(-1)
    good_TB = start_TB & end_TB & np.isfinite(rewards_TB)
    if not good_TB.all():
        t, b = np.argwhere(~good_TB)[0].tolist()
        seen_O = (obs_TBO if not start_TB[t, b] else next_obs_TBO)[t, b]
        raise UserError(
            f"environment {environments.indices[b]}, step {t + 1} of a rollout: observation "
            f"{seen_O.tolist()} and reward {rewards_TB[t, b]} are not finite: mend the environment"
        )


def play(environments: Environments, act: Callable[[np.ndarray], np.ndarray]) -> tuple[Array, Array]:
    """Undiscounted return_B and length_B of one episode of every environment; act(obs_BO) is the action taken."""
    environments.restart()
    return_B, length_B = np.zeros(environments.num), np.zeros(environments.num)
    running_B = np.ones(environments.num, dtype=np.bool_)
    while running_B.any():
        step = environments.step(act(environments.obs_BO), running_B)
        return_B += step.rewards_B
        length_B += running_B
        running_B = running_B & ~(step.terminated_B | step.truncated_B)
    return return_B, length_B


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean, deviation, extremes and number of returns."""
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "episodes": len(returns),
    }
