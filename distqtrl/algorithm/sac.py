"""Soft actor-critic (Haarnoja et al., arXiv 1812.05905): twin critics, a squashed Gaussian, a learned temperature.

Actions live in (-1, 1), whatever the environment's bounds are, and so do entropies and their target (-A).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0


class Critics(nn.Module):
    """Two Q networks side by side: (N, O), (N, A) -> (2, N); ReLU between the layers."""

    def __init__(self, num_inputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = tuple(pairwise((num_inputs, *hidden, 1)))
        self.weights = nn.ParameterList(_uniform(2, o, i, fan_in=i) for i, o in widths)
        self.biases = nn.ParameterList(_uniform(2, 1, o, fan_in=i) for i, o in widths)

    def forward(self, obs_NO: Tensor, actions_NA: Tensor) -> Tensor:
        """Both networks' values (2, N)."""
        x = torch.cat([obs_NO, actions_NA], -1).expand(2, -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight.mT)
            if k < last:
                x = torch.relu(x)
        return x.squeeze(-1)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn as in torch.nn.Linear: uniform in +-1/sqrt(fan_in)."""
    return nn.Parameter((torch.rand(shape) * 2 - 1) / fan_in**0.5)


def log_deviation(x_NA: Tensor) -> Tensor:
    """A network's output as a log deviation between LOG_STD_LOW and LOG_STD_HIGH."""
    return LOG_STD_LOW + 0.5 * (LOG_STD_HIGH - LOG_STD_LOW) * (torch.tanh(x_NA) + 1)


def targets(
    rewards_N: Tensor,
    terminated_N: Tensor,
    next_q_2N: Tensor,
    next_log_prob_N: Tensor,
    temperature: float,
    gamma: float,
) -> Tensor:
    """r + gamma (min Q' - temperature log pi') where the episode did not terminate; a truncated one goes on."""
    next_value_N = next_q_2N.min(0).values - temperature * next_log_prob_N
    return rewards_N + gamma * ~terminated_N * next_value_N
