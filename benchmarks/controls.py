"""Is it the circuit? The generated policy beside eight controls and the classical policy, same budget and seeds.

    python benchmarks/controls.py                     CartPole, 10 seeds; writes benchmarks/results/controls/cartpole.*
    python benchmarks/controls.py --task minigrid     MiniGrid-Empty-5x5, 5 seeds
    python benchmarks/controls.py --ranks 4 --cases circuit "frozen circuit"   on four ranks; writes *-4-ranks.*
    python benchmarks/controls.py --quick             2 seeds, 2 cases, 12 updates; writes only with -o

Score of a run: the mean return of its last tenth of episodes. IQM with a stratified bootstrap and probability of
improvement after rliable (arXiv 2108.13264); sample complexity after Meyer et al. (arXiv 2501.15893): environment
steps until a run's smoothed return is above 1 - epsilon of the ceiling with probability delta.
"""

import numpy as np
from lib import compared, runs, setting
from lib.effort import sample_complexity
from matplotlib.figure import Figure

from distqtrl.config.sources import preset, with_flags
from distqtrl.report import figures
from distqtrl.report.describe import describe
from distqtrl.report.statistics import interval, on_grid

GNN = ("--mapping.kind", "gnn", "--mapping.activation", "tanh", "--mapping.hidden", "10", "10")
CASES = {
    "circuit": (),
    "frozen circuit": ("--generator.source", "frozen_circuit"),
    "frozen random": ("--generator.source", "frozen_random"),
    "free vector": ("--generator.source", "free_vector"),
    "product circuit": ("--circuit.ansatz", "product"),
    "GNN, circuit": GNN,
    "GNN, free vector": (*GNN, "--generator.source", "free_vector"),
    "equal-parameter MLP": ("--generator.source", "equal_mlp"),
    "linear policy": ("--generator.source", "direct", "--policy.hidden", "none"),
    "direct": ("--generator.source", "direct"),
}
PAIRS = tuple(("circuit", name) for name in CASES if name != "circuit" and name != "GNN, circuit")
PAIRS += (("GNN, circuit", "GNN, free vector"), ("GNN, circuit", "circuit"))
CEILINGS = {"cartpole": 1000.0, "minigrid": 0.955}
EPSILONS, DELTA = (0.9, 0.5, 0.1), 0.5


def main() -> None:
    parser = runs.parser(__doc__)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    args = parser.parse_args()
    names = ["circuit", "frozen random"] if args.quick else args.cases
    cases = {name: runs.jobs(args, CASES[name], args.ranks) for name in names}
    everything, cases = runs.by_case(cases, args.runs)
    results = {
        **runs.facts(args, everything),
        "seeds": list(runs.seeds(args)),
        "ranks": args.ranks,
        "cases": {name: compared.case(everything, jobs) | counts(args.task, name) for name, jobs in cases.items()},
    }
    for c in results["cases"].values():
        c["complexity"] = [complexity(c, (1 - epsilon) * CEILINGS[args.task]) for epsilon in EPSILONS]
    results["verdicts"] = compared.verdicts(results["cases"], PAIRS)
    name = f"controls/{args.task}" + (f"-{args.ranks}-ranks" if args.ranks > 1 else "")
    setting.save(args, name, results, table(results), figure)


def counts(task: str, name: str) -> dict[str, int]:
    """Trained and effective parameters of a case."""
    facts = describe(with_flags(preset(runs.PRESETS[task]), runs.fields(CASES[name])))
    return {key: facts[key] for key in ("total_parameters", "effective_parameters", "policy_weights")}


def complexity(c: dict, threshold: float) -> dict:
    """Meyer et al.'s estimate on a common grid; a run's last value stands for what it did not play any more."""
    longest = max(steps[-1] for steps in c["env_steps"])
    grid = np.linspace(0, longest, 201)[1:]
    pairs = zip(c["env_steps"], c["curves"], strict=True)
    performance = np.array([on_grid(np.array(steps), np.array(curve), grid) for steps, curve in pairs])

    def estimate(rows: np.ndarray) -> float:
        return sample_complexity(rows, grid, threshold, DELTA)

    return {"steps": estimate(performance), "interval": interval(estimate, performance)}


def table(results: dict) -> str:
    """The results as Markdown."""
    ceiling = CEILINGS[results["task"]]
    lines = [
        f"# Is it the circuit? {title(results)}",
        "",
        *runs.line(results, f"{len(results['seeds'])} seeds."),
        "",
        "Score: mean return of the last tenth of episodes. IQM over seeds with its 95 % bootstrap interval. Sample",
        f"complexity: environment steps until a smoothed return above a share of {ceiling:g} has probability {DELTA}.",
        "",
        "| case | runs | trained | effective | policy weights | score, IQM | smallest to largest "
        + "".join(f"| steps to {(1 - epsilon) * ceiling:g} " for epsilon in EPSILONS)
        + "|",
        "|---|--:|--:|--:|--:|--:|--:|" + "--:|" * len(EPSILONS),
    ]
    for name, c in results["cases"].items():
        cells = [f"{c[key]:,}" for key in ("total_parameters", "effective_parameters", "policy_weights")]
        cells += [*runs.score_cells(c), *(_steps(x) for x in c["complexity"])]
        lines.append(f"| {name} | {c['runs']} of {c['of']} | {' | '.join(cells)} |")
    lines += ["", f"{len(results['verdicts'])} comparisons. {runs.CAUTION}"]
    return "\n".join([*lines, "", *(f"* {text}" for text in results["verdicts"])])


def title(results: dict) -> str:
    """The environment, and the ranks where there are several."""
    return runs.UNITS[results["task"]] + (f", {results['ranks']} ranks" if results["ranks"] > 1 else "")


def _steps(x: dict) -> str:
    low, high = x["interval"]
    if not np.isfinite(x["steps"]):
        return "never" if not np.isfinite(low) else f"never (from {low:,.0f})"
    return f"{x['steps']:,.0f} ({low:,.0f} to {high:,.0f})"


def figure(results: dict) -> Figure:
    """Scores of every case, every seed as a dot; and the learning curves."""
    drawn, (left, right) = figures.panels(2)
    figures.scores(left, {name: c["scores"] for name, c in results["cases"].items()})
    left.set_xlabel("mean return of the last tenth of episodes")
    for number, (name, c) in enumerate(results["cases"].items()):
        figures.band(right, np.array(c["updates"]), np.array(c["curves"]), number, name, shade=number == 0)
    right.set_xlabel("episodes of one rank")
    right.set_ylabel("smoothed return of training, IQM")
    right.legend(frameon=False, fontsize=7)
    drawn.suptitle(f"{title(results)}, {len(results['seeds'])} seeds")
    return drawn


if __name__ == "__main__":
    main()
