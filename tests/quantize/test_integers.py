"""Real factors as dyadic ones: near, exact at powers of two, and refused where no shift expresses them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.quantize.aware import Quantizer
from distqtrl.quantize.calibrate import LOGITS
from distqtrl.quantize.formats import Grid
from distqtrl.quantize.integers import INPUT_BITS, MULTIPLIER_BITS, dyadic, input_scale
from distqtrl.quantize.program import converted


@given(st.lists(st.floats(1e-12, 1e4), min_size=1, max_size=5), st.floats(-1e6, 1e6))
def test_dyadic_numbers_are_near(factors, offset):
    multiplier_N, offset_N, shift = dyadic(np.array(factors), np.full(len(factors), offset))
    assert 0 <= multiplier_N.min() <= multiplier_N.max() <= 1 << MULTIPLIER_BITS
    assert np.abs(np.ldexp(multiplier_N, -shift) - factors).max() <= 2.0**-shift / 2
    assert np.abs(np.ldexp(offset_N, -shift) - offset).max() <= 2.0**-shift / 2


@pytest.mark.parametrize("exponent", [-30, -3, -1, 0, 1, 14, 15])
def test_powers_of_two_are_exact(exponent):
    multiplier_N, _, shift = dyadic(np.array([2.0**exponent]), np.zeros(1))
    assert (multiplier_N.tolist(), shift) == ([1 << MULTIPLIER_BITS], MULTIPLIER_BITS - exponent)


@pytest.mark.parametrize(("factor", "offset"), [(1e9, 0.0), (1.0, 1e16), (np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan)])
def test_what_no_shift_expresses_is_refused(factor, offset):
    with pytest.raises(UserError, match="cannot be written as multiplier"):
        dyadic(np.array([factor]), np.array([offset]))


def test_factors_of_zero_keep_the_offset():
    multiplier_N, offset_N, shift = dyadic(np.zeros(2), np.array([0.5, 3.25]))
    assert multiplier_N.tolist() == [0, 0]
    assert np.ldexp(offset_N, -shift).tolist() == [0.5, 3.25]


@pytest.mark.parametrize("end", [1.0, 32767.0, 32768.0, 2.0**-20, 1e12])
def test_observations_fit_their_integers(end):
    """The grid and a step more, unless the fraction's own limits forbid it."""
    (fraction,), _ = input_scale(Grid(1, np.array([0.0]), np.array([end / 2])))
    assert end * 2.0**fraction <= 32767 or fraction == -16
    assert end * 2.0 ** (fraction + 1) > 32767 or fraction == 30


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("far", [0.0, 0.3, 9.0, 100.0, 1e4])
@pytest.mark.parametrize("wide", [0.05, 1.0, 10.0])
def test_an_observation_that_hardly_moves_costs_the_others_nothing(bits, far, wide):
    """Levels of the others stay within one of the grid's, and nearly always are the grid's."""
    quantizer = Quantizer(Quantize(input_bits=bits), (4, 2, 2), "relu", LOGITS)
    mean_O, scale_O = np.array([0.0, 3.0, -0.5, far]), np.array([1.0, 0.2, 4.0, 1e4])
    grid = quantizer._input_grid(np.array([wide / 2 ** (bits - 1)]), mean_O, scale_O)
    obs_BO = mean_O + np.random.default_rng(0).normal(size=(2000, 4)) * [1, 5, 0.25, 0] * wide / 3
    fraction_O, scale = input_scale(grid)
    levels_BO, exact_BO = scale(converted(obs_BO, fraction_O, INPUT_BITS)), grid.levels(obs_BO)
    assert (levels_BO[:, 3] == levels_BO[0, 3]).all()
    assert np.abs(levels_BO - exact_BO).max() <= 1
    assert (levels_BO[:, :3] == exact_BO[:, :3]).mean() > 0.9
