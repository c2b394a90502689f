"""What is chosen, from the returns of every seed alone: the rule of arXiv 2511.07046, or the front of return and cost.

A score is a seed's return, None where its training failed. A candidate is known when all its seeds are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, median, stdev

from distqtrl.search.grid import BITS, Candidate, Search, name

Scores = Sequence[float | None]
Known = Callable[[Candidate | None], Scores | None]  # None: not known yet


@dataclass(frozen=True)
class Step:
    """A step of the rule: what it varied, what it tried in order, what of it passed, and what it kept."""

    what: str
    tried: tuple[Candidate, ...]
    passing: tuple[Candidate, ...]
    kept: Candidate


@dataclass(frozen=True)
class Decision:
    """``needed`` is what must be known for the next decision; ``decided``: it was the last one.

    ``problem`` says why nothing is chosen, or why what is chosen was not chosen by the rule.
    """

    needed: tuple[Candidate | None, ...]
    decided: bool = False
    steps: tuple[Step, ...] = ()
    chosen: Candidate | None = None
    problem: str = ""


def finished(scores: Scores) -> list[float]:
    """The returns of the trainings that did not fail."""
    return [score for score in scores if score is not None]


def mean(scores: Scores) -> float | None:
    """The mean; None where a training failed, as a mean of the others would be too good."""
    return fmean(finished(scores)) if None not in scores else None


def deviation(scores: Scores) -> float | None:
    """The sample's deviation (n - 1); None for one seed and where a training failed."""
    return stdev(finished(scores)) if None not in scores and len(scores) > 1 else None


def middle(scores: Scores) -> float | None:
    """The median, where none failed."""
    return median(finished(scores)) if None not in scores else None


def least(baseline: Scores) -> float | None:
    """What a candidate's mean must reach: the mean in floating point minus one deviation; None where that is unknown.

    >>> least([1.0, 2.0, 3.0])
    1.0
    """
    average, spread = mean(baseline), deviation(baseline)
    return None if average is None or spread is None else average - spread


def passes(scores: Scores, baseline: Scores) -> bool:
    """Whether a candidate is as good as the policy in floating point; one with a training that failed is not."""
    reached, wanted = mean(scores), least(baseline)
    return reached is not None and wanted is not None and reached >= wanted


def median_seed(scores: Scores, seeds: Sequence[int]) -> int | None:
    """The seed of the median return, the lower of two, among the trainings that did not fail.

    >>> median_seed([3.0, 1.0, None, 2.0, 5.0], range(5))
    3
    """
    order = sorted((score, seed) for score, seed in zip(scores, seeds, strict=True) if score is not None)
    return order[(len(order) - 1) // 2][1] if order else None


def three_steps(search: Search, known: Known) -> Decision:
    """The smallest core bits that pass at the largest width, then the smallest width, then the smallest input bits.

    A step that nothing passes keeps its largest value. With ``stop_at_failure`` a step ends at the first failure.
    """
    kept, steps = Candidate(search.widths[0], search.core_bits[0], BITS, search.output_bits[0]), list[Step]()
    needed: list[Candidate | None] = [None]
    baseline = known(None)
    if baseline is not None and least(baseline) is None:
        return Decision((None,), True, problem="a training in floating point failed: there is nothing to compare with")
    for what, field in STEPS.items():
        tried, passing, unknown = list[Candidate](), list[Candidate](), False
        for value in getattr(search, "widths" if field == "width" else field):
            candidate = replace(kept, **{field: value})
            tried.append(candidate)
            needed.append(candidate)
            scores = known(candidate)
            if scores is None or baseline is None:
                unknown = True
                if search.stop_at_failure:
                    break
            elif passes(scores, baseline):
                passing.append(candidate)
            elif search.stop_at_failure:
                break
        if unknown:
            return Decision(_once(needed), steps=tuple(steps))
        kept = passing[-1] if passing else kept
        steps.append(Step(what, tuple(tried), tuple(passing), kept))
    if not finished(known(kept) or ()):
        return Decision(_once(needed), True, tuple(steps), problem=f"every training of {name(kept)} failed")
    nothing = [step.what for step in steps if not step.passing]
    problem = f"nothing passes the step of {' and '.join(nothing)}: the largest is kept" if nothing else ""
    return Decision(_once(needed), True, tuple(steps), kept, problem)


STEPS = {"core bits": "core_bits", "width": "width", "input bits": "input_bits"}


def every(search: Search) -> tuple[Candidate, ...]:
    """All combinations."""
    lists = (search.widths, search.core_bits, search.input_bits, search.output_bits)
    return tuple(Candidate(*values) for values in product(*lists))


def pareto(search: Search, known: Known, costs: Mapping[Candidate, float]) -> Decision:
    """All combinations, and of their front the cheapest that passes; where none does, the best."""
    candidates = every(search)
    needed = (None, *candidates)
    scores = {candidate: known(candidate) for candidate in needed}
    if any(value is None for value in scores.values()):
        return Decision(needed)
    means = {c: x for c in candidates if (x := mean(scores[c] or ())) is not None}
    if not means:
        return Decision(needed, True, problem="every candidate has a training that failed")
    if any(candidate not in costs for candidate in means):
        return Decision(needed)
    best = front({candidate: (costs[candidate], means[candidate]) for candidate in means})
    passing = [candidate for candidate in best if passes(scores[candidate] or (), scores[None] or ())]
    reason = "nothing on the front passes"
    if least(scores[None] or ()) is None:
        reason = "there is no deviation in floating point to compare with (one seed, or one that failed)"
    problem = "" if passing else f"{reason}: the best return is chosen"
    chosen = min(passing, key=lambda c: costs[c]) if passing else max(best, key=lambda c: means[c])
    return Decision(needed, True, (), chosen, problem)


def front(points: Mapping[Candidate, tuple[float, float]]) -> list[Candidate]:
    """The (cost, return) that no other beats in one without losing in the other, by cost; of equals, all."""

    def beaten(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c < cost or s > score) for c, s in points.values())

    kept = [candidate for candidate, point in points.items() if not beaten(*point)]
    return sorted(kept, key=lambda candidate: points[candidate])


def plan(search: Search) -> list[tuple[str, list[str], int]]:
    """What is trained, step by step: what varies, the policies (? is not decided yet), and the most runs."""
    num, output = len(search.seeds), search.output_bits[0]
    steps = [("floating point", [name(None)])]
    if search.mode == "pareto":
        steps.append(("all combinations", [name(candidate) for candidate in every(search)]))
    else:
        first = Candidate(search.widths[0], search.core_bits[0], BITS, output)
        steps.append(("core bits", [name(replace(first, core_bits=bits)) for bits in search.core_bits]))
        steps.append(("width", [f"w{width}-c?-i{BITS}-o{output}" for width in search.widths[1:]]))
        steps.append(("input bits", [f"w?-c?-i{bits}-o{output}" for bits in search.input_bits if bits != BITS]))
    return [(what, names, len(names) * num) for what, names in steps]


def _once(candidates: Sequence[Candidate | None]) -> tuple[Candidate | None, ...]:
    return tuple(dict.fromkeys(candidates))
