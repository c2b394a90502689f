"""Exact tests for a few runs a side: two-sided permutation tests, Holm's correction, equivalence by two of them."""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

MOST = 400_000  # assignments that are enumerated; more are sampled, always alike
ROUNDING = 1e-9


def permutation(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of the difference of means: the share of assignments to groups with one at least as large.

    >>> permutation(np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0]))
    0.1
    """
    differences, seen = _differences(x, y)
    return float(np.mean(np.abs(differences) >= abs(seen) - ROUNDING * (1 + abs(seen))))


def greater(x: np.ndarray, y: np.ndarray) -> float:
    """One-sided p of mean(x) > mean(y).

    >>> greater(np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0]))
    0.05
    """
    differences, seen = _differences(x, y)
    return float(np.mean(differences >= seen - ROUNDING * (1 + abs(seen))))


def equivalent(x: np.ndarray, y: np.ndarray, margin: float) -> float:
    """p of |mean(x) - mean(y)| < margin: the larger of two one-sided tests (Schuirmann 1987), y moved by the margin."""
    return max(greater(x, y - margin), greater(y, x - margin))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order, out, largest = np.argsort(p), [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        out[index] = largest
    return out


def _differences(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Differences of means under all assignments (or many), and the one that was seen."""
    pooled, n, m = np.concatenate([x, y]), len(x), len(y)
    if comb(n + m, n) <= MOST:
        chosen = np.array(list(combinations(range(n + m), n)))
    else:
        rng = np.random.default_rng(0)
        chosen = np.array([rng.permutation(n + m)[:n] for _ in range(MOST // 4)])
        chosen[0] = np.arange(n)
    sums = pooled[chosen].sum(axis=1)
    return sums / n - (pooled.sum() - sums) / m, float(x.mean() - y.mean())
