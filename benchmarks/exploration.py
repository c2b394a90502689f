"""Does quantization noise help exploration (QeRL, arXiv 2510.11696)? Entropy, return and success, with and without.

    python benchmarks/exploration.py                     FrozenLake 8x8 (a sparse reward), 10 seeds
    python benchmarks/exploration.py --task pendulum     Pendulum-v1 (a dense one)
    python benchmarks/exploration.py --quick             2 seeds, 2 cases, 12 updates; writes only with -o

PPO on direct policies whose actors' weights are rounded (nvfp4) or not, with or without QeRL's noise, which falls from
1e-2 to 1e-4 in ten stages (the first is silent), or a tenfold of it. The learner stays in floating point, and it is the
learner's policy that is evaluated. The score is its greedy mean return over 100 episodes, which is the share of
successes on FrozenLake. Entropy is the acting policy's at the states it visits, the mean over the whole training; a
Gaussian's depends on its deviation alone.
"""

from pathlib import Path

import numpy as np
from lib import runs, setting

from distqtrl.report import figures
from distqtrl.report.runs import Run
from distqtrl.report.statistics import interval, iqm, probability_of_improvement, verdict

COMMON = ("--generator.source", "direct", "--evaluate.every", "none", "--evaluate.target", "none")
TASKS = {
    "frozenlake": ("frozenlake", (*COMMON, "--environment.kwargs", '{"map_name": "8x8"}', "--train.steps", "100000")),
    "pendulum": ("pendulum", (*COMMON, "--train.steps", "50000")),
}
UNITS = {"frozenlake": "FrozenLake-v1 8x8, slippery", "pendulum": "Pendulum-v1"}
NVFP4 = ("--rollout.precision", "nvfp4", "--rollout.pad", "true")
NOISE = ("--rollout.noise", "exponential")
STRONG = ("--rollout.noise_start", "0.1", "--rollout.noise_end", "0.001")
CASES = {
    "float": (),
    "float + noise": NOISE,
    "nvfp4": NVFP4,
    "nvfp4 + noise": (*NVFP4, *NOISE),
    "nvfp4 + tenfold noise": (*NVFP4, *NOISE, *STRONG),
}
PAIRS = (
    ("float + noise", "float"),
    ("nvfp4", "float"),
    ("nvfp4 + noise", "nvfp4"),
    ("nvfp4 + tenfold noise", "nvfp4"),
    ("nvfp4 + noise", "float"),
)


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--task", choices=TASKS, default="frozenlake")
    parser.add_argument("--seeds", type=int, help="how many; default 10")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=setting.ROOT / "benchmarks" / "runs", help="where runs are kept")
    args = parser.parse_args()
    args.seeds = args.seeds or (2 if args.quick else 10)
    preset, common = TASKS[args.task]
    names = ["float", "nvfp4 + noise"] if args.quick else list(CASES)
    cases = {name: runs.jobs(args, (*common, *CASES[name]), preset=preset) for name in names}
    everything = runs.done([job for jobs in cases.values() for job in jobs], args.runs)
    results = {
        **runs.facts(args, everything),
        "seeds": args.seeds,
        "cases": {name: case(runs.whole(everything, jobs), len(jobs)) for name, jobs in cases.items()},
    }
    results["verdicts"] = verdicts(results["cases"])
    if folder := setting.save(args, f"exploration/{args.task}", results, table(results)):
        figure(results, folder / f"exploration/{args.task}")


def case(whole: list[Run], wanted: int) -> dict:
    """Scores and entropies of every seed, and their curves at a hundred places of the budget."""
    last = min(len(run.columns["update"]) for run in whole) - 1
    at = np.unique(np.linspace(0, last, min(last + 1, 101)).astype(int))
    scores = np.array([run.result["evaluation"]["mean"] for run in whole])
    return {
        **{"runs": len(whole), "of": wanted, "scores": scores.tolist()},
        **{"iqm": iqm(scores), "interval": interval(iqm, scores)},
        "entropy": [float(run.columns["acting_entropy"].mean()) for run in whole],
        "noisy_layers": float(max(np.nan_to_num(run.columns["noisy_layers"]).max() for run in whole)),
        "env_steps": whole[0].columns["env_steps"][at].astype(int).tolist(),
        "returns": [_rounded(run.columns["return_smoothed"][at]) for run in whole],
        "entropies": [_rounded(run.columns["acting_entropy"][at]) for run in whole],
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(x, 4) for x in values.tolist()]


def verdicts(cases: dict) -> list[str]:
    """A sentence on the score and one on the entropy for every pair of cases, whichever way it falls."""
    out = []
    for what in ("scores", "entropy"):
        for a, b in PAIRS:
            if a in cases and b in cases:
                x, y = (np.array(cases[name][what]) for name in (a, b))
                p, bounds = probability_of_improvement(x, y), interval(probability_of_improvement, x, y)
                out.append(
                    f"{'Return' if what == 'scores' else 'Entropy'}: {verdict(f'**{a}**', f'**{b}**', p, *bounds)}"
                )
    return out


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        f"# Exploration with quantized, noisy actors: {UNITS[results['task']]}",
        "",
        *runs.line(results, f"{results['seeds']} seeds."),
        "",
        "Greedy return of the learner's policy over 100 episodes, IQM over seeds with its 95 % bootstrap interval.",
        "",
        "| actors | runs | greedy return, IQM | smallest to largest | actors' entropy, mean | layers with noise |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, c in results["cases"].items():
        cells = [*runs.score_cells(c), f"{np.mean(c['entropy']):.4f}", f"{c['noisy_layers']:.0f}"]
        lines.append(f"| {name} | {c['runs']} of {c['of']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"* {text}" for text in results["verdicts"]), "", runs.CAUTION])


def figure(results: dict, path: Path) -> None:
    """Smoothed return and entropy over environment steps."""
    with figures.styled():
        drawn, axes = figures.panels(2)
        for number, (name, c) in enumerate(results["cases"].items()):
            steps_T = np.array(c["env_steps"])
            figures.band(axes[0], steps_T, np.array(c["returns"]), number, name)
            figures.band(axes[1], steps_T, np.array(c["entropies"]), number, name, shade=False)
        for each, title in zip(axes, ("smoothed return of training", "entropy"), strict=True):
            each.set_xlabel("environment steps")
            each.set_ylabel(title)
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
        axes[0].set_title(f"{UNITS[results['task']]}, IQM, {results['seeds']} seeds")
        figures.save(drawn, path)


if __name__ == "__main__":
    main()
