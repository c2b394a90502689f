"""Cases of runs beside each other: their curves, a figure of these, and a sentence for every pair of cases."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from distqtrl.report import figures
from distqtrl.report.statistics import interval, probability_of_improvement, spread, verdict
from lib import runs

FEWEST = 5  # seeds of a case; of 3 against 3 that do not differ, a resampled interval of 95 % decides one in five


def case(everything: dict, jobs: list[runs.Job]) -> dict:
    """Scores of every seed, and the smoothed returns at a hundred places of the budget."""
    whole = runs.whole(everything, jobs)
    at = spread(min(len(run.columns["update"]) for run in whole), 101)
    return {
        **runs.scored(whole, jobs),
        "updates": (at + 1).tolist(),
        "curves": [[round(x, 4) for x in run.columns["return_smoothed"][at].tolist()] for run in whole],
        "env_steps": [run.columns["env_steps"][at].astype(int).tolist() for run in whole],
    }


def verdicts(cases: dict, pairs: Iterable[tuple[str, str]], key: str = "scores") -> list[str]:
    """A sentence for every pair of cases that are there, whichever way it falls."""
    return [
        sentence(a, b, np.array(cases[a][key]), np.array(cases[b][key])) for a, b in pairs if a in cases and b in cases
    ]


def sentence(a: str, b: str, x: np.ndarray, y: np.ndarray) -> str:
    """Whether a, with the scores x, is better than b, with the scores y."""
    if min(len(x), len(y)) < FEWEST:
        return f"**{a}** ({len(x)} seeds) and **{b}** ({len(y)}): too few for a verdict"
    p, bounds = probability_of_improvement(x, y), interval(probability_of_improvement, x, y)
    return verdict(f"**{a}**", f"**{b}**", p, *bounds)


def figure(results: dict, x: str, y: str, xlabel: str, unit: str) -> Figure:
    """Smoothed returns, the cases' entries of the name y, over those of the name x."""
    drawn, (axes,) = figures.panels(1)
    for number, (name, c) in enumerate(results["cases"].items()):
        figures.band(axes, np.array(c[x]), np.array(c[y]), number, name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("smoothed return of training")
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    axes.set_title(f"{unit}\nIQM and 95 % interval, {len(results['seeds'])} seeds")
    return drawn
