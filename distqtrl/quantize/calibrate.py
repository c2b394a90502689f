"""Post-training quantization of a policy on recorded observations, layer by layer.

The observation normalisation is folded into the first layer, and the grids' offsets and steps into the layer that
reads them, so that what is left is integers, one step per output and one bias. Every layer is quantized on what the
quantized layers before it say, and its bias takes up the mean error (Nagel et al., arXiv 1906.04721).
"""

from dataclasses import dataclass

import numpy as np

from distqtrl.errors import UserError
from distqtrl.quantize.formats import CHANNEL, Array, Bits, Grid, Ints, positive, resolved, spanning, weights

LOGITS, CLIPPED, SQUASHED = "logits", "clipped", "squashed"  # what the last layer's outputs are
SATURATED = 4.0  # beyond it tanh moves an action by less than a thousandth of half its range
TANH_EXTRA_BITS = 2  # a tanh table reads so many bits more than it writes


@dataclass(frozen=True)
class Network:
    """A policy in floating point: layers (weight_NK, bias_N) over clip((obs - mean) * scale, -clamp, clamp).

    ``outputs``: logits, of which only the order counts; a Gaussian's mean, clipped to -1 and 1; or one that tanh
    squashes after the network.
    """

    layers: tuple[tuple[Array, Array], ...]
    activation: str
    mean_O: Array
    scale_O: Array
    clamp: float
    outputs: str

    def clamped(self, obs_BO: Array) -> Array:
        """Raw observations, as far as the network tells them apart."""
        reach_O = self.clamp / self.scale_O
        return obs_BO.clip(self.mean_O - reach_O, self.mean_O + reach_O)


@dataclass(frozen=True)
class QuantizedLayer:
    """Means step_N * (weights_NK @ q) + bias_N for the levels q of the grid before it.

    ``reads`` is the grid that a tanh table reads, ``writes`` the one of the layer's result.
    """

    weights_NK: Ints
    step_N: Array
    bias_N: Array
    writes: Grid
    reads: Grid | None = None

    def values(self, q_BK: Ints) -> Array:
        """What the layer's sums mean."""
        return self.step_N * (q_BK @ self.weights_NK.T) + self.bias_N

    def levels(self, q_BK: Ints) -> Ints:
        """The layer's levels, in floating point: what the integer program approximates."""
        z_BN = self.values(q_BK)
        if self.reads is not None:
            z_BN = np.tanh(self.reads.values(self.reads.levels(z_BN)))
        return self.writes.levels(z_BN)


@dataclass(frozen=True)
class QuantizedNetwork:
    """The network as levels; ``inputs`` is the grid of the raw observations."""

    inputs: Grid
    layers: tuple[QuantizedLayer, ...]


def checked(obs_BO: np.ndarray, num_inputs: int, origin: str) -> Array:
    """Recorded observations fit for calibration; raises UserError."""
    if obs_BO.ndim != 2 or obs_BO.shape[1] != num_inputs or len(obs_BO) < 2:
        raise UserError(f"{origin}: observations of shape {obs_BO.shape}, the policy needs (2 or more, {num_inputs})")
    if obs_BO.dtype.kind not in "fiub":
        raise UserError(f"{origin}: observations of type {obs_BO.dtype}: record them as numbers, such as float32")
    if not np.isfinite(obs_BO).all():
        raise UserError(f"{origin}: an observation is not a finite number: record them again")
    return obs_BO.astype(np.float64)


def quantized(network: Network, obs_BO: Array, bits: Bits, per: str = CHANNEL) -> QuantizedNetwork:
    """The quantized network, calibrated on these observations (``checked``)."""
    x_BK = network.clamped(obs_BO)
    inputs = grid = _observed(x_BK, network, bits.input, per)
    q_BK = inputs.levels(obs_BO)
    made: list[QuantizedLayer] = []
    for weight_NK, bias_N in folded(network):
        z_BN = x_BK @ weight_NK.T + bias_N
        ints_NK, step_N = weights(weight_NK * grid.step_N, (q_BK.astype(float) ** 2).mean(0), bits.core, per)
        bias_N = z_BN.mean(0) - (step_N * (q_BK @ ints_NK.T)).mean(0)
        if len(made) == len(network.layers) - 1:
            layer = QuantizedLayer(ints_NK, step_N, bias_N, _head(network, z_BN, bits.output))
        elif network.activation == "relu":
            x_BK = np.maximum(z_BN, 0)
            layer = QuantizedLayer(ints_NK, step_N, bias_N, positive(x_BK, bits.core, per))
        else:
            x_BK = np.tanh(z_BN)
            layer = QuantizedLayer(ints_NK, step_N, bias_N, *tanh_grids(len(bias_N), bits.core))
        q_BK, grid = layer.levels(q_BK), layer.writes
        made.append(layer)
    return QuantizedNetwork(inputs, tuple(made))


def folded(network: Network) -> list[tuple[Array, Array]]:
    """The layers over raw observations; logits centred, because only their differences count."""
    layers = list(network.layers)
    weight_NK, bias_N = layers[0]
    layers[0] = weight_NK * network.scale_O, bias_N - weight_NK @ (network.scale_O * network.mean_O)
    if network.outputs == LOGITS:
        weight_NK, bias_N = layers[-1]
        layers[-1] = weight_NK - weight_NK.mean(0), bias_N - bias_N.mean()
    return layers


def _observed(obs_BO: Array, network: Network, bits: int, per: str) -> Grid:
    """The grid over the recorded range: every dimension's own, or one for all normalised dimensions."""
    low_O, high_O = obs_BO.min(0), obs_BO.max(0)
    if per != CHANNEL:
        normal_BO = (obs_BO - network.mean_O) * network.scale_O
        low_O, high_O = (network.mean_O + end / network.scale_O for end in (normal_BO.min(), normal_BO.max()))
    middle_O = (low_O + high_O) / 2
    reach_O = resolved(high_O - low_O, middle_O) / 2
    return spanning(middle_O - reach_O, middle_O + reach_O, bits)


def tanh_grids(num: int, bits: int) -> tuple[Grid, Grid]:
    """What the table writes, and what it reads: up to where tanh surely rounds to its last level."""
    writes = spanning(np.full(num, -1.0), np.full(num, 1.0), bits)
    end = np.arctanh(1 - writes.step_N / 4) if bits > 1 else np.full(num, 1.0)
    return writes, spanning(-end, end, bits + TANH_EXTRA_BITS)


def _head(network: Network, z_BN: Array, bits: int) -> Grid:
    """One grid for all outputs: the recorded range, or -1 to 1 where a Gaussian's mean saturates."""
    num, low, high = z_BN.shape[1], z_BN.min(), z_BN.max()
    if network.outputs == CLIPPED:
        low, high = -1.0, 1.0
    elif network.outputs == SQUASHED:
        low, high = np.clip([low, high], -SATURATED, SATURATED)
    return spanning(np.full(num, low), np.full(num, max(high, low + 1e-9)), bits)
