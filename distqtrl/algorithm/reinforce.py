"""REINFORCE (Williams 1992): loss = -sum of log pi(a|s) A."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.floating]


def loss(log_prob_N: Tensor, old_log_prob_N: Tensor, adv_N: Tensor, clip: float) -> Tensor:
    """The summed loss of N samples; the old probabilities and the clip range are PPO's and not used."""
    return -(log_prob_N * adv_N).sum()


def slope(log_prob_N: Array, old_log_prob_N: Array, adv_N: Array, clip: float) -> tuple[float, Array]:
    """``loss``, and its derivative by log_prob_N."""
    return -float((log_prob_N * adv_N).sum()), -adv_N
