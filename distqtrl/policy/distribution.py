"""Heads: what the network's outputs mean, and how an action is drawn from them.

Noise comes from outside (streams keyed by environment), so a head is deterministic: sample(outputs, noise, std).
Acting (sample, greedy) is NumPy, which takes a few microseconds for one environment; what the loss needs is torch.
Continuous actions live in units of half the range around its middle; ``to_environment`` saturates and scales.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

Array = npt.NDArray[np.floating]
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LARGEST = float(np.finfo(np.float32).max)
Bounds = Annotated[  # what a policy file may say
    tuple[Annotated[float, Field(ge=-LARGEST, le=LARGEST)], ...], Field(min_length=1)
]


@dataclass(frozen=True)
class Categorical:
    """One of num_actions actions; outputs are logits. Actions are int64 (B,)."""

    num_actions: Annotated[int, Field(ge=1, lt=2**31)]
    start: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0

    @property
    def num_outputs(self) -> int:
        return self.num_actions

    def noise(self, rng: np.random.Generator, steps: int) -> npt.NDArray[np.float64]:
        """Uniform numbers (steps,)."""
        return rng.random(steps)

    def sample(self, logits_BA: Array, noise_B: Array, std: Array) -> npt.NDArray[np.int64]:
        """Inverse of the cumulative distribution at the noise."""
        cumulative_BA = np.exp(logits_BA - logits_BA.max(-1, keepdims=True)).cumsum(-1)
        below_BA = cumulative_BA[:, :-1] < noise_B[:, np.newaxis] * cumulative_BA[:, -1:]
        return below_BA.sum(-1)

    def log_prob(self, logits_BA: Tensor, actions_B: Tensor, log_std: Tensor) -> Tensor:
        return torch.log_softmax(logits_BA, dim=-1).gather(-1, actions_B.unsqueeze(-1)).squeeze(-1)

    def entropy(self, logits_BA: Tensor, log_std: Tensor) -> Tensor:
        log_p_BA = torch.log_softmax(logits_BA, dim=-1)
        return -(log_p_BA.exp() * log_p_BA).sum(-1)

    def greedy(self, logits_BA: Array) -> npt.NDArray[np.int64]:
        return logits_BA.argmax(-1)

    def to_environment(self, actions_B: np.ndarray) -> np.ndarray:
        return actions_B + self.start if self.start else actions_B


@dataclass(frozen=True)
class Bounded:
    """What heads of continuous actions share: low and high bound the environment's action (finite)."""

    low: Bounds
    high: Bounds

    @property
    def num_outputs(self) -> int:
        return len(self.low)

    def noise(self, rng: np.random.Generator, steps: int) -> npt.NDArray[np.float64]:
        """Standard normal numbers (steps, A)."""
        return rng.standard_normal((steps, len(self.low)))

    def to_environment(self, actions_BA: np.ndarray) -> np.ndarray:
        """Saturate to [-1, 1], then scale to [low, high]."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return (low + (np.clip(actions_BA, -1, 1) + 1) / 2 * (high - low)).astype(np.float32)


@dataclass(frozen=True)
class Gaussian(Bounded):
    """Independent normal actions; outputs are means."""

    def sample(self, mean_BA: Array, noise_BA: Array, std_A: Array) -> Array:
        return mean_BA + std_A * noise_BA

    def log_prob(self, mean_BA: Tensor, actions_BA: Tensor, log_std_A: Tensor) -> Tensor:
        return _normal_log_prob(mean_BA, actions_BA, log_std_A)

    def entropy(self, mean_BA: Tensor, log_std_A: Tensor) -> Tensor:
        return (log_std_A + 0.5 + HALF_LOG_2PI).sum(-1).expand(mean_BA.shape[:-1])

    def greedy(self, mean_BA: Array) -> Array:
        return mean_BA


@dataclass(frozen=True)
class SquashedGaussian(Bounded):
    """tanh of independent normal numbers (SAC, arXiv 1801.01290); outputs are means before tanh, std (A,) or (B, A)."""

    def sample(self, mean_BA: Array, noise_BA: Array, std: Array) -> Array:
        out: Array = np.tanh(mean_BA + std * noise_BA)
        return out

    def log_prob(self, mean_BA: Tensor, actions_BA: Tensor, log_std: Tensor) -> Tensor:
        """Of actions in (-1, 1), those at the very ends taken for the nearest inside; log_std (A,) or (B, A)."""
        end = 1 - torch.finfo(actions_BA.dtype).eps
        u_BA = torch.atanh(actions_BA.clamp(-end, end))
        # log(1 - tanh(u)**2) without cancellation
        slope_BA = 2 * (math.log(2) - u_BA - torch.nn.functional.softplus(-2 * u_BA))
        return _normal_log_prob(mean_BA, u_BA, log_std) - slope_BA.sum(-1)

    def entropy(self, mean_BA: Tensor, log_std: Tensor) -> Tensor:
        raise NotImplementedError("a squashed normal distribution's entropy has no closed form: average -log_prob")

    def greedy(self, mean_BA: Array) -> Array:
        out: Array = np.tanh(mean_BA)
        return out


def _normal_log_prob(mean_BA: Tensor, x_BA: Tensor, log_std: Tensor) -> Tensor:
    z_BA = (x_BA - mean_BA) * torch.exp(-log_std)
    return (-0.5 * z_BA**2 - log_std - HALF_LOG_2PI).sum(-1)


Head = Categorical | Gaussian | SquashedGaussian
