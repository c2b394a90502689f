"""The statistics over seeds: SciPy's values, hand-computed ones, runs that never arrive, and too few seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distqtrl.errors import UserError
from distqtrl.report.statistics import (
    interval,
    iqm,
    median,
    on_grid,
    probability_of_improvement,
    verdict,
)

INF, NAN = np.inf, np.nan
X = np.random.default_rng(1).gamma(2.0, size=15)
Y = np.random.default_rng(2).gamma(2.0, size=12)
scores = st.lists(st.integers(-50, 50) | st.floats(-1e6, 1e6), min_size=1, max_size=30).map(np.array)
quick = settings(deadline=None, max_examples=60)


@quick
@given(x=scores)
def test_iqm_is_scipys_trimmed_mean(x):
    assert iqm(x) == pytest.approx(stats.trim_mean(x, 0.25), rel=1e-9, abs=1e-9)
    assert x.min() - 1e-6 <= iqm(x) <= x.max() + 1e-6


@quick
@given(x=scores, seed=st.integers(0, 99))
def test_order_does_not_matter(x, seed):
    mixed = np.random.default_rng(seed).permutation(x)
    assert (iqm(mixed), median(mixed)) == (iqm(x), median(x))
    assert probability_of_improvement(mixed, Y) == probability_of_improvement(x, Y)


def test_iqm_pools_tasks_and_forgets_a_quarter_of_failures():
    assert iqm(X.reshape(3, 5)) == iqm(X)
    assert iqm(np.array([1, 2, 3, INF])) == 2.5
    assert iqm(np.array([1, 2, INF, INF])) == INF


@quick
@given(x=scores)
def test_median_is_numpys(x):
    assert median(x) == pytest.approx(np.median(x), rel=1e-12)


@pytest.mark.parametrize(
    ("x", "expected"), [([INF, INF], INF), ([INF, 1], INF), ([1, 3, INF], 3), ([1, 3, INF, INF], INF), ([7], 7)]
)
def test_median_of_runs_that_never_arrive(x, expected):
    assert median(np.array(x)) == expected


@quick
@given(x=scores, y=scores)
def test_probability_of_improvement_is_mann_whitneys(x, y):
    p = probability_of_improvement(x, y)
    assert p == pytest.approx(stats.mannwhitneyu(x, y, method="asymptotic").statistic / (len(x) * len(y)))
    assert p + probability_of_improvement(y, x) == pytest.approx(1)


def test_two_that_never_arrive_are_a_tie():
    assert probability_of_improvement(np.array([INF, INF]), np.array([INF, 1])) == 0.75


@pytest.mark.parametrize("statistic", [iqm, median, lambda x: probability_of_improvement(x, X)])
@pytest.mark.parametrize("x", [[], [1, NAN, 2]])
def test_no_score_is_refused(statistic, x):
    with pytest.raises(UserError, match=f"{len(x)} scores, {len(x) // 3} of them NaN"):
        statistic(np.array(x))


@pytest.mark.parametrize(
    ("statistic", "samples"),
    [(iqm, (X,)), (probability_of_improvement, (X, Y)), (lambda x, y: iqm(x) / iqm(y), (X, Y))],
)
def test_interval_is_scipys_percentile_bootstrap(statistic, samples):
    theirs = stats.bootstrap(samples, statistic, vectorized=False, method="percentile", n_resamples=9999, rng=1)
    ours = interval(statistic, *samples, resamples=9999)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.15 * theirs.standard_error)  # 4 sigma
    assert ours[0] < statistic(*samples) < ours[1]
    narrow = interval(statistic, *samples, level=0.5)
    assert ours[0] < narrow[0] < narrow[1] < ours[1]


@settings(deadline=None, max_examples=25)
@given(x=st.lists(st.floats(-100, 100), min_size=6, max_size=20).map(np.array))
def test_interval_holds_the_statistic(x):
    low, high = interval(median, x, resamples=400)
    assert x.min() <= low <= median(x) <= high <= x.max()
    assert (low, high) == interval(median, x, resamples=400)  # the same at every call


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    found = [interval(iqm, rng.normal(3.0, size=20), resamples=400) for _ in range(200)]
    assert 0.9 <= np.mean([low <= 3 <= high for low, high in found]) <= 0.99


def test_strata_are_drawn_on_their_own():
    """A sample of one value keeps it whatever is drawn from the other; equal samples are not drawn in step."""
    ones, x = np.ones(3), np.array([0.0, 10.0, 20.0])
    assert interval(lambda a, _: a.mean(), ones, x) == (1, 1)
    low, high = interval(lambda a, b: (a - b).mean(), x, x)
    assert low < 0 < high


def test_rows_are_drawn_whole():
    x_RT = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert interval(lambda x: np.ptp(x[:, 1] - 10 * x[:, 0]), x_RT) == (0, 0)


def test_interval_of_runs_that_never_arrive_has_no_nan():
    some, none = np.array([10.0, 20, 30, INF, INF]), np.array([INF] * 5)
    assert interval(median, some) == (10, INF)
    assert interval(median, none) == (INF, INF)
    assert interval(lambda x, y: median(x) / median(y), some, some[:3]) == (0.5, INF)
    assert interval(lambda x, y: median(x) / median(y), none, none) == (-INF, INF)  # inf / inf: nothing is known


@pytest.mark.parametrize(("samples", "got"), [((X[:1],), 1), ((X, Y[:1]), 1), ((X[:0], Y), 0), ((X[None],), 1)])
def test_one_seed_is_refused(samples, got):
    with pytest.raises(UserError, match=f"an interval needs at least two seeds, got {got}"):
        interval(lambda *_: 0.0, *samples)


@quick
@given(steps=st.sets(st.integers(0, 40), min_size=1), grid=st.lists(st.integers(-5, 50)))
def test_on_grid_is_the_last_known(steps, grid):
    steps = sorted(steps)
    expected = [10 * max((step for step in steps if step <= t), default=steps[0]) for t in grid]
    assert on_grid(np.array(steps), 10 * np.array(steps), np.array(grid)).tolist() == expected


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.51, 1.0, "a is better than b (P = 0.60, 95 % interval 0.51 to 1.00)"),
        (0.5, 1.0, "a and b cannot be told apart (P = 0.60, 95 % interval 0.50 to 1.00)"),
        (0.1, 0.5, "a and b cannot be told apart (P = 0.60, 95 % interval 0.10 to 0.50)"),
        (0.1, 0.49, "a is worse than b (P = 0.60, 95 % interval 0.10 to 0.49)"),
    ],
)
def test_verdict(low, high, said):
    assert verdict("a", "b", 0.6, low, high) == said
