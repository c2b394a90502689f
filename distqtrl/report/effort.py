"""What a target costs: updates, steps and time until runs reach it, and how many times less of them more ranks need.

A run that never reaches the target needs inf of everything, and is never counted as if it had stopped there.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distqtrl.errors import UserError
from distqtrl.report.runs import Crossing, Group
from distqtrl.report.statistics import LEAST, interval, median

GREEDY, TRAINING = "validation_return", "return_smoothed"
WORDS = {GREEDY: "a greedy validation", TRAINING: "the smoothed return of training"}


@dataclass(frozen=True)
class Target:
    """A return, and the column that is compared with it."""

    value: float
    measure: str

    @property
    def words(self) -> str:
        """What counts as reached."""
        return f"first update at which {WORDS[self.measure]} is {self.value:g} or more"

    def crossings(self, group: Group) -> list[Crossing]:
        """The crossings of every whole run."""
        return [run.reached(self.value, self.measure) for run in group.whole]


def target(groups: Sequence[Group], value: float | None) -> Target | None:
    """What all groups are compared at: the value, or the target that their configurations agree on, or none.

    Greedy validations count where all runs have some, else training does.
    """
    runs = [run for group in groups for run in group.whole]
    if value is not None and not np.isfinite(value):
        raise UserError(f"--target {value}: give a return that can be reached")
    validated = all(np.isfinite(run.columns[GREEDY]).any() for run in runs)
    for stage, measure in (("evaluate", GREEDY), ("train", TRAINING)):
        told = {getattr(run.config, stage).target for run in runs}
        if value is None and len(told) == 1 and (measure == TRAINING or validated):
            value = told.pop()
    return None if value is None else Target(value, GREEDY if validated else TRAINING)


def rows(groups: Sequence[Group], aim: Target) -> list[list[str]]:
    """Group, how many reached it, and medians of updates, steps and seconds."""
    out = []
    for group in groups:
        found = aim.crossings(group)
        reached = sum(np.isfinite(each.updates) for each in found)
        middle = [_amount(median(np.array(column))) for column in zip(*found, strict=True)]
        out.append([group.label, f"{reached} of {len(found)}", *middle])
    return out


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in their ranks alone, fewest first."""
    found = defaultdict(list)
    for group in groups:
        rest = {name: value for name, value in group.key.items() if name != "ranks"}
        if group.key["ranks"]:
            found[json.dumps(rest)].append(group)
    return [sorted(family, key=lambda group: group.key["ranks"]) for family in found.values() if len(family) > 1]


def speedups(family: Sequence[Group], aim: Target | None) -> list[list[str]]:
    """Label, and how many times fewer updates and seconds to the target, and how many times the steps per second."""
    first, out = family[0], []
    for group in family[1:]:
        cells = ["no target"] * 2
        if aim is not None:
            both = [list(zip(*aim.crossings(each), strict=True)) for each in (first, group)]
            cells = [ratio(*(np.array(columns[at]) for columns in both)) for at in (0, 2)]
        pace = ratio(*(np.array([_pace(run.columns) for run in each.whole]) for each in (group, first)))
        out.append([f"{group.label} beside {first.label}", *cells, pace])
    return out


def ratio(x: np.ndarray, y: np.ndarray) -> str:
    """median(x) / median(y) in words, with its 95 % interval where both have seeds enough.

    >>> ratio(np.array([10.0, 12.0]), np.array([5.0])), ratio(np.array([10.0]), np.array([np.inf]))
    ('2.2', 'not reached')
    """
    if not np.isfinite([median(x), median(y)]).all() or not median(y):
        return "not reached"
    text = f"{median(x) / median(y):.2g}"
    if min(len(x), len(y)) < LEAST:
        return text
    low, high = interval(lambda a, b: median(a) / median(b) if median(b) else np.nan, x, y)
    bounds = [f"{bound:.2g}" if np.isfinite(bound) else "no bound" for bound in (low, high)]
    return f"{text} ({bounds[0]} to {bounds[1]})"


def _pace(columns: dict[str, np.ndarray]) -> float:
    """Environment steps per second of a whole run."""
    return float(columns["env_steps"][-1] / columns["wall_s"][-1]) if columns["wall_s"][-1] else np.inf


def _amount(x: float) -> str:
    return "not reached" if not np.isfinite(x) else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
