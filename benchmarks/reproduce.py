"""Do the papers' presets reach the papers' level? As published and mended, beside the classical policy.

    python benchmarks/reproduce.py                     CartPole, 40 and 10 seeds; writes results/reproduce/cartpole.*
    python benchmarks/reproduce.py --task minigrid     MiniGrid-Empty-5x5, 10 and 5 seeds
    python benchmarks/reproduce.py --quick             2 seeds, 12 updates; writes only with -o

The published curves are one run each (arXiv 2407.06103, authors' notebooks). Level: a smoothed return near the end of
theirs (900 of 1000; 0.90 of 0.955), for the mended CartPole Gymnasium's threshold (475 of 500). A run ends at the
level when its last smoothed return is there, and reaches it when any smoothed return is.
"""

import numpy as np
from lib import runs, setting
from matplotlib.figure import Figure

from distqtrl.report import figures

DIRECT = ("--generator.source", "direct")
CASES = {  # task -> case -> preset, flags, level, how many times the seeds
    "cartpole": {
        "as published": ("qtrl-cartpole", (), 900, 4),
        "classical, as published": ("qtrl-cartpole", DIRECT, 900, 1),
        "mended": ("qtrl-cartpole-500", (), 475, 1),
        "classical, mended": ("qtrl-cartpole-500", DIRECT, 475, 1),
    },
    "minigrid": {
        "as published": ("qtrl-minigrid", (), 0.9, 2),
        "classical, as published": ("qtrl-minigrid", DIRECT, 0.9, 2),
        "mended": ("qtrl-minigrid-corrected", (), 0.9, 1),
        "classical, mended": ("qtrl-minigrid-corrected", DIRECT, 0.9, 1),
    },
}


def main() -> None:
    args = runs.parser(__doc__).parse_args()
    jobs = {}
    for name, (preset, flags, _, times) in CASES[args.task].items():
        jobs[name] = runs.jobs(args, flags, preset=preset, times=times)
    everything, jobs = runs.by_case(jobs, args.runs)
    results = {
        **runs.facts(args, everything),
        "cases": {name: case(everything, each, *CASES[args.task][name][::2]) for name, each in jobs.items()},
    }
    setting.save(args, f"reproduce/{args.task}", results, table(results), figure)


def case(everything: dict, jobs: list[runs.Job], preset: str, level: float) -> dict:
    """How every seed ended."""
    whole = runs.whole(everything, jobs)
    window = whole[0].config.train.smoothing - 1
    smoothed = [run.columns["return_smoothed"][window:] for run in whole]
    return {
        "preset": preset,
        "level": level,
        **runs.scored(whole, jobs),
        "ends": sum(bool(s[-1] >= level) for s in smoothed),
        "reaches": sum(bool(s.max() >= level) for s in smoothed),
        "seeds": [job.seed for job in jobs],
        "end": [float(s[-1]) for s in smoothed],
        "best": [float(s.max()) for s in smoothed],
    }


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        f"# Do the papers' presets reach the papers' level? {results['task']}",
        "",
        *runs.line(results),
        "",
        "Smoothed return of training. Last tenth of episodes: IQM over seeds, 95 % bootstrap interval;",
        "greedy: 100 episodes with the last weights, median over seeds.",
        "",
        "| case | preset | level | end at it | ever reach it | last tenth, IQM | smallest to largest | greedy |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, c in results["cases"].items():
        cells = [f"{c['level']:g}", f"{c['ends']} of {c['of']}", f"{c['reaches']} of {c['of']}"]
        cells += runs.score_cells(c)
        lines.append(f"| {name} | `{c['preset']}` | {' | '.join(cells)} | {np.median(c['greedy']):.4g} |")
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """Every run's end."""
    drawn, (axes,) = figures.panels(1, lines=len(results["cases"]))
    figures.scores(axes, {name: c["scores"] for name, c in results["cases"].items()})
    axes.set_xlabel("mean return of the last tenth of episodes")
    axes.set_title("CartPole (ceiling 1000, mended 500)" if results["task"] == "cartpole" else runs.UNITS["minigrid"])
    return drawn


if __name__ == "__main__":
    main()
