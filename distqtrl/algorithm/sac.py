"""Soft actor-critic (Haarnoja et al., arXiv 1812.05905): twin critics, a squashed Gaussian, a learned temperature.

Actions live in (-1, 1), whatever the environment's bounds are, and so do entropies and their target (-A).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Critics(nn.Module):
    """Two Q networks side by side: (N, O), (N, A) -> (2, N); ReLU between the layers."""

    def __init__(self, num_inputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = tuple(pairwise((num_inputs, *hidden, 1)))
        self.weights = nn.ParameterList(_uniform(2, o, i, fan_in=i) for i, o in widths)
        self.biases = nn.ParameterList(_uniform(2, 1, o, fan_in=i) for i, o in widths)

    def forward(self, obs_NO: Tensor, actions_NA: Tensor) -> Tensor:
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


def squashed(mean_NA: Tensor, log_std_NA: Tensor, noise_NA: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised actions tanh(mean + std * noise) in (-1, 1), and their log densities (N,).

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)) does not overflow.
    """
    u_NA = mean_NA + log_std_NA.exp() * noise_NA
    correction_NA = 2 * (math.log(2) - u_NA - functional.softplus(-2 * u_NA))
    log_prob_NA = -0.5 * noise_NA**2 - log_std_NA - HALF_LOG_2PI - correction_NA
    return torch.tanh(u_NA), log_prob_NA.sum(-1)


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
