"""What a benchmark counts: by hand, by Meyer et al.'s code, and by the passes of a circuit."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distqtrl.circuit import ansatz
from distqtrl.config.stages import Circuit
from distqtrl.report.statistics import interval

FILE = Path(__file__).parents[2] / "benchmarks" / "lib" / "effort.py"
spec = importlib.util.spec_from_file_location("effort", FILE)
effort = importlib.util.module_from_spec(spec)
spec.loader.exec_module(effort)
sample_complexity, first_reached = effort.sample_complexity, effort.first_reached

INF, NAN = np.inf, np.nan
quick = settings(deadline=None, max_examples=60)


# The fractions above 0.5 of these four runs: 0, 0.5, 0.25, 0.75, 0.75.
CURVES_RT = np.array([[0, 1, 0, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1], [NAN, 0.5, 0.5, 0.5, 0.9]])


@pytest.mark.parametrize(
    ("probability", "even", "uneven"),
    [(0.25, 10, 1), (0.5, 20, 1 + 6), (0.75, 30, 1 + 3 + 6), (0.76, INF, INF), (1.0, INF, INF)],
)
def test_sample_complexity_by_hand(probability, even, uneven):
    assert sample_complexity(CURVES_RT, np.arange(10, 60, 10), 0.5, probability) == even
    assert sample_complexity(CURVES_RT, np.array([1, 4, 10, 20, 50]), 0.5, probability) == uneven


def test_sample_complexity_that_falls_back_at_the_end_is_not_inf():
    assert sample_complexity(np.array([[0, 1, 0]]), np.array([0, 10, 25]), 0.5, 0.5) == 15


@quick
@given(seed=st.integers(0, 999), epsilon=st.floats(0, 1), delta=st.floats(0.01, 1))
def test_sample_complexity_is_meyers_on_an_even_grid(seed, epsilon, delta):
    data = np.sort(np.random.default_rng(seed).random((7, 9)), axis=1)
    theirs = 2000 * sum(sum(run[t] > 1 - epsilon for run in data) / 7 < delta for t in range(9))
    assume(theirs < 9 * 2000)
    assert sample_complexity(data, 2000 * np.arange(1, 10), 1 - epsilon, delta) == theirs


def test_first_reached():
    x = np.array([NAN, 1.0, 5.0, 2.0, 5.0])
    assert [first_reached(x, target) for target in (1, 5, 5.1, -INF)] == [1, 2, None, 1]
    assert first_reached(np.array([]), 0) is None


def test_runs_are_drawn_whole():
    x_RT = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert interval(lambda x: sample_complexity(x, np.array([5, 9]), 2.5, 0.5), x_RT) == (0, 5)


def test_traffic_is_one_pass_for_a_state_that_is_one_block():
    assert effort.traffic(ansatz.build(Circuit(ansatz="ry_cnot"), 10), "float64") == 3 * 2 * 8 * 2**10
    assert effort.traffic(ansatz.build(Circuit(), 10), "float32") == 3 * 2 * 2 * 4 * 2**10
