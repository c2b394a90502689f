"""The noise scale's estimator, on gradients whose mean and covariance are known."""

import math

import numpy as np
import pytest

from distqtrl.algorithm import noise_scale
from distqtrl.algorithm.noise_scale import NoiseScale, facts, speedup, terms

N, SQUARE, TRACE = 12, 4.0, 90.0  # numbers of a gradient, |G|^2, tr(Sigma)
G_N = np.random.default_rng(7).normal(size=N)
G_N *= (SQUARE / (G_N @ G_N)) ** 0.5
DEVIATION_N = np.linspace(0.1, 2, N)
DEVIATION_N *= (TRACE / (DEVIATION_N @ DEVIATION_N)) ** 0.5
DRAWS = 4000


def drawn(rng, batches):
    """A rank's addend for each batch: its mean gradient times its share of the whole."""
    means = [G_N + DEVIATION_N / b**0.5 * rng.normal(size=N) for b in batches]
    return [mean_N * b / sum(batches) for mean_N, b in zip(means, batches, strict=True)]


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def measured(rng, scale, batches):
    """One reduction over ranks with these batches."""
    addends, total = drawn(rng, batches), float(sum(batches))
    parts = sum(scale.part(g_N, b, total) for g_N, b in zip(addends, batches, strict=True))
    scale.add(np.sum(addends, axis=0), parts, total)
    return scale.take()


@pytest.mark.parametrize("batches", [(8, 8), (1, 1, 1, 1), (3, 5, 40), (16,) * 8], ids=str)
def test_both_terms_are_unbiased_whatever_the_ranks_batches(rng, batches):
    rows = np.array([measured(rng, NoiseScale(), batches) for _ in range(DRAWS)])
    error = rows[:, 1:3].std(axis=0) / DRAWS**0.5
    assert np.all(np.abs(rows[:, 1:3].mean(axis=0) - (SQUARE, TRACE)) < 4 * error)
    assert np.all(error < (SQUARE, TRACE / 20))  # which says something
    assert np.all(rows[:, 2] >= 0)


def test_one_rank_takes_its_last_gradient_for_another_rank(rng):
    scale = NoiseScale()
    rows = np.array([measured(rng, scale, (16,)) for _ in range(DRAWS)])
    assert np.isnan(rows[0, 1:]).all()  # one gradient says nothing of its noise
    error = rows[1:, 1:3].std(axis=0) / DRAWS**0.5
    assert np.all(np.abs(rows[1:, 1:3].mean(axis=0) - (SQUARE, TRACE)) < 4 * 2**0.5 * error)  # neighbours share one


def test_a_rank_without_samples_is_no_part():
    g_N, nothing_N = G_N, np.zeros(N)
    parts = NoiseScale.part(g_N, 5, 5) + NoiseScale.part(nothing_N, 0, 5)
    assert parts.tolist() == [1.0, pytest.approx(5 * SQUARE)]
    scale = NoiseScale()
    scale.add(nothing_N, np.zeros(2), 5.0)  # none had any
    assert np.isnan(scale.take()[1:]).all()


def test_terms_are_averaged_before_their_ratio_is_taken(rng):
    scale = NoiseScale()
    rows = np.array([measured(rng, scale, (40, 40)) for _ in range(300)])
    expected = np.zeros((300, 2))
    for i, now in enumerate(rows[:, 1:3]):
        expected[i] = noise_scale.DECAY * expected[i - 1] * (i > 0) + (1 - noise_scale.DECAY) * now
    np.testing.assert_allclose(rows[1:, 3:], expected[1:], rtol=1e-12)
    assert np.isnan(rows[0, 3:]).all()  # an average of one
    told = facts(rows[-1:])
    assert told["noise_scale_smoothed"] == pytest.approx(expected[-1, 1] / expected[-1, 0])
    assert told["batch_share"] == pytest.approx(80 / told["noise_scale_smoothed"])
    assert told["noise_scale_smoothed"] == pytest.approx(TRACE / SQUARE, rel=0.5)


def test_what_is_not_positive_is_no_number():
    assert terms(2, squares=4.0, square=0.5, batch=2.0) == (-1.0, 3.0)
    row = np.array([[8.0, -0.1, 3.0, 0.0, 2.0]])
    assert facts(row) == {"noise_scale": None, "noise_scale_smoothed": None, "batch_share": None}
    assert facts(np.full((1, 5), np.nan)) == dict.fromkeys(noise_scale.FACTS)
    assert facts(np.array([[8.0, 1.0, 0.0, 1.0, 0.0]])) == {
        "noise_scale": 0.0,
        "noise_scale_smoothed": 0.0,
        "batch_share": None,  # without noise every batch is endlessly large
    }


def test_policies_that_step_together_are_one_gradient():
    first, second = np.array([6.0, 1.0, 10.0, 2.0, 30.0]), np.array([6.0, 3.0, 50.0, 2.0, 10.0])
    assert facts(np.array([first, second])) == {
        "noise_scale": 15.0,
        "noise_scale_smoothed": 10.0,
        "batch_share": 0.6,
    }


def test_the_speed_up_of_the_papers_formula():
    assert speedup(0.0, 8) == 1
    assert speedup(1e12, 8) == pytest.approx(8)
    assert speedup(28, 8) / 8 == pytest.approx(0.8, abs=0.01)
    assert speedup(62, 8) / 8 == pytest.approx(0.9, abs=0.01)
    assert math.isclose(speedup(3, 1), 1)


def test_a_restored_state_goes_on_alike(rng):
    one = NoiseScale()
    for _ in range(5):
        measured(rng, one, (4,))
    other = NoiseScale()
    other.restore(one.state())
    g_N = drawn(rng, (4,))[0]
    for scale in (one, other):
        scale.add(g_N, scale.part(g_N, 4, 4), 4.0)
    assert one.take().tobytes() == other.take().tobytes()
