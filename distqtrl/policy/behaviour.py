"""The policy that acts in rollouts, where it is not quite the one that is learned (QeRL, arXiv 2510.11696).

Its weights are the learned ones rounded to a number format, with noise on what every layer reads. The learner's
importance ratios are taken over what this policy says.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distqtrl.config.stages import Rollout
from distqtrl.errors import UserError
from distqtrl.policy import network
from distqtrl.policy.network import Architecture, Layer
from distqtrl.quantize import blocks, noise


def differs(config: Rollout) -> bool:
    """Whether the acting policy differs from the learned one."""
    return config.precision != "none" or config.noise != "none"


def checked(config: Rollout, architecture: Architecture) -> None:
    """Raise UserError for a format that does not fit these layers, and for impossible noise."""
    noise.deviation(config.noise, config.noise_start, config.noise_end, config.noise_stages, 0.0)
    if config.precision != "none":
        for o, i in architecture.shapes:
            blocks.rounded(config.precision, np.zeros((o, i), np.float32), config.pad)


def weights(
    config: Rollout, architecture: Architecture, w_M: Tensor, done: float, rng: np.random.Generator
) -> tuple[Tensor, float, int]:
    """The acting policy's weights when the part ``done`` of the budget is spent; the noise's deviation, and the
    number of layers that it reached.

    Raises UserError where noise is due and a layer got none of it.
    """
    w_M = w_M.detach()
    layers = network.unpack(architecture, w_M)
    if config.precision != "none":
        layers = [(rounded(config.precision, weight, config.pad), bias) for weight, bias in layers]
    deviation = noise.deviation(config.noise, config.noise_start, config.noise_end, config.noise_stages, done)
    noisy = noise.scaled(layers, deviation, rng)
    reached = noise.changed(layers, noisy)
    if deviation and reached < len(layers):
        raise UserError(
            f"rollout.noise = {config.noise} (deviation {deviation:g}) reached {reached} of {len(layers)} layers: the "
            "others' weights are zero, or the noise is below their rounding: raise rollout.noise_end"
        )
    return packed(noisy), deviation, reached


def packed(layers: Sequence[Layer]) -> Tensor:
    """w_M of layers: the inverse of ``network.unpack``."""
    return torch.cat([part.reshape(-1) for layer in layers for part in layer])


def rounded(name: str, weight_NK: Tensor, pad: bool) -> Tensor:
    """Weights rounded to a number format (``blocks.FORMATS``)."""
    return torch.from_numpy(blocks.rounded(name, weight_NK.float().numpy(), pad)).to(weight_NK.dtype)
