"""Generalised advantages (Schulman et al., arXiv 1506.02438), with termination and truncation told apart.

    delta_t = r_t + gamma V(s_{t+1}) [not terminated] - V(s_t)
    A_t     = delta_t + gamma lambda A_{t+1} [episode goes on]

A truncated episode, and the rollout's last step, are bootstrapped with V of the observation that followed;
a terminated one is not.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def advantages(
    rewards_TB: Array,
    values_TB: Array,
    next_values_TB: Array,
    terminated_TB: Flags,
    truncated_TB: Flags,
    gamma: float,
    lam: float,
) -> Array:
    """A_TB. lam = 1 with values 0 gives discounted returns-to-go.

    >>> one = np.ones((2, 1)); no = np.zeros((2, 1), dtype=bool); end = np.array([[False], [True]])
    >>> advantages(one, 0 * one, 0 * one, end, no, gamma=0.5, lam=1.0).ravel().tolist()
    [1.5, 1.0]
    """
    delta_TB = rewards_TB + gamma * next_values_TB * ~terminated_TB - values_TB
    goes_on_TB = ~(terminated_TB | truncated_TB)
    adv_TB, following_B = np.empty_like(delta_TB), np.zeros(delta_TB.shape[1])
    for t in range(len(delta_TB) - 1, -1, -1):
        following_B = delta_TB[t] + gamma * lam * goes_on_TB[t] * following_B
        adv_TB[t] = following_B
    return adv_TB
