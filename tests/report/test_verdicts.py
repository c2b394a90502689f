"""Verdicts: words that follow from the numbers, undecided that is not equal, and what few seeds can say."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.report.exact import holm, permutation
from distqtrl.report.verdicts import how, least, needed, verdicts

FAR = {"a": np.arange(5) + 10.0, "b": np.arange(5.0)}


def test_five_seeds_that_never_overlap_decide():
    assert verdicts(FAR) == ["a is better than b: 12 against 2, p = 0.0079"]
    assert verdicts(dict(reversed(FAR.items()))) == ["b is worse than a: 2 against 12, p = 0.0079"]


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_cannot_decide_and_say_so(seeds):
    first, said = verdicts({name: x[:seeds] for name, x in FAR.items()})
    assert first == "Nothing can be decided here: for 1 comparison take 4 seeds or more in every group."
    assert said.startswith("a and b: undecided, ")
    assert said.endswith(f"; {seeds} and {seeds} seeds cannot decide, their smallest p is {least(seeds, seeds):.2g}")


def test_equal_runs_are_undecided():
    (said,) = verdicts({"a": np.full(5, 500.0), "b": np.full(5, 500.0)})
    assert said == "a and b: undecided, 500 against 500, p = 1"
    assert "Undecided is not equal" in how(FAR)
    assert "over 3 comparisons" in how(FAR | {"c": FAR["a"], "one": FAR["a"][:1]})  # not of the single seed


@pytest.mark.parametrize(
    ("x", "why"),
    [([1.0], "a single seed says nothing about the next"), ([1, np.inf, 2, 3, 4], "a score is not finite")],
)
def test_what_cannot_be_tested(x, why):
    (said,) = verdicts({"a": np.array(x), "b": FAR["b"]})
    assert said.startswith(f"a and b: undecided, {why} (")


@settings(deadline=None, max_examples=30)
@given(groups=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=2, max_size=4))
def test_every_pair_has_a_sentence_that_holms_p_bears_out(groups):
    scores = {f"g{number}": np.array(values, dtype=float) for number, values in enumerate(groups)}
    pairs = [(a, b) for a, b in combinations(scores, 2)]
    tested = [pair for pair in pairs if min(len(scores[name]) for name in pair) > 1]
    p = dict(zip(tested, holm([permutation(scores[a], scores[b]) for a, b in tested]), strict=True))
    sentences = [said for said in verdicts(scores) if not said.startswith("Nothing")]
    assert len(sentences) == len(pairs)
    if len(sentences) < len(verdicts(scores)):
        assert not any(value < 0.05 for value in p.values())
    for (a, b), said in zip(pairs, sentences, strict=True):
        decided = p.get((a, b), 1) < 0.05
        assert decided == ("undecided" not in said)
        if decided:
            assert f"{a} is {'better' if scores[a].mean() > scores[b].mean() else 'worse'} than {b}: " in said


@pytest.mark.parametrize("comparisons", [1, 3, 15, 45])
def test_so_many_seeds_are_needed(comparisons):
    n = needed(comparisons)
    assert least(n, n) * comparisons < 0.05 <= least(n - 1, n - 1) * comparisons
    assert permutation(np.arange(n) + 100.0, np.arange(n)) == pytest.approx(least(n, n))


def test_the_least_p_of_unequal_groups():
    assert permutation(np.array([9.0, 8, 7]), np.array([1.0, 2])) == least(3, 2) == 0.1
