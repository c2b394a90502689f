import itertools

import numpy as np
import pytest

from distqtrl import seeding
from distqtrl.seeding import PURPOSES


@pytest.mark.parametrize("purpose", PURPOSES)
def test_equal_keys_give_equal_numbers(purpose):
    a, b = (seeding.stream(7, purpose, 3, 5).random(100) for _ in range(2))
    assert np.array_equal(a, b)
    assert seeding.integer(7, purpose, 3, 5) == seeding.integer(7, purpose, 3, 5)


def test_different_keys_give_different_numbers():
    keys = list(itertools.product(range(4), PURPOSES, range(6), range(6)))
    assert len({seeding.stream(*key).integers(2**63) for key in keys}) == len(keys)
    assert len({seeding.integer(*key) for key in keys}) == len(keys)


def test_drawing_from_one_stream_leaves_the_others_alone():
    a, b = seeding.stream(0, "action", 0), seeding.stream(0, "action", 1)
    expected = seeding.stream(0, "action", 1).random(10)
    a.random(1000)
    assert np.array_equal(b.random(10), expected)


def test_streams_are_the_same_in_every_version():
    """A checkpoint saves no stream: a resumed run draws them anew, perhaps with another NumPy."""
    stream = seeding.stream(1, "episode", 2, 3)
    assert isinstance(stream.bit_generator, np.random.Philox)
    assert seeding.integer(1, "episode", 2, 3) == 1406059919
    assert stream.integers(2**63, size=2).tolist() == [2971137129648973832, 3270922848636766445]


def test_integers_fit_libraries_that_take_31_bits():
    values = [seeding.integer(0, "episode", index) for index in range(2000)]
    assert all(0 <= value < 2**31 for value in values)
    assert max(values) > 2**30


def test_unknown_purpose_is_refused():
    with pytest.raises(ValueError, match="not in tuple"):
        seeding.stream(0, "actions")
