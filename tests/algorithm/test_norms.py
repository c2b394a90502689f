"""Normalisation inside the critics beside the papers' equations, written again in NumPy."""

import numpy as np
import pytest
import torch

from distqtrl.algorithm import sac
from distqtrl.algorithm.norms import LayerNorm, Renorm


def renormed(x_NW, mean_W, variance_W, warm):
    """Algorithm 1 of Batch Renormalization (arXiv 1702.03275) for one network: y, and the running moments after it."""
    batch_mean_W, batch_std_W = x_NW.mean(0), np.sqrt(x_NW.var(0) + 1e-3)
    std_W = np.sqrt(variance_W + 1e-3)
    r_W = np.clip(batch_std_W / std_W, 1 / 3, 3) if warm else 1.0
    d_W = np.clip((batch_mean_W - mean_W) / std_W, -5, 5) if warm else 0.0
    y_NW = (x_NW - batch_mean_W) / batch_std_W * r_W + d_W
    return y_NW, mean_W + 0.01 * (batch_mean_W - mean_W), variance_W + 0.01 * (x_NW.var(0) - variance_W)


def through(norm, x_2NW, batch=True):
    """What a layer reads, by folding the norm into one whose weights are the identity."""
    width = x_2NW.shape[-1]
    identity, zero = torch.eye(width).double().repeat(2, 1, 1), torch.zeros(2, 1, width).double()
    weight, bias = norm.folded(x_2NW, identity, zero, batch)
    return torch.baddbmm(bias, x_2NW, weight.mT)


def test_it_is_batch_renormalisation_before_and_after_its_warm_up():
    """Batches whose moments lie inside and far beyond the clipped ranges; both networks, scale and shift."""
    rng, norm = np.random.default_rng(0), Renorm(4, warmup=3).double()
    norm.scale.data.uniform_(0.5, 2)
    norm.shift.data.uniform_(-1, 1)
    scale, shift = (p.detach().numpy() for p in (norm.scale, norm.shift))
    mean_2W, variance_2W = np.zeros((2, 4)), np.ones((2, 4))
    for step in range(8):
        x_2NW = rng.normal(0.3, 1.2, (2, 16, 4)) * [1, 10, 0.1, 1] + [0, 0, 0, 9 * (step % 2)]
        found_2NW = through(norm, torch.from_numpy(x_2NW)).detach().numpy()
        for k in range(2):
            y_NW, mean_2W[k], variance_2W[k] = renormed(x_2NW[k], mean_2W[k], variance_2W[k], warm=step >= 3)
            np.testing.assert_allclose(found_2NW[k], y_NW * scale[k] + shift[k], rtol=1e-9, atol=1e-9)
        norm.observe(norm.statistics(1.0))
        np.testing.assert_allclose(norm.mean[:, 0].numpy(), mean_2W, rtol=1e-9)
        np.testing.assert_allclose(norm.variance[:, 0].numpy(), variance_2W, rtol=1e-9)
    one_NW = (x_2NW[0] - mean_2W[0]) / np.sqrt(variance_2W[0] + 1e-3) * scale[0] + shift[0]
    np.testing.assert_allclose(through(norm, torch.from_numpy(x_2NW), batch=False)[0].detach().numpy(), one_NW)


def test_a_number_by_hand():
    """Batch (1, 3): mean 2, variance 1; running 0 and 1: r = 1, d = 2 / sqrt(1.001)."""
    norm = Renorm(1, warmup=0).double()
    y = through(norm, torch.tensor([1.0, 3.0]).double().view(1, 2, 1).repeat(2, 1, 1))
    assert y[0, :, 0].tolist() == pytest.approx([0.9995003746877732, 2.998501124063319], rel=1e-12)


def test_corrections_are_constants_and_moments_are_not():
    """The gradient of x is that of (x - mean) / std * r + d with r and d held, by central differences."""
    rng = np.random.default_rng(1)
    norm = Renorm(3, warmup=0).double()
    norm.mean.fill_(0.4)
    norm.variance.fill_(0.5)
    x_NW, v_NW = rng.normal(0.2, 1.1, (6, 3)), rng.normal(size=(6, 3))
    std_W, running = np.sqrt(x_NW.var(0) + 1e-3), np.sqrt(0.501)
    r_W, d_W = std_W / running, (x_NW.mean(0) - 0.4) / running

    def value(x_NW):
        return float((v_NW * ((x_NW - x_NW.mean(0)) / np.sqrt(x_NW.var(0) + 1e-3) * r_W + d_W)).sum())

    leaf = torch.from_numpy(x_NW).requires_grad_()
    (through(norm, leaf.expand(2, -1, -1))[0] * torch.from_numpy(v_NW)).sum().backward()
    for place in np.ndindex(x_NW.shape):
        step = np.zeros_like(x_NW)
        step[place] = 1e-6
        assert leaf.grad[place].item() == pytest.approx((value(x_NW + step) - value(x_NW - step)) / 2e-6, abs=1e-7)


def test_moments_of_shares_are_those_of_the_whole():
    x_2NW = torch.randn(2, 12, 5, dtype=torch.float64) * 3 + 7
    whole, shared = Renorm(5, 0).double(), Renorm(5, 0).double()
    through(whole, x_2NW)
    sums = 0
    for part in x_2NW.split([2, 7, 3], dim=1):
        through(shared, part)
        sums = sums + shared.statistics(part.shape[1] / 12)
    whole.observe(whole.statistics(1.0))
    shared.observe(sums)
    torch.testing.assert_close(shared.mean, whole.mean)
    torch.testing.assert_close(shared.variance, whole.variance)
    assert int(shared.num_observed) == 1


def test_layer_norm_is_torchs():
    norm, theirs, x_2NW = LayerNorm(6), torch.nn.LayerNorm(6), torch.randn(2, 4, 6)
    norm.scale.data.uniform_(0.5, 2)
    norm.shift.data.uniform_(-1, 1)
    for k in range(2):
        theirs.load_state_dict({"weight": norm.scale[k, 0].detach(), "bias": norm.shift[k, 0].detach()})
        torch.testing.assert_close(norm(x_2NW)[k], theirs(x_2NW[k]))


@pytest.mark.parametrize("norm", ["batch_renorm", "layer_norm"])
def test_critics_are_networks_with_the_norm_where_it_belongs(norm):
    """CrossQ: norm, linear, ReLU, norm, linear, ReLU, norm, linear; layer norm: linear, norm, ReLU, ..., linear."""
    torch.manual_seed(0)
    critics = sac.Critics(5, (7, 6), norm, warmup=0).double()
    for each in critics.norms:
        each.scale.data.uniform_(0.5, 2)
        each.shift.data.uniform_(-1, 1)
    obs, actions = torch.randn(9, 3).double() * 2, torch.randn(9, 2).double()
    found = critics(obs, actions, batch=True).detach().numpy()
    for k in range(2):
        x = np.concatenate([obs, actions], -1)
        for i, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            scale, shift = [(p.scale[k, 0].detach().numpy(), p.shift[k, 0].detach().numpy()) for p in critics.norms][
                min(i, len(critics.norms) - 1)
            ]
            if norm == "batch_renorm":
                x = renormed(x, np.zeros(x.shape[1]), np.ones(x.shape[1]), warm=True)[0] * scale + shift
            x = x @ weight[k].detach().numpy().T + bias[k, 0].detach().numpy()
            if i < 2 and norm == "layer_norm":
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * scale + shift
            x = np.maximum(x, 0) if i < 2 else x
        np.testing.assert_allclose(found[k], x[:, 0], rtol=1e-9)


def test_rows_of_layer_norm_have_unit_length():
    critics = sac.Critics(5, (7, 6), "layer_norm")
    for weight in list(critics.weights)[:-1]:
        torch.testing.assert_close(weight.detach().norm(dim=-1), torch.ones(weight.shape[:2]))
        weight.data.mul_(3)
    critics.project()
    assert [float(weight.detach().norm(dim=-1).max()) for weight in list(critics.weights)[:-1]] == pytest.approx([1, 1])
