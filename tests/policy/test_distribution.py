"""Heads against torch.distributions, and sampling against its definition."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions

from distqtrl.policy.distribution import Categorical, Gaussian, SquashedGaussian

NONE = torch.zeros(0)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_categorical_equals_torch():
    logits_BA, actions_B = 3 * normal(40, 5), torch.arange(40) % 5
    head, expected = Categorical(5), distributions.Categorical(logits=logits_BA)
    torch.testing.assert_close(head.log_prob(logits_BA, actions_B, NONE), expected.log_prob(actions_B))
    torch.testing.assert_close(head.entropy(logits_BA, NONE), expected.entropy())
    assert head.greedy(logits_BA.numpy()).tolist() == expected.probs.argmax(-1).tolist()


def test_gaussian_equals_torch():
    mean_BA, actions_BA, log_std_A = normal(40, 3), normal(40, 3, seed=1), torch.tensor([-1.0, 0.0, 0.7]).double()
    head = Gaussian((-1.0,) * 3, (1.0,) * 3)
    expected = distributions.Independent(distributions.Normal(mean_BA, log_std_A.exp()), 1)
    torch.testing.assert_close(head.log_prob(mean_BA, actions_BA, log_std_A), expected.log_prob(actions_BA))
    torch.testing.assert_close(head.entropy(mean_BA, log_std_A), expected.entropy())
    np.testing.assert_array_equal(head.greedy(mean_BA.numpy()), mean_BA)


@pytest.mark.parametrize("wide", [False, True])
def test_squashed_gaussian_equals_torch(wide):
    mean_BA, u_BA = normal(40, 3), normal(40, 3, seed=1)
    log_std = normal(40, 3, seed=2) / 2 if wide else torch.tensor([-1.0, 0.0, 0.7]).double()
    plain = distributions.Normal(mean_BA, log_std.exp())
    expected = distributions.Independent(distributions.TransformedDistribution(plain, distributions.TanhTransform()), 1)
    head, actions_BA = SquashedGaussian((-1.0,) * 3, (1.0,) * 3), torch.tanh(u_BA)
    torch.testing.assert_close(head.log_prob(mean_BA, actions_BA, log_std), expected.log_prob(actions_BA))
    noise_BA = normal(40, 3, seed=3).numpy()
    sample_BA = head.sample(mean_BA.numpy(), noise_BA, log_std.exp().numpy())
    np.testing.assert_allclose(sample_BA, np.tanh(mean_BA.numpy() + log_std.exp().numpy() * noise_BA))
    np.testing.assert_array_equal(head.greedy(mean_BA.numpy()), np.tanh(mean_BA.numpy()))
    with pytest.raises(NotImplementedError, match="no closed form"):
        head.entropy(mean_BA, log_std)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squashed_actions_at_the_ends_have_finite_gradients(dtype):
    mean_BA = torch.zeros(3, 1, dtype=dtype, requires_grad=True)
    log_prob_B = SquashedGaussian((-1.0,), (1.0,)).log_prob(
        mean_BA, torch.tensor([[1.0], [-1.0], [0.0]], dtype=dtype), torch.zeros(1, dtype=dtype)
    )
    log_prob_B.sum().backward()
    assert log_prob_B.isfinite().all()
    assert mean_BA.grad.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(logits=st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_categorical_frequencies_over_a_grid_of_noise_are_exact(logits):
    n = 1000
    logits_A = np.array(logits)
    noise_N = (np.arange(n) + 0.5) / n
    actions_N = Categorical(len(logits)).sample(np.tile(logits_A, (n, 1)), noise_N, NONE)
    counts = np.bincount(actions_N, minlength=len(logits))
    assert (np.diff(actions_N) >= 0).all()  # the inverse of a cumulative distribution
    assert np.abs(counts / n - torch.softmax(torch.from_numpy(logits_A), 0).numpy()).max() <= 1 / n + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_samples_stay_in_range(dtype):
    logits_BA = (10 * normal(100, 7)).to(dtype)
    for noise in (0.0, 2.0**-53, 1 - 2.0**-53):
        actions_B = Categorical(7).sample(logits_BA.numpy(), torch.full((100,), noise).double().to(dtype).numpy(), NONE)
        assert 0 <= actions_B.min() <= actions_B.max() <= 6


def test_categorical_noise_and_start():
    noise = Categorical(3).noise(np.random.default_rng(0), 5)
    np.testing.assert_array_equal(noise, np.random.default_rng(0).random(5))
    assert Categorical(3, start=-1).to_environment(np.array([0, 2])).tolist() == [-1, 1]
    assert Categorical(3).num_outputs == 3


def test_gaussian_noise_and_sample():
    head = Gaussian((-1.0, 0.0), (1.0, 2.0))
    noise = head.noise(np.random.default_rng(0), 5)
    np.testing.assert_array_equal(noise, np.random.default_rng(0).standard_normal((5, 2)))
    sample = head.sample(np.array([[1.0, -1.0]]), np.array([[3.0, 4.0]]), np.array([2.0, 0.5]))
    np.testing.assert_allclose(sample, [[7.0, 1.0]])
    assert head.num_outputs == 2


def test_gaussian_actions_saturate_and_scale():
    actions = Gaussian((-2.0, 0.0), (2.0, 10.0)).to_environment(
        np.array([[-9, -1], [-1, -0.5], [0, 0], [0.5, 1], [1, 9]])
    )
    assert actions.dtype == np.float32
    assert actions.tolist() == [[-2, 0], [-2, 2.5], [0, 5], [1, 10], [2, 10]]


@settings(deadline=None, max_examples=50)
@given(low=st.floats(-1e3, 1e3, width=32), width=st.floats(0.125, 1e3, width=32), mean=st.floats(-3, 3))
def test_gaussian_actions_lie_in_the_box(low, width, mean):
    box = Box(np.float32([low]), np.float32([low + width]))
    bounds = ((float(box.low[0]),), (float(box.high[0]),))
    actions = Gaussian(*bounds).to_environment(np.array([[mean], [-1.0], [1.0]]))
    assert all(box.contains(action) for action in actions)
    assert (tuple(actions[1]), tuple(actions[2])) == bounds
