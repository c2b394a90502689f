"""Advantages against their definition: A_t = sum over l of (gamma lambda)^l delta_{t+l}, to the episode's end."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distqtrl.algorithm.advantage import advantages

ENDS = arrays.arrays(np.int8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 3))
RATES = st.sampled_from([0.0, 0.5, 0.97, 1.0])


def from_definition(rewards, values, next_values, terminated, truncated, gamma, lam):
    adv = np.zeros_like(rewards)
    for t, b in np.ndindex(rewards.shape):
        for u in range(t, len(rewards)):
            bootstrap = 0 if terminated[u, b] else gamma * next_values[u, b]
            adv[t, b] += (gamma * lam) ** (u - t) * (rewards[u, b] + bootstrap - values[u, b])
            if terminated[u, b] or truncated[u, b]:
                break
    return adv


@settings(deadline=None, max_examples=60)
@given(ends=ENDS, seed=st.integers(0, 1000), gamma=RATES, lam=RATES)
def test_advantages_equal_their_definition(ends, seed, gamma, lam):
    numbers = np.random.default_rng(seed).normal(size=(3, *ends.shape))
    arguments = (*numbers, ends & 1 == 1, ends & 2 == 2, gamma, lam)
    np.testing.assert_allclose(advantages(*arguments), from_definition(*arguments), rtol=1e-12, atol=1e-12)


def test_what_follows_a_terminated_step_does_not_matter():
    zero, no, end = np.zeros((2, 1)), np.zeros((2, 1), dtype=bool), np.array([[True], [False]])
    unknown = np.array([[1e9], [0.0]])
    assert advantages(zero, zero, unknown, end, no, 0.9, 0.9).tolist() == [[0], [0]]
    assert advantages(zero, zero, unknown, no, end, 0.9, 0.9).tolist() == [[0.9 * 1e9], [0]]
