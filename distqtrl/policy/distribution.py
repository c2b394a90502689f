"""Heads: what the network's outputs mean, and how an action is drawn from them.

Noise comes from outside (streams keyed by environment), so a head is deterministic: sample(outputs, noise, std).
Acting (sample, greedy) is NumPy, which takes a few microseconds for one environment; what the loss needs is torch.
Continuous actions live in units of half the range around its middle; ``to_environment`` saturates and scales.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

Array = npt.NDArray[np.floating]
Rows = TypeVar("Rows", np.ndarray, Tensor)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LEAST_NOISE = 1e-30  # a uniform number of 0 would choose the first action, of whatever probability
LARGEST = float(np.finfo(np.float32).max)
Bounds = Annotated[  # what a policy file may say
    tuple[Annotated[float, Field(ge=-LARGEST, le=LARGEST)], ...], Field(min_length=1)
]
Choices = Annotated[int, Field(ge=1, lt=2**31)]
First = Annotated[int, Field(ge=-(2**31), lt=2**31)]


@dataclass(frozen=True)
class Categorical:
    """One of num_actions actions; outputs are logits. Actions are int64 (B,).

    masked: a row of observations ends in num_actions numbers, and where one is 0 that action has probability 0.
    """

    num_actions: Choices
    start: First = 0
    masked: bool = False

    @property
    def num_outputs(self) -> int:
        """How many outputs of the network the head reads."""
        return self.num_actions

    def noise(self, rng: np.random.Generator, steps: int) -> npt.NDArray[np.float64]:
        """Uniform numbers (steps,)."""
        return np.maximum(rng.random(steps), LEAST_NOISE)

    def sample(self, logits_BA: Array, noise_B: Array, std: Array) -> npt.NDArray[np.int64]:
        """Inverse of the cumulative distribution at the noise."""
        x_BA = logits_BA - np.maximum.reduce(logits_BA, axis=-1, keepdims=True)
        cumulative_BA = np.exp(x_BA, out=x_BA).cumsum(-1)
        below_BA = cumulative_BA[..., :-1] < noise_B[..., np.newaxis] * cumulative_BA[..., -1:]
        chosen_B: npt.NDArray[np.int64] = np.add.reduce(below_BA, axis=-1, dtype=np.int64)
        return chosen_B

    def log_prob(self, logits_BA: Tensor, actions_B: Tensor, log_std: Tensor) -> Tensor:
        """Log probabilities, or densities, of actions (B,)."""
        return torch.log_softmax(logits_BA, dim=-1).gather(-1, actions_B.unsqueeze(-1)).squeeze(-1)

    def entropy(self, logits_BA: Tensor, log_std: Tensor) -> Tensor:
        """Entropies of the distributions (B,)."""
        log_p_BA = torch.log_softmax(logits_BA, dim=-1)
        return -(log_p_BA.exp() * log_p_BA).sum(-1)

    def greedy(self, logits_BA: Array) -> npt.NDArray[np.int64]:
        """The most probable actions, or the means."""
        return logits_BA.argmax(-1)

    def to_environment(self, actions_B: np.ndarray) -> np.ndarray:
        """The policy's actions as the environment's."""
        return actions_B + self.start if self.start else actions_B

    def unpadded(self, actions: np.ndarray) -> np.ndarray:
        """This head's actions out of an array (..., B, A) that also holds wider ones of other heads."""
        return actions[..., 0].astype(np.int64)


@dataclass(frozen=True)
class Factored:
    """Several independent choices at once: factor f's is one of sizes[f] actions, counted from starts[f] on.

    Outputs are the factors' logits, one factor's after the other's; actions are int64 (B, F), probabilities products.
    masked: as in ``Categorical``, with a number for every logit.
    """

    sizes: Annotated[tuple[Choices, ...], Field(min_length=1)]
    starts: Annotated[tuple[First, ...], Field(min_length=1)]
    masked: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(self.starts) != len(self.sizes):
            raise ValueError(f"factors of {self.sizes} choices, counted from {self.starts}")

    @property
    def num_outputs(self) -> int:
        return sum(self.sizes)

    def noise(self, rng: np.random.Generator, steps: int) -> npt.NDArray[np.float64]:
        """Uniform numbers (steps, F)."""
        return np.maximum(rng.random((steps, len(self.sizes))), LEAST_NOISE)

    def sample(self, logits_BA: Array, noise_BF: Array, std: Array) -> npt.NDArray[np.int64]:
        return self._choice.sample(self._each(logits_BA), noise_BF, std)

    def log_prob(self, logits_BA: Tensor, actions_BF: Tensor, log_std: Tensor) -> Tensor:
        return self._choice.log_prob(self._each_of(logits_BA), actions_BF, log_std).sum(-1)

    def entropy(self, logits_BA: Tensor, log_std: Tensor) -> Tensor:
        return self._choice.entropy(self._each_of(logits_BA), log_std).sum(-1)

    def greedy(self, logits_BA: Array) -> npt.NDArray[np.int64]:
        return self._choice.greedy(self._each(logits_BA))

    def to_environment(self, actions_BF: np.ndarray) -> np.ndarray:
        return actions_BF + np.array(self.starts)

    def unpadded(self, actions: np.ndarray) -> np.ndarray:
        """This head's actions out of an array (..., B, A) that also holds wider ones of other heads."""
        return actions[..., : len(self.sizes)].astype(np.int64)

    def centred(self, weight_AK: Array, bias_A: Array) -> tuple[Array, Array]:
        """The last layer with every factor's mean taken out of its logits, of which only differences count."""
        cuts = np.cumsum(self.sizes)[:-1]
        weights, biases = (
            np.concatenate([part - part.mean(0) for part in np.split(x, cuts)]) for x in (weight_AK, bias_A)
        )
        return weights, biases

    @property
    def _choice(self) -> Categorical:
        return Categorical(max(self.sizes))

    @cached_property
    def _place_FC(self) -> npt.NDArray[np.int64]:
        """Positions (F, C) of every factor's logits; rows shorter than the longest are filled up with -1."""
        ends = np.cumsum(self.sizes).tolist()
        place_FC = np.full((len(self.sizes), max(self.sizes)), -1, dtype=np.int64)
        for row_C, end, size in zip(place_FC, ends, self.sizes, strict=True):
            row_C[:size] = np.arange(end - size, end)
        return place_FC

    def _each(self, logits_BA: Array) -> Array:
        """(B, A) -> (B, F, C); what fills up is as if it were masked."""
        return allowed(logits_BA[..., self._place_FC], self._place_FC >= 0)

    def _each_of(self, logits_BA: Tensor) -> Tensor:
        """``_each`` of a tensor."""
        place_FC = torch.from_numpy(self._place_FC)
        return allowed_of(logits_BA[..., place_FC], place_FC >= 0)


@dataclass(frozen=True)
class Bounded:
    """What heads of continuous actions share: low and high bound the environment's action (finite)."""

    low: Bounds
    high: Bounds
    masked: ClassVar[bool] = False

    @property
    def num_outputs(self) -> int:
        return len(self.low)

    def noise(self, rng: np.random.Generator, steps: int) -> npt.NDArray[np.float64]:
        """Standard normal numbers (steps, A)."""
        return rng.standard_normal((steps, len(self.low)))

    def unpadded(self, actions: np.ndarray) -> np.ndarray:
        """This head's actions out of an array (..., B, A) that also holds wider ones of other heads."""
        return actions[..., : len(self.low)].astype(np.float32)

    def to_environment(self, actions_BA: np.ndarray) -> np.ndarray:
        """Saturate to [-1, 1], then scale to [low, high]."""
        low, width = self._range
        return (low + (np.minimum(np.maximum(actions_BA, -1), 1) + 1) / 2 * width).astype(np.float32)

    @cached_property
    def _range(self) -> tuple[Array, Array]:
        low, high = np.asarray(self.low), np.asarray(self.high)
        return low, high - low


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
        """Log densities (B,) of actions in (-1, 1), those at the very ends moved inside; log_std (A,) or (B, A)."""
        end = 1 - torch.finfo(actions_BA.dtype).eps
        u_BA = torch.atanh(actions_BA.clamp(-end, end))
        return _normal_log_prob(mean_BA, u_BA, log_std) - _log_slope(u_BA).sum(-1)

    def entropy(self, mean_BA: Tensor, log_std: Tensor) -> Tensor:
        raise NotImplementedError("a squashed normal distribution's entropy has no closed form: average -log_prob")

    def greedy(self, mean_BA: Array) -> Array:
        out: Array = np.tanh(mean_BA)
        return out


def squashed(mean_BA: Tensor, log_std_BA: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(mean + std * noise) in (-1, 1) of a SquashedGaussian, and their log densities (B,).

    Both are differentiable in mean and log_std (reparameterised), as the loss of SAC's policy needs them.
    """
    u_BA = mean_BA + log_std_BA.exp() * noise_BA
    log_prob_BA = -0.5 * noise_BA**2 - log_std_BA - HALF_LOG_2PI - _log_slope(u_BA)
    return torch.tanh(u_BA), log_prob_BA.sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), without cancellation or overflow."""
    return 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))


def _normal_log_prob(mean_BA: Tensor, x_BA: Tensor, log_std: Tensor) -> Tensor:
    z_BA = (x_BA - mean_BA) * torch.exp(-log_std)
    return (-0.5 * z_BA**2 - log_std - HALF_LOG_2PI).sum(-1)


Head = Categorical | Factored | Gaussian | SquashedGaussian


def allowed(logits: Array, mask: np.ndarray) -> Array:
    """Logits of the same actions, where the mask is 0 so low that their probability is exactly 0.

    Where it is 0 everywhere (an agent that does not act), all actions are equally probable.
    """
    return np.where(mask, logits, np.finfo(logits.dtype).min / 2)  # half: differences stay finite


def allowed_of(logits: Tensor, mask: Tensor) -> Tensor:
    """``allowed`` of tensors, whose gradient is 0 where the mask is."""
    return torch.where(mask.bool(), logits, torch.finfo(logits.dtype).min / 2)


def read(head: Head, rows: Rows) -> Rows:
    """What the network reads of a policy's rows of observations (..., O): all but the masks behind it."""
    return rows[..., : -head.num_outputs] if head.masked else rows


def masks(head: Head, rows: Rows) -> Rows:
    """The masks behind what the network reads, of a head that is masked."""
    return rows[..., -head.num_outputs :]
