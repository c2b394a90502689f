"""The replay's rings hold the last transitions of every environment, and move with their environments."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.algorithm.replay import Replay


def filled(num, capacity, chunks):
    """A replay whose every number says which environment and step it is of, and the number of steps."""
    replay, t = Replay(num, capacity, 2, 1), 0
    for length in chunks:
        number_TB = 100 * np.arange(num) + np.arange(t, t + length)[:, None]
        obs = np.stack([number_TB, -number_TB], -1)
        replay.add(obs, number_TB[..., None], number_TB, number_TB % 2 == 1, obs + 0.5)
        t += length
    return replay, t


@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_samples_are_of_the_last_transitions(num, chunks):
    replay, steps = filled(num, 7, chunks)
    every = [np.linspace(0, 1, 50, endpoint=False) for _ in range(num)]
    batch = replay.sample(every)
    expected = {100 * b + t for b in range(num) for t in range(max(0, steps - 7), steps)}
    assert set(batch.rewards_N.astype(int)) == expected
    np.testing.assert_array_equal(batch.obs_NO, np.stack([batch.rewards_N, -batch.rewards_N], -1))
    np.testing.assert_array_equal(batch.actions_NA[:, 0], batch.rewards_N)
    np.testing.assert_array_equal(batch.next_obs_NO, batch.obs_NO + 0.5)
    np.testing.assert_array_equal(batch.terminated_N, batch.rewards_N % 2 == 1)
    np.testing.assert_array_equal(batch.rewards_N // 100, np.repeat(np.arange(num), 50))  # every one's share


def test_the_last_steps_are_found_where_the_ring_has_turned():
    replay, _ = filled(2, 5, [3, 4])
    assert sorted(replay.last(4)[:, 0].astype(int)) == [3, 4, 5, 6, 103, 104, 105, 106]


def test_environments_take_their_transitions_along():
    whole, _ = filled(3, 5, [7])
    part, _ = filled(2, 5, [1])
    part.restore(whole.state(), [2, 0])
    part.add(*(np.full((1, 2, *shape), 9) for shape in ((2,), (1,), ())), np.zeros((1, 2), bool), np.full((1, 2, 2), 9))
    whole.add(
        *(np.full((1, 3, *shape), 9) for shape in ((2,), (1,), ())), np.zeros((1, 3), bool), np.full((1, 3, 2), 9)
    )
    for name, expected in whole.state().items():
        np.testing.assert_array_equal(part.state()[name], expected[[2, 0]], err_msg=name)
