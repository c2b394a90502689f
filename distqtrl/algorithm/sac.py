"""Soft actor-critic (Haarnoja et al., arXiv 1812.05905): twin critics, a squashed Gaussian, a learned temperature.

Actions live in (-1, 1), whatever the environment's bounds are, and so do entropies and their target (-A).
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl.algorithm.norms import LayerNorm, Renorm

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0


class Critics(nn.Module):
    """Two Q networks side by side: (N, O), (N, A) -> (2, N); ReLU between the layers.

    norm: batch_renorm = of the input and behind every ReLU (CrossQ, Bhatt et al., arXiv 1902.05605); layer_norm =
    before every ReLU, with rows of weights that ``project`` keeps at unit length: of SimbaV2 (Lee et al.,
    arXiv 2502.15280) the bounded weights and features, not its residual blocks, scaled rewards, distributional values.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: tuple[int, ...],
        norm: str = "none",
        warmup: int = Renorm.WARMUP,
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        widths = tuple(pairwise((num_inputs, *hidden, num_outputs)))
        self.weights = nn.ParameterList(_uniform(2, o, i, fan_in=i) for i, o in widths)
        self.biases = nn.ParameterList(_uniform(2, 1, o, fan_in=i) for i, o in widths)
        normed = {"none": (), "batch_renorm": (num_inputs, *hidden), "layer_norm": hidden}[norm]
        made = (Renorm(width, warmup) if norm == "batch_renorm" else LayerNorm(width) for width in normed)
        self.norm, self.norms = norm, nn.ModuleList(made)
        self.project()

    def forward(self, obs_NO: Tensor, actions_NA: Tensor, batch: bool = False) -> Tensor:
        """Both networks' values (2, N). batch: by this batch's statistics, which ``statistics`` then tells."""
        return self.values(torch.cat([obs_NO, actions_NA], -1), batch).squeeze(-1)

    def values(self, x_NK: Tensor, batch: bool) -> Tensor:
        """What both networks say of their inputs, (2, N, num_outputs)."""
        x = x_NK.expand(2, -1, -1)
        last, renorms = len(self.weights) - 1, self._renorms
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if renorms:
                weight, bias = renorms[k].folded(x, weight, bias, batch)
            x = torch.baddbmm(bias, x, weight.mT)
            if k < last:
                x = torch.relu(self.norms[k](x) if self.norm == "layer_norm" else x)
        return x

    @torch.no_grad()
    def project(self) -> None:
        """layer_norm: give every row of the hidden layers' weights unit length."""
        if self.norm == "layer_norm":
            for weight in list(self.weights)[:-1]:
                weight.div_(torch.linalg.vector_norm(weight, dim=-1, keepdim=True))

    def statistics(self, share: float) -> np.ndarray:
        """batch_renorm: what ``observe`` wants to know of the last batch, its share of all ranks' samples."""
        return np.concatenate([np.zeros(0), *(norm.statistics(share) for norm in self._renorms)])

    def observe(self, sums: np.ndarray) -> None:
        """batch_renorm: take all ranks' statistics, added up, into the running ones."""
        begin = 0
        for norm in self._renorms:
            norm.observe(sums[begin : begin + norm.num_statistics])
            begin += norm.num_statistics

    @property
    def _renorms(self) -> list[Renorm]:
        return [norm for norm in self.norms if isinstance(norm, Renorm)]


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
