"""Convolutions as matrices: torch's own convolution and its gradient are the reference."""

from dataclasses import replace

import numpy as np
import pytest
import runs
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import distqtrl
from distqtrl.environment.spaces import Spaces
from distqtrl.errors import UserError
from distqtrl.policy import network, policy_file, slopes
from distqtrl.policy.convolution import convolutions
from distqtrl.policy.network import Architecture
from distqtrl.training.algorithms import ALGORITHMS
from distqtrl.training.plan import spec

FEW = st.integers(1, 3)


def theirs(architecture, w_M, obs_BO):
    """The network by torch's conv2d and linear."""
    frames, rows, columns, colours = architecture.image
    x = obs_BO.reshape(-1, frames, rows, columns, colours).permute(0, 1, 4, 2, 3).flatten(1, 2)
    taken = 0

    def take(*shape):
        nonlocal taken
        part = w_M[taken : taken + int(np.prod(shape))].reshape(shape)
        taken += part.numel()
        return part

    for c in architecture.front:
        weight, bias = take(c.filters, x.shape[1], c.size, c.size), take(c.filters)
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, stride=c.stride))
    x = x.permute(0, 2, 3, 1).flatten(1)
    for width in architecture.hidden:
        weight, bias = take(width, x.shape[1]), take(width)
        x = torch.relu(torch.nn.functional.linear(x, weight, bias))
    weight, bias = take(architecture.num_outputs, x.shape[1]), take(architecture.num_outputs)
    assert taken == len(w_M) == architecture.num_weights
    return torch.nn.functional.linear(x, weight, bias)


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(FEW, st.integers(3, 7), st.integers(3, 7), FEW),
    st.lists(st.tuples(FEW, FEW, FEW), min_size=1, max_size=3),
    st.data(),
)
def test_outputs_and_gradient_equal_torchs(image, drawn, data):
    words = tuple(f"{filters}x{size}/{stride}" for filters, size, stride in drawn)
    try:
        convolutions(words, image)
    except UserError:  # images shrink
        assume(False)
    hidden = data.draw(st.sampled_from([(), (4,)]))
    architecture = Architecture(int(np.prod(image)), hidden, 2, "relu", image, words)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    w_M = torch.randn(architecture.num_weights, generator=random, dtype=torch.float64, requires_grad=True)
    obs_BO = torch.randn(3, architecture.num_inputs, generator=random, dtype=torch.float64)
    expected = theirs(architecture, w_M, obs_BO)
    layers = network.unpack(architecture, w_M)
    ours = network.outputs(architecture, layers, obs_BO)
    torch.testing.assert_close(ours, expected)
    slope_BA = torch.randn(3, 2, generator=random, dtype=torch.float64)
    (expected_M,) = torch.autograd.grad(expected, w_M, slope_BA)
    torch.testing.assert_close(torch.autograd.grad(ours, w_M, slope_BA)[0], expected_M)

    arrays = [(w.detach().numpy(), b.detach().numpy()) for w, b in layers]
    seen = slopes.forward(arrays, "relu", obs_BO.numpy())
    by_hand = slopes.of_weights(architecture, slopes.backward(arrays, "relu", seen, slope_BA.numpy()))
    torch.testing.assert_close(torch.from_numpy(by_hand), expected_M)
    torch.testing.assert_close(torch.from_numpy(network.acting(architecture, w_M)(obs_BO.numpy())), expected)


@pytest.mark.parametrize(
    ("words", "image", "said"),
    [
        (["8x3"], (), "needs observations that are one image"),
        (["8by3"], (1, 7, 7, 3), "8by3 is not FILTERSxSIZE"),
        (["0x3"], (1, 7, 7, 3), "0x3 is not FILTERSxSIZE"),
        (["8x3/0"], (1, 7, 7, 3), "8x3/0 is not FILTERSxSIZE"),
        (["8x3", "8x3", "8x3", "8x3"], (1, 7, 7, 3), "8x3 reads 3 x 3 places, its image has 1 x 1"),
        (["32x8/4"], (4, 84, 84, 1), "12,800 x 28,224 here, with those before it 361,267,200 entries, at most 134"),
        (["1x1"] * 3, (1, 90, 90, 1), "8,100 x 8,100 here, with those before it 196,830,000 entries"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(words, image, said):
    with pytest.raises(UserError, match=said.replace("/", "."), check=lambda error: "\n" not in str(error)):
        convolutions(words, image)


IMAGE = runs.TINY | {
    "environment.id": "minigrid:MiniGrid-Empty-5x5-v0",
    "environment.observation": "image",
    "environment.frames": 2,
    "policy.convolutions": ["3x3/2", "4x2"],
    "train.steps": 128,
    "quantize.aware": True,
    "quantize.warmup": 2,
}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"environment.observation": "direction"}, "needs observations that are one image"),
        ({"rollout.noise": "constant", "quantize.aware": False, "algorithm.name": "ppo"}, "set these to none"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_training(flags, said, tmp_path):
    with pytest.raises(UserError, match=said):
        distqtrl.train(distqtrl.preset("cartpole", IMAGE | flags), tmp_path / "run")


def test_a_policy_that_reads_more_than_the_image_is_told_so():
    config = distqtrl.preset("cartpole", {"policy.convolutions": ["8x3"]})
    seen = Spaces(147, 3, 0, (), (), image=(1, 7, 7, 3))
    assert spec(config, ALGORITHMS["ppo"], ("a",), seen).architecture.image == (1, 7, 7, 3)
    with pytest.raises(UserError, match=r"set agents\.sharing to independent"):
        spec(config, ALGORITHMS["ppo"], ("a", "b"), seen)


@pytest.mark.parametrize(
    ("image", "first"),
    [
        ((1, 3, 84, 84), True),
        ((1, 4, 64, 96), True),
        ((2, 2, 3, 3), True),
        ((1, 84, 84, 3), False),
        ((1, 7, 7, 3), False),
        ((4, 1, 9, 1), False),  # one row, grey
        ((1, 8, 8, 111), False),  # chess: more planes than rows
        ((1, 3, 3, 3), False),
    ],
)
def test_an_image_whose_colours_come_first_is_refused(image, first):
    config = distqtrl.preset("cartpole", {"policy.convolutions": ["8x1"], "environment.id": "Mine-v0"})
    seen = Spaces(int(np.prod(image)), 3, 0, (), (), image=image)
    if first:
        with pytest.raises(UserError, match=r"Mine-v0 observes .* numpy\.moveaxis\(image, 0, -1\)"):
            spec(config, ALGORITHMS["ppo"], ("",), seen)
    else:
        assert spec(config, ALGORITHMS["ppo"], ("",), seen).architecture.image == image


def test_a_convolutional_policy_is_trained_on_integers_and_exported(tmp_path):
    distqtrl.train(distqtrl.preset("cartpole", IMAGE), tmp_path / "run")
    policy = policy_file.load(tmp_path / "run" / "policy.safetensors")
    assert policy.architecture.image == (2, 7, 7, 3)
    assert policy.architecture.widths == (294, 27, 16, 4, 7)
    obs_BO = np.random.default_rng(0).integers(0, 9, (50, 294)).astype(np.float32)
    about = distqtrl.export(tmp_path / "run", tmp_path / "exported", targets=("c",), vectors=1000)
    assert all(check["status"] == "equal" for check in about["checks"] if check["target"] == "c"), about["checks"]
    policy.save(tmp_path / "again")
    np.testing.assert_array_equal(policy_file.load(tmp_path / "again").act(obs_BO), policy.act(obs_BO))
    policy.architecture = replace(policy.architecture, image=(1, 7, 7, 3))
    policy.save(tmp_path / "wrong")
    with pytest.raises(UserError, match="294 inputs"):
        policy_file.load(tmp_path / "wrong")
