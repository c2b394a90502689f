"""A quantized network is close to its float one, closer with more bits, and bad recordings are refused."""

import numpy as np
import pytest

from distqtrl.errors import UserError
from distqtrl.quantize.calibrate import CLIPPED, LOGITS, SQUASHED, Network, checked, quantized
from distqtrl.quantize.formats import Bits


def network(activation, kind, seed=0):
    rng = np.random.default_rng(seed)
    layers = ((rng.normal(size=(32, 5)), rng.normal(size=32)), (rng.normal(size=(3, 32)) / 8, rng.normal(size=3) / 4))
    return Network(layers, activation, rng.normal(size=5), rng.uniform(0.5, 2, 5), 10.0, kind)


def outputs(net, obs_BO):
    x = ((obs_BO - net.mean_O) * net.scale_O).clip(-net.clamp, net.clamp)
    (w, b), (v, c) = net.layers
    x = x @ w.T + b
    return (np.maximum(x, 0) if net.activation == "relu" else np.tanh(x)) @ v.T + c


def deviation(net, bits, per, obs_BO):
    q = quantized(net, obs_BO, bits, per)
    levels = q.inputs.levels(obs_BO)
    for layer in q.layers:
        levels = layer.levels(levels)
    expected = outputs(net, obs_BO)
    expected = (
        expected.clip(-1, 1)
        if net.outputs == CLIPPED
        else expected - expected.mean(1, keepdims=True) * (net.outputs == LOGITS)
    )
    return np.abs(q.layers[-1].writes.values(levels) - expected).mean()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", [LOGITS, CLIPPED, SQUASHED])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_more_bits_are_closer(activation, kind, per):
    net, obs_BO = network(activation, kind), np.random.default_rng(1).normal(size=(2000, 5))
    found = [deviation(net, Bits(b, max(b, 4), 8), per, obs_BO) for b in (2, 4, 8)]
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.05


def test_every_number_of_bits_gives_levels():
    net, obs_BO = network("tanh", LOGITS), np.random.default_rng(1).normal(size=(500, 5))
    for b in range(1, 9):
        q = quantized(net, obs_BO, Bits(b, b, b))
        levels = q.inputs.levels(obs_BO)
        for layer in q.layers:
            levels = layer.levels(levels)
            assert 0 <= levels.min() <= levels.max() < 1 << b


@pytest.mark.parametrize(
    "obs_BO",
    [
        np.zeros((10, 4)),
        np.zeros(5),
        np.zeros((1, 5)),
        np.full((9, 5), np.nan),
        np.full((9, 5), "a"),
        np.full((9, 5), np.inf),
    ],
)
def test_bad_recordings_are_refused(obs_BO):
    with pytest.raises(UserError, match=r"^x\.npy: "):
        checked(obs_BO, 5, "x.npy")
