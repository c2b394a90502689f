"""REINFORCE (Williams 1992): loss = -sum of log pi(a|s) A."""

from torch import Tensor


def loss(log_prob_N: Tensor, old_log_prob_N: Tensor, adv_N: Tensor, clip: float) -> Tensor:
    """The summed loss of N samples; the old probabilities and the clip range are PPO's and not used."""
    return -(log_prob_N * adv_N).sum()
