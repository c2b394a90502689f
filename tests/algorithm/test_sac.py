"""SAC's formulas beside torch.distributions and layers that stand alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.algorithm import sac


def test_squashed_actions_have_the_density_of_the_transformed_distribution():
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(3, 50, 4, dtype=torch.float64)
    actions, log_prob = sac.squashed(mean, log_std, noise)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    inside = actions.abs().amax(-1) < 0.999  # the library inverts tanh, which loses digits at the ends
    torch.testing.assert_close(log_prob[inside], squashed.log_prob(actions)[inside], rtol=1e-6, atol=1e-6)
    assert inside.sum() > 10


def test_densities_are_finite_where_tanh_saturates():
    mean = torch.tensor([[40.0, -40.0]], requires_grad=True)
    _, log_prob = sac.squashed(mean, torch.zeros(1, 2), torch.zeros(1, 2))
    # -log(2 pi)/2 - 2 (log 2 - 40) for each side: softplus(80) is 80 for the negative one
    expected = 2 * (-0.5 * np.log(2 * np.pi) - 2 * np.log(2) + 80)
    torch.testing.assert_close(log_prob, torch.tensor([expected], dtype=torch.float32))
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -2.0]]))


@given(st.floats(-1e3, 1e3))
def test_log_deviations_stay_between_their_ends(x):
    assert sac.LOG_STD_LOW <= float(sac.log_deviation(torch.tensor(x))) <= sac.LOG_STD_HIGH


def test_twin_critics_are_two_networks():
    torch.manual_seed(0)
    critics = sac.Critics(5, (7, 6))
    obs, actions = torch.randn(9, 3), torch.randn(9, 2)
    for k in range(2):
        layers = [torch.nn.functional.linear for _ in critics.weights]
        x = torch.cat([obs, actions], -1)
        for number, (linear, weight, bias) in enumerate(zip(layers, critics.weights, critics.biases, strict=True)):
            x = linear(x, weight[k], bias[k, 0])
            x = torch.relu(x) if number < 2 else x
        torch.testing.assert_close(critics(obs, actions)[k], x[:, 0])
    assert (critics(obs, actions)[0] != critics(obs, actions)[1]).all()


def test_critics_start_like_linear_layers():
    for weight, fan_in in zip(sac.Critics(100, (400,)).weights, (100, 400), strict=True):
        assert float(weight.detach().abs().max()) <= fan_in**-0.5
        assert float(weight.detach().std()) == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.05)


def test_targets_bootstrap_unless_terminated():
    rewards, ended = torch.tensor([1.0, 1.0]), torch.tensor([False, True])
    next_q, log_prob = torch.tensor([[5.0, 5.0], [4.0, 6.0]]), torch.tensor([-2.0, 3.0])
    found = sac.targets(rewards, ended, next_q, log_prob, 0.5, 0.9)
    assert found.tolist() == pytest.approx([1 + 0.9 * (4 + 1), 1])
