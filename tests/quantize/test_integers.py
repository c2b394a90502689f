"""Real factors as dyadic ones: near, exact at powers of two, and refused where no shift expresses them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.config import UserError
from distqtrl.quantize.formats import Grid
from distqtrl.quantize.integers import MULTIPLIER_BITS, dyadic, input_scale


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
