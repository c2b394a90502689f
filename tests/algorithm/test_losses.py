"""Losses against their formulas in NumPy."""

import numpy as np
import pytest
import torch

from distqtrl.algorithm import ppo, reinforce


def samples(seed, num=50):
    """New and old log probabilities, advantages; ratios lie on both sides of the clip range."""
    log_prob, step, adv = np.random.default_rng(seed).normal(size=(3, num))
    return log_prob - 2, log_prob - 2 - 0.3 * step, adv


def gradient(loss, log_prob, *arguments):
    leaf = torch.tensor(log_prob, requires_grad=True)
    loss(leaf, *(torch.tensor(x) for x in arguments), 0.2).backward()
    return leaf.grad.numpy()


@pytest.mark.parametrize("clip", [0.1, 0.2, 5.0])
def test_ppo_formula(clip):
    new, old, adv = samples(0)
    ratio = np.exp(new) / np.exp(old)
    expected = -sum(min(r * a, np.clip(r, 1 - clip, 1 + clip) * a) for r, a in zip(ratio, adv, strict=True))
    assert ppo.loss(*map(torch.tensor, (new, old, adv)), clip).item() == pytest.approx(expected, rel=1e-12)


def test_reinforce_formula():
    new, old, adv = samples(1)
    assert reinforce.loss(*map(torch.tensor, (new, old, adv)), 0.2).item() == pytest.approx(-new @ adv, rel=1e-12)
    np.testing.assert_allclose(gradient(reinforce.loss, new, old, adv), -adv)


def test_at_ratio_one_both_have_the_same_gradient():
    new, _, adv = samples(2)
    assert ppo.loss(*map(torch.tensor, (new, new, adv)), 0.2).item() == pytest.approx(-adv.sum(), rel=1e-12)
    np.testing.assert_allclose(gradient(ppo.loss, new, new, adv), -adv)
    np.testing.assert_allclose(gradient(reinforce.loss, new, new, adv), -adv)


@pytest.mark.parametrize(
    ("ratio", "adv", "expected"),
    [
        (1.3, 2.0, 0.0),  # beyond the range where the objective would grow: no gradient
        (0.7, -2.0, 0.0),
        (1.3, -2.0, 2.6),  # beyond it on the other side: -ratio A
        (0.7, 2.0, -1.4),
        (1.1, 2.0, -2.2),  # inside
        (0.9, -2.0, 1.8),
    ],
)
def test_ppo_gradient_stops_outside_the_clip_range(ratio, adv, expected):
    assert gradient(ppo.loss, [np.log(ratio)], [0.0], [adv]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [ppo, reinforce])
@pytest.mark.parametrize("clip", [0.05, 0.2])
def test_slopes_are_the_gradients_of_the_losses(loss, clip):
    new, old, adv = samples(3)
    new[:3], adv[3:6] = old[:3], 0.0  # a ratio of 1, and no advantage
    leaf = torch.tensor(new, requires_grad=True)
    expected = loss.loss(leaf, torch.tensor(old), torch.tensor(adv), clip)
    expected.backward()
    value, slope_N = loss.slope(new, old, adv, clip)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(slope_N, leaf.grad, rtol=1e-12)
