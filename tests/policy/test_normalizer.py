"""The normaliser: merged statistics equal those of everything seen at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.policy.normalizer import CLAMP, Normalizer


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, 49), max_size=6))
def test_merging_any_split_gives_the_statistics_of_everything(seed, cuts):
    x_NO = np.random.default_rng(seed).normal([0, 5, -100], [1, 0.1, 30], size=(50, 3))
    normalizer = Normalizer.fresh(3)
    for part in np.split(x_NO, sorted(cuts)):
        normalizer.merge(float(len(part)), normalizer.sums(part))
    assert normalizer.count == 50
    np.testing.assert_allclose(normalizer.mean_O, x_NO.mean(0), rtol=1e-10)
    np.testing.assert_allclose(np.sqrt(normalizer.m2_O / 50), x_NO.std(0), rtol=1e-8)


def test_apply_is_the_formula_in_float32():
    normalizer = Normalizer(4.0, np.array([1.0, -2.0]), np.array([16.0, 1.0]))  # deviations 2 and 0.5
    obs_TBO = np.float32([[[1, -2]], [[3, -1]]])
    out = normalizer.apply(obs_TBO)
    assert (out.shape, out.dtype) == ((2, 1, 2), np.float32)
    np.testing.assert_allclose(out, [[[0, 0]], [[1, 2]]], rtol=1e-6)


@pytest.mark.parametrize("m2", [0.0, 4.0])  # a constant observation must not divide by zero
def test_apply_clamps(m2):
    normalizer = Normalizer(4.0, np.zeros(1), np.array([m2]))
    assert normalizer.apply(np.float32([[1e6], [-1e6], [0]])).tolist() == [[CLAMP], [-CLAMP], [0]]


def test_a_fresh_one_leaves_observations_as_they_are():
    obs = np.float32([[1e6, -3]])
    assert Normalizer.fresh(2).apply(obs).tobytes() == obs.tobytes()


def test_its_tensors_make_it_again():
    normalizer = Normalizer(3.0, np.arange(2.0), np.ones(2))
    again = Normalizer.of({f"states.{name}": x for name, x in normalizer.tensors("S").items()}, "states.", "S")
    assert (again.count, again.mean_O.tolist(), again.m2_O.tolist()) == (3.0, [0.0, 1.0], [1.0, 1.0])
