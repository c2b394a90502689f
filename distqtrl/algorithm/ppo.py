"""PPO with the clipped surrogate (Schulman et al., arXiv 1707.06347, eq. 7)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.floating]


def loss(log_prob_N: Tensor, old_log_prob_N: Tensor, adv_N: Tensor, clip: float) -> Tensor:
    """-sum of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) over N samples."""
    ratio_N = torch.exp(log_prob_N - old_log_prob_N)
    return -torch.min(ratio_N * adv_N, ratio_N.clamp(1 - clip, 1 + clip) * adv_N).sum()


def slope(log_prob_N: Array, old_log_prob_N: Array, adv_N: Array, clip: float) -> tuple[float, Array]:
    """``loss``, and its derivative by log_prob_N."""
    ratio_N = np.exp(log_prob_N - old_log_prob_N)
    free_N, held_N = ratio_N * adv_N, np.minimum(np.maximum(ratio_N, 1 - clip), 1 + clip) * adv_N
    return -float(np.minimum(free_N, held_N).sum()), np.where(free_N <= held_N, -free_N, 0)
