"""What the mapping reads of probabilities p_S: one number x_i per basis state.

tanh       x_i = (beta tanh(gamma S/2 p_i))^alpha, minus its mean over the basis states used     arXiv 2407.06103 code
linear     x_i = S p_i - 1                    deviation 1 for a random state
logarithm  x_i = log(S p_i)                   infinite where shots found nothing
walsh      x_k = sqrt(S) sum_i (-1)^(k.i) p_i where k has 1 to ``walsh_weight`` bits, else 0: <Z..Z> of those wires
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distqtrl.config.stages import MappingModel
from distqtrl.mapping import hadamard

SMALLEST = 1e-12  # of a probability whose logarithm is taken


def tanh(p_S: Tensor, config: MappingModel, n: int) -> Tensor:
    """The papers' feature; its mean over the states used is taken off by the mapping."""
    x_S = config.beta * torch.tanh(config.gamma * 2 ** (n - 1) * p_S)
    if config.alpha != 1:
        x_S = x_S.clamp(min=1e-300) ** config.alpha  # the slope at p = 0 is infinite for alpha < 1
    return x_S


def linear(p_S: Tensor, config: MappingModel, n: int) -> Tensor:
    """S p - 1."""
    return 2**n * p_S - 1


def logarithm(p_S: Tensor, config: MappingModel, n: int) -> Tensor:
    """log(S p)."""
    return torch.log(2**n * p_S.clamp(min=SMALLEST))


def walsh(p_S: Tensor, config: MappingModel, n: int) -> Tensor:
    """Correlators of few wires.

    >>> from distqtrl.config.stages import MappingModel
    >>> walsh(torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64), MappingModel(walsh_weight=1), 2).tolist()
    [0.0, 2.0, -2.0, 0.0]
    """
    x_S = hadamard.transform(p_S[None], *hadamard.factors(n, p_S.dtype, p_S.device))[0] * 2 ** (n / 2)
    return x_S.masked_fill(~within(n, config.walsh_weight).to(p_S.device), 0.0)


def within(n: int, most: int) -> Tensor:
    """kept_S: whether the index has 1 to ``most`` bits."""
    index_S = torch.arange(2**n)
    weight_S = torch.stack([(index_S >> b) & 1 for b in range(n)]).sum(0)
    return (weight_S >= 1) & (weight_S <= most)


def themselves(p_S: Tensor, config: MappingModel, n: int) -> Tensor:
    """The features that a source gives itself."""
    return p_S


# To add a feature, write its function and enter it here.
FEATURES: dict[str, Callable[[Tensor, MappingModel, int], Tensor]] = {
    "tanh": tanh,
    "linear": linear,
    "logarithm": logarithm,
    "walsh": walsh,
}
