"""Normalisation inside two networks side by side, each with statistics of its own: x (2, N, W).

Batch renormalisation (Ioffe, arXiv 1702.03275): x_hat = (x - mean_B) / std_B * r + d, where r = std_B / std and
d = (mean_B - mean) / std of the running mean and std are clipped and count as constants: a batch is normalised nearly
as single inputs will be. What follows is linear, and takes all of it but the statistics.
"""

from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-3  # added to variances
KEPT = 0.99  # of the running statistics, in a step
R_MAX, D_MAX = 3.0, 5.0


class _Moments(torch.autograd.Function):
    """Means and variances over N, (2, 1, W): on a CPU, torch.var_mean takes 30 times as long."""

    @staticmethod
    def forward(ctx: Any, x_2NW: Tensor) -> tuple[Tensor, Tensor]:
        mean = x_2NW.mean(1, keepdim=True)
        ctx.save_for_backward(x_2NW, mean)
        return mean, (x_2NW - mean).square_().mean(1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by: Tensor) -> Tensor:
        x_2NW, mean = ctx.saved_tensors
        num = x_2NW.shape[1]
        slope = by[1] * (2 / num)
        return torch.addcmul(by[0] / num - mean * slope, x_2NW, slope)


class Renorm(nn.Module):
    """Batch renormalisation of W features, then a scale and a shift; in the first ``warmup`` steps r = 1 and d = 0.

    Every rank normalises by its own share of a batch; running statistics are those of all shares, equal on all ranks.
    """

    WARMUP: ClassVar[int] = 100_000

    mean: Tensor
    variance: Tensor
    num_observed: Tensor

    def __init__(self, width: int, warmup: int) -> None:
        super().__init__()
        self.warmup = warmup
        self.scale = nn.Parameter(torch.ones(2, 1, width))
        self.shift = nn.Parameter(torch.zeros(2, 1, width))
        self.register_buffer("mean", torch.zeros(2, 1, width))
        self.register_buffer("variance", torch.ones(2, 1, width))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.int64))
        self._seen = self.mean, self.variance

    @property
    def num_statistics(self) -> int:
        """How many numbers ``statistics`` has."""
        return 2 * self.mean.numel()

    def folded(self, x_2NW: Tensor, weight: Tensor, bias: Tensor, batch: bool) -> tuple[Tensor, Tensor]:
        """weight (2, O, W) and bias (2, 1, O) of a layer that reads what this makes of x, as those of one that reads x.

        batch: normalised by the batch's statistics, which are kept for ``statistics``; else by the running ones.
        """
        steep, offset = self._affine(x_2NW, batch)
        return weight * steep, torch.baddbmm(bias, offset, weight.mT)

    def _affine(self, x_2NW: Tensor, batch: bool) -> tuple[Tensor, Tensor]:
        """The (2, 1, W) that x is multiplied by, and what is then added."""
        if not batch:
            steep = self.scale * torch.rsqrt(self.variance + EPSILON)
            return steep, torch.addcmul(self.shift, self.mean, steep, value=-1)
        mean, variance = _Moments.apply(x_2NW)
        self._seen = mean.detach(), variance.detach()
        steep, offset = self.scale * torch.rsqrt(variance + EPSILON), cast(Tensor, self.shift)
        if int(self.num_observed) >= self.warmup:
            with torch.no_grad():
                running = torch.sqrt(self.variance + EPSILON)
                r = (torch.sqrt(variance + EPSILON) / running).clamp(1 / R_MAX, R_MAX)
                d = ((mean - self.mean) / running).clamp(-D_MAX, D_MAX)
            steep, offset = steep * r, torch.addcmul(self.shift, self.scale, d)
        return steep, torch.addcmul(offset, mean, steep, value=-1)

    def statistics(self, share: float) -> np.ndarray:
        """Mean and mean of squares of the last batch, times its share of all ranks' samples, one after the other."""
        mean, variance = (x.double().numpy().ravel() for x in self._seen)
        return share * np.concatenate([mean, variance + mean**2])

    def observe(self, sums: np.ndarray) -> None:
        """A step of the running statistics towards those of all ranks' samples, whose ``statistics`` were added up."""
        mean, squares = np.split(sums, 2)
        for running, now in ((self.mean, mean), (self.variance, np.maximum(squares - mean**2, 0.0))):
            running.lerp_(torch.from_numpy(now).to(running.dtype).view_as(running), 1 - KEPT)
        self.num_observed += 1


class LayerNorm(nn.Module):
    """Layer normalisation of W features, then a scale and a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 1, width))
        self.shift = nn.Parameter(torch.zeros(2, 1, width))

    def forward(self, x_2NW: Tensor) -> Tensor:
        """x normalised, scaled and shifted."""
        return torch.addcmul(self.shift, nn.functional.layer_norm(x_2NW, x_2NW.shape[-1:]), self.scale)
