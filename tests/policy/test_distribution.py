"""Heads against torch.distributions, and sampling against its definition."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions

from distqtrl.policy import distribution
from distqtrl.policy.distribution import (
    Categorical,
    Factored,
    Gaussian,
    SquashedGaussian,
    allowed,
    allowed_of,
    masks,
    read,
)

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


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


@settings(deadline=None, max_examples=30)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_factors_are_independent_choices(sizes, seed):
    """Every factor is what a Categorical of its own is; probabilities are products; entropies are sums."""
    head, cuts = Factored(sizes, tuple(range(len(sizes)))), np.cumsum(sizes)[:-1].tolist()
    logits_BA = 3 * normal(20, sum(sizes), seed=seed)
    parts = torch.tensor_split(logits_BA, cuts, dim=-1)
    noise_BF = head.noise(np.random.default_rng(seed), 20)
    assert noise_BF.shape == (20, len(sizes))
    actions_BF = head.sample(logits_BA.numpy(), noise_BF, NONE)
    assert actions_BF.dtype == np.int64
    for f, (size, part_BC) in enumerate(zip(sizes, parts, strict=True)):
        own_B = Categorical(size).sample(part_BC.numpy(), noise_BF[:, f], NONE)
        np.testing.assert_array_equal(actions_BF[:, f], own_B)
        np.testing.assert_array_equal(head.greedy(logits_BA.numpy())[:, f], part_BC.numpy().argmax(-1))
    each = [distributions.Categorical(logits=part_BC) for part_BC in parts]
    taken = torch.from_numpy(actions_BF)
    expected_B = sum(one.log_prob(taken[:, f]) for f, one in enumerate(each))
    torch.testing.assert_close(head.log_prob(logits_BA, taken, NONE), expected_B)
    torch.testing.assert_close(head.entropy(logits_BA, NONE), sum(one.entropy() for one in each))
    assert (head.to_environment(actions_BF) - actions_BF == np.arange(len(sizes))).all()
    assert head.num_outputs == sum(sizes)


def test_factors_have_gradients_that_are_theirs():
    logits_BA = normal(7, 5).requires_grad_()
    head, actions_BF = Factored((3, 2), (0, 0)), torch.tensor([[2, 0]] * 7)
    (head.log_prob(logits_BA, actions_BF, NONE) + head.entropy(logits_BA, NONE)).sum().backward()
    one, other = (part.detach().clone().requires_grad_() for part in (logits_BA[:, :3], logits_BA[:, 3:]))
    for part, size, f in ((one, 3, 0), (other, 2, 1)):
        single = Categorical(size)
        (single.log_prob(part, actions_BF[:, f], NONE) + single.entropy(part, NONE)).sum().backward()
    torch.testing.assert_close(logits_BA.grad, torch.cat([one.grad, other.grad], dim=1))


@pytest.mark.parametrize("bad", [((), ()), ((2, 0), (0, 0)), ((2,), (0, 0))])
def test_no_factors_are_refused(bad):
    with pytest.raises(ValueError, match="factors"):
        Factored(*bad)


def test_centring_changes_no_difference_within_a_factor():
    rng = np.random.default_rng(0)
    weight_AK, bias_A = rng.normal(size=(5, 4)), rng.normal(size=5)
    weights, biases = Factored((3, 2), (0, 0)).centred(weight_AK, bias_A)
    for cut in (slice(0, 3), slice(3, 5)):
        np.testing.assert_allclose(np.diff(weights[cut], axis=0), np.diff(weight_AK[cut], axis=0))
        np.testing.assert_allclose(np.diff(biases[cut]), np.diff(bias_A[cut]))
        np.testing.assert_allclose(weights[cut].mean(0), 0, atol=1e-15)


@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, seed=st.integers(0, 999), double=st.booleans(), steep=st.sampled_from([1.0, 1e4]))
def test_what_is_masked_has_probability_0(sizes, seed, double, steep):
    """In samples, the best action, probabilities and entropies; as if there were no such outputs."""
    kind, rng = (torch.float64 if double else torch.float32), np.random.default_rng(seed)
    head = Factored(sizes, (0,) * len(sizes), masked=True) if len(sizes) > 1 else Categorical(sizes[0], masked=True)
    rows_BO = rng.normal(size=(40, 3 + sum(sizes)))
    mask_BA = rng.integers(2, size=(40, sum(sizes)))
    for end, n in zip(np.cumsum(sizes), sizes, strict=True):
        mask_BA[np.arange(40), end - 1 - rng.integers(n, size=40)] = 1
    rows_BO[:, 3:] = mask_BA
    np.testing.assert_array_equal(masks(head, rows_BO), mask_BA)
    assert read(head, torch.from_numpy(rows_BO)).shape == (40, 3)
    plain_BA = (steep * normal(40, sum(sizes), seed=seed)).to(kind).requires_grad_()
    logits_BA = allowed_of(plain_BA, torch.from_numpy(mask_BA))
    acting_BA = allowed(plain_BA.detach().numpy(), mask_BA)
    np.testing.assert_array_equal(acting_BA, logits_BA.detach().numpy())
    cuts = np.cumsum(sizes)[:-1]

    def fit(actions):
        chosen = [
            np.take_along_axis(m, a[:, np.newaxis], 1)
            for m, a in zip(np.split(mask_BA, cuts, 1), np.reshape(actions, (40, -1)).T, strict=True)
        ]
        return bool(np.all(chosen))

    for noise in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53):
        rng_like = type("Fixed", (), {"random": staticmethod(lambda shape, noise=noise: np.full(shape, noise))})
        noise_B = head.noise(rng_like, 40).astype(acting_BA.dtype)
        assert fit(head.sample(acting_BA, noise_B, NONE))
    actions = head.greedy(acting_BA)
    assert fit(actions)
    log_prob_B, entropy_B = head.log_prob(logits_BA, torch.from_numpy(actions), NONE), head.entropy(logits_BA, NONE)
    (log_prob_B.sum() + entropy_B.sum()).backward()
    assert torch.isfinite(plain_BA.grad).all()
    assert (plain_BA.grad[torch.from_numpy(mask_BA) == 0] == 0).all()
    log_prob_B, entropy_B = log_prob_B.detach(), entropy_B.detach()
    for b in range(3):
        kept = [
            torch.tensor(x[m > 0])
            for x, m in zip(np.split(plain_BA.detach().numpy()[b], cuts), np.split(mask_BA[b], cuts), strict=True)
        ]
        each = [distributions.Categorical(logits=x.double()) for x in kept]
        best = [int(x.argmax()) for x in kept]
        expected = sum(one.log_prob(torch.tensor(i)) for one, i in zip(each, best, strict=True))
        assert float(log_prob_B[b]) == pytest.approx(float(expected), abs=1e-5)
        assert float(entropy_B[b]) == pytest.approx(float(sum(one.entropy() for one in each)), abs=1e-5)


def test_rows_of_heads_without_masks_are_read_whole():
    rows_BO = np.ones((2, 3))
    for head in (Categorical(2), Factored((2, 2), (0, 0)), Gaussian((-1.0,), (1.0,))):
        assert read(head, rows_BO) is rows_BO


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


def test_squashed_actions_have_the_density_of_the_transformed_distribution():
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(3, 50, 4, dtype=torch.float64)
    actions, log_prob = distribution.squashed(mean, log_std, noise)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    inside = actions.abs().amax(-1) < 0.999  # the library inverts tanh, which loses digits at the ends
    torch.testing.assert_close(log_prob[inside], squashed.log_prob(actions)[inside], rtol=1e-6, atol=1e-6)
    assert inside.sum() > 10


def test_densities_are_finite_where_tanh_saturates():
    mean = torch.tensor([[40.0, -40.0]], requires_grad=True)
    _, log_prob = distribution.squashed(mean, torch.zeros(1, 2), torch.zeros(1, 2))
    # -log(2 pi)/2 - 2 (log 2 - 40) for each side: softplus(80) is 80 for the negative one
    expected = 2 * (-0.5 * np.log(2 * np.pi) - 2 * np.log(2) + 80)
    torch.testing.assert_close(log_prob, torch.tensor([expected], dtype=torch.float32))
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -2.0]]))
