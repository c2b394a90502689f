"""Soft actor-critic for discrete actions (Christodoulou, arXiv 1910.07207): expectations over actions are sums.

Critics say a value for every action, so nothing is drawn, and no gradient goes through an action. The temperature keeps
the entropy at a part of that of the uniform distribution, log A.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn


class Critics(nn.Module):
    """Two Q networks side by side, which say a value for every action: (N, O) -> (2, N, A); ReLU between the layers."""

    def __init__(self, num_inputs: int, hidden: tuple[int, ...], num_actions: int) -> None:
        super().__init__()
        widths = tuple(pairwise((num_inputs, *hidden, num_actions)))
        self.weights = nn.ParameterList(_uniform(2, o, i, fan_in=i) for i, o in widths)
        self.biases = nn.ParameterList(_uniform(2, 1, o, fan_in=i) for i, o in widths)

    def forward(self, obs_NO: Tensor) -> Tensor:
        """Both networks' values (2, N, A)."""
        x = obs_NO.expand(2, -1, -1)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, torch.relu(x) if k else x, weight.mT)
        return x


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn as in torch.nn.Linear: uniform in +-1/sqrt(fan_in)."""
    return nn.Parameter((torch.rand(shape) * 2 - 1) / fan_in**0.5)


def of_actions(values_2NA: Tensor, actions_N: Tensor) -> Tensor:
    """The values of these actions (2, N)."""
    return values_2NA.gather(-1, actions_N.expand(2, -1)[..., None])[..., 0]


def policy(logits_NA: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the actions, and their logarithms."""
    log_p_NA = torch.log_softmax(logits_NA, dim=-1)
    return log_p_NA.exp(), log_p_NA


def entropy(p_NA: Tensor, log_p_NA: Tensor) -> Tensor:
    """Entropy of every row (N,).

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
