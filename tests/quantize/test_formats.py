"""Bits, grids and weights: what is nearest, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.errors import UserError
from distqtrl.quantize.formats import Bits, bits, positive, spanning, weights

number = st.integers(1, 8)
per = st.sampled_from(["channel", "tensor"])


@pytest.mark.parametrize("text", ["core=0", "input=9", "core=x", "weights=3", "core", "core=3;input=4", ""])
def test_bits_that_are_none(text):
    with pytest.raises(UserError, match="--bits"):
        bits(text)


def test_bits():
    assert bits("output=6, core=3".replace(" ", "")) == Bits(core=3, input=8, output=6)


@given(number, st.integers(0, 2**32 - 1))
def test_a_grid_rounds_to_the_nearest_level(b, seed):
    rng = np.random.default_rng(seed)
    low_N = rng.normal(size=5)
    grid = spanning(low_N, low_N + rng.uniform(0.1, 3, 5), b)
    x_BN = low_N + (grid.values(np.full(5, grid.top)) - low_N) * rng.random((100, 5))
    assert np.abs(grid.values(grid.levels(x_BN)) - x_BN).max() <= grid.step_N.max() / 2 + 1e-12
    assert grid.levels(x_BN + 100).min() == grid.top
    assert grid.levels(x_BN - 100).max() == 0


def test_a_constant_has_level_0():
    grid = spanning(np.array([3.0]), np.array([3.0]), 8)
    assert grid.levels(np.array([[3.0], [99.0]])).tolist() == [[0], [0]]
    assert grid.values(np.array([[0]])).tolist() == [[3.0]]


@settings(deadline=None)
@given(number, per, st.integers(0, 2**32 - 1))
def test_weights_are_symmetric_and_near(b, per, seed):
    rng = np.random.default_rng(seed)
    weight_NK = rng.normal(size=(6, 9)) * rng.uniform(0.1, 10, (6, 1))
    ints_NK, step_N = weights(weight_NK, np.ones(9), b, per)
    top = max((1 << (b - 1)) - 1, 1)
    assert np.abs(ints_NK).max() <= top
    assert (ints_NK != 0).all() or b > 1
    assert len(set(step_N.tolist())) == 1 or per == "channel"
    whole = np.abs(weight_NK).max(1) if per == "channel" else np.full(6, np.abs(weight_NK).max())
    if b > 1:  # never worse than the grid that reaches to the greatest weight
        plain = np.round(weight_NK / (whole / top)[:, None]) * (whole / top)[:, None]
        assert ((ints_NK * step_N[:, None] - weight_NK) ** 2).sum() <= ((plain - weight_NK) ** 2).sum() + 1e-9


@given(number, per)
def test_positive_values_start_at_0(b, per):
    x_BN = np.random.default_rng(0).exponential(size=(200, 4)) * [1, 2, 0, 5]
    grid = positive(x_BN, b, per)
    assert (grid.low_N == 0).all()
    assert (grid.step_N > 0).all()  # also where nothing was recorded
