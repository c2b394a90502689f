"""Adaptive quantization noise of QeRL (arXiv 2510.11696): multiplicative noise on what every layer reads.

QeRL adds noise to the scale of the normalisation before a layer, which multiplies that layer's inputs. A policy
normalises only its observations, so here the same factors go into the columns of every layer's weights; in the first
layer that is noise in the observations' scale, as long as no observation is clamped.

The released QeRL code looks for layers of a type that its engine does not use, so that none of them gets any noise:
``changed`` counts the layers that did.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distqtrl.errors import UserError

KINDS = ("none", "exponential", "linear", "cosine", "constant")
Layer = tuple[Tensor, Tensor]


def deviation(kind: str, start: float, end: float, stages: int, done: float) -> float:
    """The noise's standard deviation when the part ``done`` of the budget, 0 to 1, is spent.

    The budget has so many equal stages. The first is silent; the others fall from start to end, both exact, with the
    released code's exponent i / (stages - 2), which reaches end, not the paper's (k - 1) / (K - 1), which does not.
    constant stays at start, none at 0. Raises UserError.

    >>> [round(deviation("exponential", 1e-2, 1e-4, 4, done), 6) for done in (0, 0.25, 0.5, 0.75, 1)]
    [0.0, 0.01, 0.001, 0.0001, 0.0001]
    """
    if kind not in KINDS:
        raise UserError(f"unknown noise {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "none":
        return 0.0
    if stages < 3:
        raise UserError(f"noise in {stages} stages: write 3 or more, a silent one and two that noise falls between")
    if not 0 < end <= start < math.inf:
        raise UserError(f"noise from {start} to {end}: both must be positive, rollout.noise_end at most noise_start")
    # i / stages begins stage i even where it was rounded down
    stage = math.floor(min(max(done, 0.0), 1.0) * stages + 1e-9)
    if stage == 0:
        return 0.0
    i, last = min(stage - 1, stages - 2), stages - 2
    if i == 0 or kind == "constant":
        return start
    if i == last:
        return end
    if kind == "exponential":
        return start * (end / start) ** (i / last)
    falling = 1 - i / last if kind == "linear" else (1 + math.cos(math.pi * i / last)) / 2
    return end + (start - end) * falling


def scaled(layers: Sequence[Layer], deviation: float, rng: np.random.Generator) -> list[Layer]:
    """New layers (weight_NK * (1 + z_K), bias_N) with z ~ N(0, deviation**2), one vector z_K a layer.

    Outputs of a layer share its vector. Numbers are drawn and multiplied in float64 and rounded once to the weights'
    type; as many are drawn at deviation 0, so that the stream does not depend on the schedule.

    >>> [(weight, bias)] = scaled([(torch.ones(2, 3), torch.ones(2))], 0.1, np.random.default_rng(0))
    >>> bool((weight[0] == weight[1]).all()), bias.tolist()
    (True, [1.0, 1.0])
    """
    return [
        (_columns_scaled(weight, 1 + deviation * rng.standard_normal(weight.shape[1])), bias) for weight, bias in layers
    ]


def _columns_scaled(weight_NK: Tensor, factor_K: np.ndarray) -> Tensor:
    return (weight_NK * torch.from_numpy(factor_K).to(weight_NK.device)).to(weight_NK.dtype)


def changed(before: Sequence[Layer], after: Sequence[Layer]) -> int:
    """How many layers' weights differ; 0 although noise is asked for means that none arrived, or rounding lost it.

    >>> layers = [(torch.ones(2, 3), torch.ones(2))] * 2
    >>> changed(layers, scaled(layers, 0.1, np.random.default_rng(0))), changed(layers, layers)
    (2, 0)
    """
    return sum(not torch.equal(old, new) for (old, _), (new, _) in zip(before, after, strict=True))
