"""Sentences about any two groups of runs: which is better, or that it is undecided, and what so few seeds can say.

Two-sided permutation tests of the means (``exact``), Holm's correction over all pairs of a page.
"""

from collections.abc import Mapping
from itertools import combinations
from math import comb

import numpy as np

from distqtrl.report.exact import holm, permutation

LEVEL = 0.05
HOW = (
    "Every pair of groups: permutation test of the mean scores, exact up to 400,000 assignments, p after Holm's "
    "correction over {count}, decided below 0.05. Undecided is not equal: these seeds do not show which is better."
)


def verdicts(scores: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence for every pair, whichever way it falls; first, where no outcome could decide one, what could.

    >>> verdicts({"a": np.array([5.0, 6, 7, 8]), "b": np.array([1.0, 2, 3, 4])})
    ['a is better than b: 6.5 against 2.5, p = 0.029']
    """
    tested = _tested(scores)
    p = dict(zip(tested, holm([permutation(scores[a], scores[b]) for a, b in tested]), strict=True))
    out = []
    if tested and min(least(len(scores[a]), len(scores[b])) for a, b in tested) * len(tested) >= LEVEL:
        seeds = needed(len(tested))
        out.append(f"Nothing can be decided here: for {_count(len(tested))} take {seeds} seeds or more in every group.")
    return out + [_sentence(a, b, scores[a], scores[b], p.get((a, b))) for a, b in combinations(scores, 2)]


def least(n: int, m: int) -> float:
    """The smallest p that a permutation test of n against m seeds can give.

    >>> round(least(3, 3), 3), round(least(5, 5), 4)
    (0.1, 0.0079)
    """
    return (2 if n == m else 1) / comb(n + m, n)


def needed(comparisons: int) -> int:
    """The seeds in every group with which at least one of so many comparisons can be decided.

    >>> needed(1), needed(15)
    (4, 6)
    """
    return next(n for n in range(2, 100) if least(n, n) * comparisons < LEVEL)


def _count(number: int) -> str:
    return f"{number} comparison{'' if number == 1 else 's'}"


def how(scores: Mapping[str, np.ndarray]) -> str:
    """How the sentences about these groups came about."""
    return HOW.format(count=_count(len(_tested(scores))))


def _tested(scores: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """The pairs that can be compared."""
    return [(a, b) for a, b in combinations(scores, 2) if not _untestable(scores[a], scores[b])]


def _untestable(x: np.ndarray, y: np.ndarray) -> str:
    """Why two groups cannot be compared, if so."""
    if min(len(x), len(y)) < 2:
        return "a single seed says nothing about the next"
    return "" if np.isfinite([*x, *y]).all() else "a score is not finite"


def _sentence(a: str, b: str, x: np.ndarray, y: np.ndarray, p: float | None) -> str:
    seen = f"{x.mean():.4g} against {y.mean():.4g}"
    if p is None:
        return f"{a} and {b}: undecided, {_untestable(x, y)} ({seen})"
    if p < LEVEL:
        return f"{a} is {'better' if x.mean() > y.mean() else 'worse'} than {b}: {seen}, p = {p:.2g}"
    few = least(len(x), len(y))
    limit = f"; {len(x)} and {len(y)} seeds cannot decide, their smallest p is {few:.2g}" if few >= LEVEL else ""
    return f"{a} and {b}: undecided, {seen}, p = {p:.2g}{limit}"
