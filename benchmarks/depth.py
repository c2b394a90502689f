"""Depth against ranks (Dist-QTRL's figure 1b): central L = 3, 7, 13, four ranks at L = 3, and the classical policy.

    python benchmarks/depth.py                     CartPole, 10 seeds; writes benchmarks/results/depth/cartpole.*
    python benchmarks/depth.py --task minigrid     MiniGrid-Empty-5x5, 5 seeds
    python benchmarks/depth.py --quick             2 seeds, 2 cases, 12 updates; writes only with -o

Every run has the preset's whole budget of updates; an update is one episode on every rank, so four ranks play four
times as many. The score of a run is the mean return of its last tenth of updates.
"""

import numpy as np
from lib import compared, runs, setting
from matplotlib.figure import Figure

CASES = {
    "L = 3": (("--circuit.layers", "3"), 1),
    "L = 7": (("--circuit.layers", "7"), 1),
    "L = 13": (("--circuit.layers", "13"), 1),
    "4 ranks, L = 3": (("--circuit.layers", "3"), 4),
    "classical": (("--generator.source", "direct"), 1),
    "4 ranks, classical": (("--generator.source", "direct"), 4),
}
QUICK = {"L = 3": CASES["L = 3"], "2 ranks, L = 3": (("--circuit.layers", "3"), 2)}
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
    every = QUICK if args.quick else CASES
    cases = {name: runs.jobs(args, *case) for name, case in every.items()}
    everything, cases = runs.by_case(cases, args.runs)
    results = {
        **runs.facts(args, everything),
        "seeds": list(runs.seeds(args)),
        "cases": {name: compared.case(everything, jobs) for name, jobs in cases.items()},
    }
    results["verdicts"] = compared.verdicts(results["cases"], PAIRS)
    setting.save(args, f"depth/{args.task}", results, table(results), figure)


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


def figure(results: dict) -> Figure:
    """Smoothed returns over the episodes of one rank."""
    return compared.figure(results, "updates", "curves", "episodes of one rank", runs.OF_DIST_QTRL[results["task"]])


if __name__ == "__main__":
    main()
