"""Policies of less than a tenth of their numbers, by soft actor-critic: Walker2d, and controls at the same settings.

    python benchmarks/tenth.py                          5 seeds a case; writes benchmarks/results/tenth/walker2d.*
    python benchmarks/tenth.py --cases circuit direct   some of the cases; the file's others stay as they are
    python benchmarks/tenth.py --quick                  a few steps of InvertedPendulum; writes only with -o

The protocol is benchmarks/results/tenth/protocol.md. A run keeps the policy of its best validation (20 greedy episodes
of seeds of their own), and 100 other episodes score it. Finished runs are kept, and what was stopped is resumed from
its last checkpoint; --cores of them at a time.
"""

import json
from argparse import Namespace

import numpy as np
from lib import compared, runs, setting
from matplotlib.figure import Figure

from distqtrl.config.sources import preset, with_flags
from distqtrl.report import figures
from distqtrl.report.describe import describe
from distqtrl.report.runs import Run
from distqtrl.report.statistics import interval

PRESET, GOAL = "walker2d-generated", 3500
CASES = {  # beside the preset, which is the first
    "circuit": {},
    "uniform": {"generator.source": "uniform"},
    "random subspace": {
        "generator.source": "random_subspace",
        "generator.numbers": "5378",
        "mapping.kind": "expansion",
        "mapping.hidden": "8 8",
        "mapping.chunk": "1",
        "algorithm.learning_rate": "0.01",
    },
    "direct": {"generator.source": "direct", "algorithm.learning_rate": "0.001"},
}
QUICK = runs.QUICK_SAC | {"mapping.chunk": "64", "policy.hidden": "16 16"}


def main() -> None:
    parser = runs.parser(__doc__, {"walker2d": 5})
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--cores", type=int, help="runs at a time; default as many as there are cores")
    args = parser.parse_args()
    flags = {name: CASES[name] for name in args.cases}
    if args.quick:
        flags = {name: CASES[name] | QUICK for name in ("circuit", "direct")}
    cases = {
        name: [runs.Job(PRESET, seed, 1, runs.words(more)) for seed in runs.seeds(args)] for name, more in flags.items()
    }
    everything = runs.done([job for jobs in cases.values() for job in jobs], args.runs, args.cores)
    known = earlier(args)
    for name, jobs in cases.items():
        if whole := runs.whole(everything, jobs):
            facts = runs.facts(args, {job: everything[job] for job in jobs})
            how = {"flags": flags[name], "run_commits": facts["run_commits"], "failed": facts["failed"]}
            known[name] = case(whole) | counts(flags[name]) | how
    results = {**runs.facts(args, everything), "cases": {name: known[name] for name in CASES if name in known}}
    for key in ("run_commits", "failed"):
        results[key] = sorted({line for c in known.values() for line in c[key]})
    names = list(results["cases"])
    results["verdicts"] = compared.verdicts(results["cases"], [(names[0], other) for other in names[1:]], "greedy")
    results["versions"] = setting.facts("torch", "gymnasium", "mujoco", "numpy")["versions"]
    setting.save(args, f"tenth/{args.task}", results, table(results), figure)


def earlier(args: Namespace) -> dict[str, dict]:
    """The cases that the file of results has; none with --quick."""
    place = (args.output or setting.RESULTS) / "tenth" / f"{args.task}.json"
    if args.quick or not place.exists():
        return {}
    found: dict[str, dict] = json.loads(place.read_text())["cases"]
    return found


def case(whole: list[Run]) -> dict:
    """What came out of a case's runs."""
    curves = [run.curve("env_steps", "validation_return") for run in whole]
    return {
        "seeds": [run.config.train.seed for run in whole],
        "greedy": [run.result["evaluation"]["mean"] for run in whole],
        "least": [run.result["evaluation"]["min"] for run in whole],
        "policy_env_steps": [run.result["policy_env_steps"] for run in whole],
        "total_steps": [int(run.result["env_steps"]) for run in whole],
        "core_minutes": [run.result["cpu_s"] / 60 for run in whole],
        "env_steps": [steps_T.astype(int).tolist() for steps_T, _ in curves],
        "validations": [np.round(validation_T, 1).tolist() for _, validation_T in curves],
    }


def counts(flags: dict[str, str]) -> dict[str, float]:
    """Trained parameters, the circuit's among them, its share of the Jacobian's energy, and the policy's weights."""
    facts = describe(with_flags(preset(PRESET), runs.fields(runs.words(flags))))
    return {key: facts[key] for key in ("total_parameters", "circuit_parameters", "source_share", "policy_weights")}


def table(results: dict) -> str:
    """The results as Markdown."""
    flags = {name: " ".join(runs.words(c["flags"])) for name, c in results["cases"].items()}
    lines = [
        "# A policy of less than a tenth of its numbers: Walker2d-v5 by soft actor-critic",
        "",
        *runs.line(results, "protocol.md says how."),
        "",
        f"`distqtrl train {PRESET}`, whose graph network is trained, with these flags:",
        "",
        *(f"* {name}: {f'`{words}`' if words else 'none'}" for name, words in flags.items()),
        "",
        "| case | weights | trained | angles | seeds | return, mean (95 % interval) | every seed | least | "
        "policy of step | core minutes |",
        "|---|--:|--:|--:|---|--:|---|--:|---|--:|",
    ]
    for name, c in results["cases"].items():
        scores = np.array(c["greedy"])
        low, high = interval(np.mean, scores)
        numbers = f"{c['policy_weights']:,} | {c['total_parameters']:,} | {c['circuit_parameters'] or 0:,}"
        seeds = ", ".join(f"{x:,.0f}" for x in scores)
        steps = ", ".join(f"{x:,}" for x in c["policy_env_steps"])
        lines.append(
            f"| {name} | {numbers} | {', '.join(map(str, c['seeds']))} | "
            f"{scores.mean():,.0f} ({low:,.0f} to {high:,.0f}) | {seeds} | {min(c['least']):,.0f} | {steps} | "
            f"{np.median(c['core_minutes']):.0f} |"
        )
    verdicts = [*(f"* {text}" for text in results["verdicts"]), "", runs.CAUTION] if results["verdicts"] else []
    return "\n".join([*lines, "", *verdicts])


def figure(results: dict) -> Figure:
    """Validations over environment steps."""
    drawn, (axes,) = figures.panels(1)
    for number, (name, c) in enumerate(results["cases"].items()):
        for seed, (steps, values) in enumerate(zip(c["env_steps"], c["validations"], strict=True)):
            axes.plot(steps, values, color=f"C{number}", lw=1, alpha=0.8, label="" if seed else name)
    axes.axhline(GOAL, color="0.5", lw=0.8, ls=":")
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("greedy validation return")
    axes.set_title(f"Walker2d-v5, a line per seed; dotted: the goal of {GOAL:,}")
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
