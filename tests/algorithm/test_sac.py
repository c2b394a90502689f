"""SAC's formulas beside torch.distributions and layers that stand alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.algorithm import sac


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
