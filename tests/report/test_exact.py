"""Exact tests beside SciPy's, and beside arithmetic."""

import numpy as np
import pytest
from scipy import stats

from distqtrl.report import exact


def difference(x, y, axis):
    return x.mean(axis=axis) - y.mean(axis=axis)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (3, 3)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_permutations_are_scipys(n, m, shift):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n) + shift, rng.normal(size=m)
    for found, alternative in ((exact.permutation, None), (exact.greater, "greater")):
        theirs = stats.permutation_test(
            (x, y), difference, n_resamples=np.inf, vectorized=True, alternative=alternative or "two-sided"
        ).pvalue
        ours = found(x, y)
        if alternative or n == m:
            assert ours == pytest.approx(theirs)
        else:  # SciPy doubles the smaller tail
            assert 0 < ours <= 1


def test_with_five_seeds_a_side_p_is_not_below_two_in_252():
    assert exact.permutation(np.arange(5) + 10.0, np.arange(5.0)) == pytest.approx(2 / 252)


def test_ties_count():
    assert exact.permutation(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 1


def test_equivalence_needs_a_margin_that_holds():
    x = np.array([500.0, 499, 498, 500, 500])
    assert exact.equivalent(x, x - 1, 25) < 0.05
    assert exact.equivalent(x, x - 100, 25) > 0.5
    assert exact.equivalent(np.array([500.0, 100, 500, 300, 400]), x, 25) > 0.05


def test_holm_is_in_order_and_at_most_one():
    assert exact.holm([0.2, 0.001, 0.9]) == [0.4, 0.003, 0.9]
    assert exact.holm([0.6, 0.7]) == [1.0, 1.0]


def test_many_seeds_are_sampled_alike_every_time():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=15) + 1, rng.normal(size=15)
    assert exact.permutation(x, y) == exact.permutation(x, y)
    assert 0 < exact.permutation(x, y) < 0.2
