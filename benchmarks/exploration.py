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

import numpy as np
from lib import compared, runs, setting
from matplotlib.figure import Figure

from distqtrl.report import figures
from distqtrl.report.runs import Run
from distqtrl.report.statistics import interval, iqm, spread

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
    args = runs.parser(__doc__, dict.fromkeys(TASKS, 10)).parse_args()
    preset, common = TASKS[args.task]
    names = ["float", "nvfp4 + noise"] if args.quick else list(CASES)
    cases = {name: runs.jobs(args, (*common, *CASES[name]), preset=preset) for name in names}
    everything, cases = runs.by_case(cases, args.runs)
    results = {
        **runs.facts(args, everything),
        "seeds": list(runs.seeds(args)),
        "cases": {name: case(runs.whole(everything, jobs), len(jobs)) for name, jobs in cases.items()},
    }
    for what, key in (("Return", "scores"), ("Entropy", "entropy")):
        told = compared.verdicts(results["cases"], PAIRS, key)
        results.setdefault("verdicts", []).extend(f"{what}: {text}" for text in told)
    setting.save(args, f"exploration/{args.task}", results, table(results), figure)


def case(whole: list[Run], wanted: int) -> dict:
    """Scores and entropies of every seed, and their curves at a hundred places of the budget."""
    at = spread(min(len(run.columns["update"]) for run in whole), 101)
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


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        f"# Exploration with quantized, noisy actors: {UNITS[results['task']]}",
        "",
        *runs.line(results, f"{len(results['seeds'])} seeds."),
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


def figure(results: dict) -> Figure:
    """Smoothed return and entropy over environment steps."""
    drawn, axes = figures.panels(2)
    for number, (name, c) in enumerate(results["cases"].items()):
        steps_T = np.array(c["env_steps"])
        figures.band(axes[0], steps_T, np.array(c["returns"]), number, name)
        figures.band(axes[1], steps_T, np.array(c["entropies"]), number, name, shade=False)
    for each, title in zip(axes, ("smoothed return of training", "entropy"), strict=True):
        each.set_xlabel("environment steps")
        each.set_ylabel(title)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    axes[0].set_title(f"{UNITS[results['task']]}, IQM, {len(results['seeds'])} seeds")
    return drawn


if __name__ == "__main__":
    main()
