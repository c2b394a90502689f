"""GRPO (Shao et al., arXiv 2402.03300) with DAPO's clip range and sum over tokens (Yu et al., arXiv 2503.14476).

A prompt's completions are compared with each other, so that no value network is needed, and every token of all ranks'
completions weighs the same. There is no penalty for leaving the start. Letters: J completions of a group, T tokens.
"""

import torch
from torch import Tensor


def advantages(rewards_NJ: Tensor, scaled: bool, epsilon: float) -> Tensor:
    """Rewards of groups less their mean; scaled: over their deviation (n - 1). 0 where all of a group are equal.

    >>> advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), scaled=False, epsilon=1e-8)
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  0.0000]])
    """
    centred_NJ = rewards_NJ - rewards_NJ.mean(1, keepdim=True)
    equal_N1 = (rewards_NJ == rewards_NJ[:, :1]).all(1, keepdim=True)  # whose mean may be another number, by rounding
    centred_NJ = centred_NJ.masked_fill(equal_N1, 0.0)
    return centred_NJ / (rewards_NJ.std(1, keepdim=True) + epsilon) if scaled else centred_NJ


def loss(log_ratio_NT: Tensor, adv_N: Tensor, weight_NT: Tensor, *, low: float, high: float) -> Tensor:
    """-sum over tokens of weight min(ratio A, clip(ratio, 1 - low, 1 + high) A).

    weight_NT: 0 beyond a completion's end; below it 1, or what truncated importance sampling gives.
    """
    ratio_NT, adv_N1 = log_ratio_NT.exp(), adv_N[:, None]
    return -(weight_NT * torch.min(ratio_NT * adv_N1, ratio_NT.clamp(1 - low, 1 + high) * adv_N1)).sum()
