"""PPO with the clipped surrogate (Schulman et al., arXiv 1707.06347, eq. 7)."""

import torch
from torch import Tensor


def loss(log_prob_N: Tensor, old_log_prob_N: Tensor, adv_N: Tensor, clip: float) -> Tensor:
    """-sum of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) over N samples."""
    ratio_N = torch.exp(log_prob_N - old_log_prob_N)
    return -torch.min(ratio_N * adv_N, ratio_N.clamp(1 - clip, 1 + clip) * adv_N).sum()
