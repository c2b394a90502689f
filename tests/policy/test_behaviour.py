"""The acting policy's weights: rounded, with noise in every layer, refused where that cannot be."""

import numpy as np
import pytest
import torch

from distqtrl.config.stages import Rollout
from distqtrl.errors import UserError
from distqtrl.policy import behaviour, network
from distqtrl.policy.network import Architecture
from distqtrl.quantize import blocks

WIDE = Architecture(16, (32,), 4, "relu")
ODD = Architecture(11, (32,), 4, "relu")


def weights(architecture):
    return torch.randn(architecture.num_weights, generator=torch.Generator().manual_seed(0))


def layers(architecture, w_M):
    return network.unpack(architecture, w_M)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int8", "int2", "bfloat16"])
def test_every_layer_is_rounded_and_biases_are_not(name):
    w_M, pad = weights(WIDE), name == "mxfp4"  # blocks of 32, inputs of 16
    acting, deviation, reached = behaviour.weights(Rollout(precision=name, pad=pad), WIDE, w_M, 0.5, rng())
    assert (deviation, reached) == (0.0, 0)
    for (weight, bias), (was, same) in zip(layers(WIDE, acting), layers(WIDE, w_M), strict=True):
        np.testing.assert_array_equal(weight.numpy(), blocks.rounded(name, was.numpy(), pad))
        assert not torch.equal(weight, was)
        assert torch.equal(bias, same)


def rng():
    return np.random.default_rng(0)


def test_noise_follows_its_schedule_and_reaches_every_layer():
    w_M, config = weights(WIDE), Rollout(noise="exponential", noise_start=0.1, noise_end=0.001, noise_stages=4)
    found = [behaviour.weights(config, WIDE, w_M, done, rng())[1:] for done in (0.0, 0.3, 0.6, 0.9)]
    assert found == [(0.0, 0), (0.1, 2), (pytest.approx(0.01), 2), (0.001, 2)]


def test_noise_that_no_layer_gets_is_refused():
    config = Rollout(noise="constant", precision="none", noise_start=1e-9, noise_end=1e-9)
    with pytest.raises(UserError, match=r"rollout.noise = constant .* reached 0 of 2 layers"):
        behaviour.weights(config, WIDE, weights(WIDE), 0.5, rng())


def test_blocks_that_do_not_divide_a_layer_are_refused_before_training():
    with pytest.raises(UserError, match="11"):
        behaviour.checked(Rollout(precision="nvfp4"), ODD)
    behaviour.checked(Rollout(precision="nvfp4", pad=True), ODD)
    with pytest.raises(UserError, match="unknown weight format 'nvfp5'"):
        behaviour.checked(Rollout(precision="nvfp5"), ODD)


def test_weights_and_layers_are_inverse():
    w_M = weights(WIDE)
    assert torch.equal(behaviour.packed(layers(WIDE, w_M)), w_M)
