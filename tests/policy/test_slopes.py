"""Derivatives by hand against autograd's."""

import numpy as np
import pytest
import torch

from distqtrl.policy import network, slopes
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, allowed, allowed_of
from distqtrl.policy.network import Architecture


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("widths", [(4, (), 2), (4, (5,), 1), (4, (3, 7), 2), (1, (2, 2), 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks(widths, activation, dtype):
    a = Architecture(*widths, activation)
    w_M, x_BO, by_BA = (
        normal(*shape, seed=seed).astype(dtype)
        for seed, shape in enumerate([(a.num_weights,), (6, a.num_inputs), (6, a.num_outputs)])
    )
    layers, before = slopes.cut(a.shapes, w_M), (w_M.copy(), x_BO.copy(), by_BA.copy())
    seen = slopes.forward(layers, activation, x_BO)
    flat_M = slopes.backward(layers, activation, seen, by_BA)
    leaf_M = torch.from_numpy(w_M).requires_grad_()
    expected = network.outputs(a, network.unpack(a, leaf_M), torch.from_numpy(x_BO))
    expected.backward(torch.from_numpy(by_BA))
    rtol = 1e-12 if dtype is np.float64 else 1e-5
    assert seen[-1].dtype == flat_M.dtype == dtype
    np.testing.assert_allclose(seen[-1], expected.detach(), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(flat_M, leaf_M.grad, rtol=rtol, atol=rtol)
    for given, was in zip((w_M, x_BO, by_BA), before, strict=True):
        np.testing.assert_array_equal(given, was)


@pytest.mark.parametrize(
    ("head", "actions"),
    [
        (Categorical(5), np.arange(12) % 5),
        (Categorical(1), np.zeros(12, np.int64)),
        (Factored((3, 2), (0, 0)), np.stack([np.arange(12) % 3, np.arange(12) % 2], axis=1)),
        (Gaussian((-1.0,) * 3, (1.0,) * 3), normal(12, 3, seed=9)),
    ],
)
@pytest.mark.parametrize("by_entropy", [0.0, 0.3])
def test_heads(head, actions, by_entropy):
    outputs, log_std, by_N = 3 * normal(12, head.num_outputs), normal(head.num_outputs, seed=1), normal(12, seed=2)
    found = slopes.scores(head, outputs, actions, log_std)
    by_outputs, by_log_std = found.pull(by_N, by_entropy)
    leaves = [torch.from_numpy(x).requires_grad_() for x in (outputs, log_std)]
    log_prob, entropy = head.log_prob(leaves[0], torch.from_numpy(actions), leaves[1]), head.entropy(*leaves)
    expected = torch.autograd.grad(
        (torch.from_numpy(by_N) * log_prob).sum() + by_entropy * entropy.sum(), leaves, materialize_grads=True
    )
    np.testing.assert_allclose(found.log_prob_B, log_prob.detach(), rtol=1e-12)
    np.testing.assert_allclose(found.entropy_B, entropy.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(by_outputs, expected[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(by_log_std, expected[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_logits_give_finite_derivatives_and_none_where_they_are(dtype):
    logits, mask = (20 * normal(40, 4)).astype(dtype), normal(40, 4, seed=1) > 0
    mask[:, 2] = True
    head, actions = Categorical(4, masked=True), np.full(40, 2)
    found = slopes.scores(head, allowed(logits, mask), actions, np.zeros(0, dtype))
    by_logits, _ = found.pull(np.ones(40, dtype), 0.5)
    leaf = torch.from_numpy(logits).requires_grad_()
    of_leaf = allowed_of(leaf, torch.from_numpy(mask))
    none = torch.zeros(0)
    both = head.log_prob(of_leaf, torch.from_numpy(actions), none) + 0.5 * head.entropy(of_leaf, none)
    both.sum().backward()
    np.testing.assert_allclose(np.where(mask, by_logits, 0), leaf.grad, rtol=1e-4, atol=1e-5)
    assert (by_logits[~mask] == 0).all()
