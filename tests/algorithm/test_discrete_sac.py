"""Discrete SAC's formulas beside torch.distributions, loops over actions and networks that stand alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from distqtrl.algorithm import discrete_sac


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)), dtype=torch.float64)


def test_twin_critics_are_two_networks():
    torch.manual_seed(0)
    critics, obs_NO = discrete_sac.Critics(5, (7, 6), num_outputs=3), drawn(9, 5).float()
    for k in range(2):
        x = obs_NO
        for number, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            x = torch.nn.functional.linear(x, weight[k], bias[k, 0])
            x = torch.relu(x) if number < 2 else x
        torch.testing.assert_close(critics(obs_NO)[k], x)
    assert critics(obs_NO).shape == (2, 9, 3)
    assert (critics(obs_NO)[0] != critics(obs_NO)[1]).all()


def test_values_are_those_of_the_actions():
    values_2NA, actions_N = drawn(2, 4, 3), torch.tensor([2, 0, 1, 1])
    found_2N = discrete_sac.of_actions(values_2NA, actions_N)
    assert found_2N.tolist() == [[values_2NA[k, n, actions_N[n]].item() for n in range(4)] for k in range(2)]


@given(st.integers(2, 6), st.floats(0, 5))
def test_targets_are_sums_over_actions(num_actions, temperature):
    logits_NA, q_2NA = drawn(3, num_actions), drawn(2, 3, num_actions)
    rewards, ended = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([False, True, False])
    found = discrete_sac.targets(rewards, ended, q_2NA, logits_NA, temperature=temperature, gamma=0.9)
    for n in range(3):
        policy, value = Categorical(logits=logits_NA[n]), 0.0
        for a in range(num_actions):
            p = policy.probs[a].item()
            value += p * (min(q_2NA[0, n, a].item(), q_2NA[1, n, a].item()) - temperature * math.log(p))
        assert found[n].item() == pytest.approx(rewards[n].item() + (0 if ended[n] else 0.9 * value))


def test_the_policy_moves_towards_the_softmax_of_values():
    """The loss is temperature KL(pi || softmax(min Q / temperature)), less what does not depend on the policy."""
    temperature, q_2NA = torch.tensor(0.7, dtype=torch.float64), drawn(2, 5, 4)
    logits_NA = drawn(5, 4).requires_grad_()
    loss_N, entropy_N = discrete_sac.policy_loss(logits_NA, q_2NA, temperature)
    boltzmann = Categorical(logits=q_2NA.amin(0) / temperature)
    divergence_N = temperature * kl_divergence(Categorical(logits=logits_NA), boltzmann)
    rest_N = temperature * torch.logsumexp(q_2NA.amin(0) / temperature, -1)
    torch.testing.assert_close(loss_N, divergence_N - rest_N)
    torch.testing.assert_close(entropy_N, Categorical(logits=logits_NA).entropy())
    ours, wanted = (torch.autograd.grad(x.sum(), logits_NA, retain_graph=True)[0] for x in (loss_N, divergence_N))
    torch.testing.assert_close(ours, wanted)


def test_certain_actions_have_no_entropy_and_finite_gradients():
    logits_NA = torch.tensor([[1e4, 0.0, -1e4]]).requires_grad_()
    loss_N, entropy_N = discrete_sac.policy_loss(logits_NA, drawn(2, 1, 3).float(), torch.tensor(1.0))
    loss_N.sum().backward()
    assert entropy_N.item() == 0
    assert logits_NA.grad.isfinite().all()
