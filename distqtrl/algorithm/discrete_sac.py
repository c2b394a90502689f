"""Soft actor-critic for discrete actions (Christodoulou, arXiv 1910.07207): expectations over actions are sums.

Critics say a value for every action, so nothing is drawn, and no gradient goes through an action. The temperature keeps
the entropy at a part of that of the uniform distribution, log A.
"""

import torch
from torch import Tensor

from distqtrl.algorithm import sac


class Critics(sac.Critics):
    """Two Q networks side by side, which say a value for every action; otherwise those of ``sac``."""

    def forward(self, obs_NO: Tensor, batch: bool = False) -> Tensor:  # type: ignore[override]
        """Both networks' values (2, N, A). batch: as of ``sac.Critics``."""
        return self.values(obs_NO, batch)


def of_actions(values_2NA: Tensor, actions_N: Tensor) -> Tensor:
    """The values of these actions (2, N)."""
    return values_2NA.gather(-1, actions_N.expand(2, -1)[..., None])[..., 0]


def policy(logits_NA: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the actions, and their logarithms."""
    log_p_NA = torch.log_softmax(logits_NA, dim=-1)
    return log_p_NA.exp(), log_p_NA


def entropy(p_NA: Tensor, log_p_NA: Tensor) -> Tensor:
    """The entropy of every row (N,).

    >>> entropy(*policy(torch.zeros(1, 4))) / torch.tensor(4.0).log()
    tensor([1.])
    """
    return -(p_NA * log_p_NA).sum(-1)


def targets(
    rewards_N: Tensor,
    terminated_N: Tensor,
    next_q_2NA: Tensor,
    next_logits_NA: Tensor,
    *,
    temperature: float,
    gamma: float,
) -> Tensor:
    """r + gamma sum_a pi'(a) (min Q'(a) - temperature log pi'(a)) where the episode did not terminate."""
    p_NA, log_p_NA = policy(next_logits_NA)
    next_value_N = (p_NA * next_q_2NA.min(0).values).sum(-1) + temperature * entropy(p_NA, log_p_NA)
    return rewards_N + torch.where(terminated_N, 0.0, gamma * next_value_N)


def policy_loss(logits_NA: Tensor, q_2NA: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """sum_a pi(a) (temperature log pi(a) - min Q(a)) of every row, and its entropy, both (N,)."""
    p_NA, log_p_NA = policy(logits_NA)
    entropy_N = entropy(p_NA, log_p_NA)
    return -temperature * entropy_N - (p_NA * q_2NA.min(0).values).sum(-1), entropy_N
