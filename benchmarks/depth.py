"""Depth against ranks (Dist-QTRL's figure 1b): central L = 3, 7, 13, four ranks at L = 3, and the classical policy.

    python benchmarks/depth.py                     CartPole, 10 seeds; writes benchmarks/results/depth/cartpole.*
    python benchmarks/depth.py --task minigrid     MiniGrid-Empty-5x5, 5 seeds
    python benchmarks/depth.py --quick             2 seeds, 2 cases, 12 updates; writes only with -o

Every run has the preset's whole budget of updates; an update is one episode on every rank, so four ranks play four
times as many. The score of a run is the mean return of its last tenth of updates.
"""

from pathlib import Path

import numpy as np
from lib import runs, setting

from distqtrl.report import figures
from distqtrl.report.statistics import interval, probability_of_improvement, verdict

CASES = {
    "L = 3": (("--circuit.layers", "3"), 1),
    "L = 7": (("--circuit.layers", "7"), 1),
    "L = 13": (("--circuit.layers", "13"), 1),
    "4 ranks, L = 3": (("--circuit.layers", "3"), 4),
    "classical": (("--generator.source", "direct"), 1),
    "4 ranks, classical": (("--generator.source", "direct"), 4),
}
PAIRS = (  # the figure's two claims, and the control that it lacks
    ("L = 13", "L = 3"),
    ("L = 7", "L = 3"),
    ("4 ranks, L = 3", "L = 13"),
    ("4 ranks, L = 3", "L = 3"),
    ("classical", "L = 13"),
    ("4 ranks, classical", "classical"),
    ("4 ranks, classical", "4 ranks, L = 3"),
)


def main() -> None:
    args = runs.parser(__doc__).parse_args()
    names = ["L = 3", "4 ranks, L = 3"] if args.quick else list(CASES)
    cases = {name: runs.jobs(args, *CASES[name]) for name in names}
    everything = runs.done([job for jobs in cases.values() for job in jobs], args.runs)
    results = {
        **runs.facts(args, everything),
        "seeds": list(runs.seeds(args)),
        "cases": {name: case(everything, jobs) for name, jobs in cases.items()},
    }
    results["verdicts"] = verdicts(results["cases"], PAIRS)
    if folder := setting.save(args, f"depth/{args.task}", results, table(results)):
        figure(results, folder / f"depth/{args.task}")


def case(everything: dict, jobs: list[runs.Job]) -> dict:
    """Scores of every seed, and the smoothed returns at a hundred places of the budget."""
    whole = runs.whole(everything, jobs)
    last = min(len(run.columns["update"]) for run in whole) - 1
    at = np.unique(np.linspace(0, last, min(last + 1, 101)).astype(int))
    return {
        **runs.scored(whole, jobs),
        "updates": (at + 1).tolist(),
        "curves": [[round(x, 4) for x in run.columns["return_smoothed"][at].tolist()] for run in whole],
        "env_steps": [run.columns["env_steps"][at].astype(int).tolist() for run in whole],
    }


def verdicts(cases: dict, pairs: tuple[tuple[str, str], ...]) -> list[str]:
    """A sentence for every pair of cases, whichever way it falls."""
    out = []
    for a, b in pairs:
        if a in cases and b in cases:
            x, y = (np.array(cases[name]["scores"]) for name in (a, b))
            p, bounds = probability_of_improvement(x, y), interval(probability_of_improvement, x, y)
            out.append(verdict(f"**{a}**", f"**{b}**", p, *bounds))
    return out


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        f"# Depth and ranks: {runs.OF_DIST_QTRL[results['task']]}",
        "",
        *runs.line(results, f"{len(results['seeds'])} seeds."),
        "",
        "Score: mean return of the last tenth of updates. IQM over seeds with its 95 % bootstrap interval.",
        "",
        "| case | runs | score, IQM | smallest to largest | greedy policy, median |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, c in results["cases"].items():
        cells = [*runs.score_cells(c), f"{np.median(c['greedy']):.4g}"]
        lines.append(f"| {name} | {c['runs']} of {c['of']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"* {text}" for text in results["verdicts"])])


def figure(results: dict, path: Path) -> None:
    """Smoothed returns over the episodes of one rank."""
    with figures.styled():
        drawn, (axes,) = figures.panels(1)
        for number, (name, c) in enumerate(results["cases"].items()):
            figures.band(axes, np.array(c["updates"]), np.array(c["curves"]), number, name)
        axes.set_xlabel("episodes of one rank")
        axes.set_ylabel("smoothed return of training")
        drawn.legend(loc="outside right center", frameon=False, fontsize=8)
        axes.set_title(f"{runs.OF_DIST_QTRL[results['task']]}\nIQM and 95 % interval, {len(results['seeds'])} seeds")
        figures.save(drawn, path)


if __name__ == "__main__":
    main()
