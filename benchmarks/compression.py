"""Return against trained numbers: generated policies, their controls and the direct policy, every arm tuned alike.

    python benchmarks/compression.py                     CartPole-v1; writes benchmarks/results/compression/cartpole.*
    python benchmarks/compression.py --task hopper       or another of TASKS: walker2d, cartpole-large, ...
    python benchmarks/compression.py --task hopper --cores 1 --arms "random subspace" direct     a part of it
    python benchmarks/compression.py --task hopper --rate 0.003 --arms "random subspace"     not at the tuned rate
    python benchmarks/compression.py --quick             2 arms, 2 seeds, 12 updates; writes only with -o

The protocol is benchmarks/results/compression/protocol.md. A run that ends is a line of runs-TASK.jsonl there; a second
start, on any machine that has the file, does what is missing. Runs of several machines: join their lines.
"""

import argparse
from dataclasses import dataclass
from functools import cache

import numpy as np
from lib import runs, setting
from lib.arms import ARMS
from lib.kept import Kept
from matplotlib.figure import Figure

from distqtrl.config.sources import preset, with_flags
from distqtrl.errors import UserError
from distqtrl.generator.generator import Generator
from distqtrl.report import figures
from distqtrl.report.exact import equivalent, holm, permutation
from distqtrl.report.statistics import interval, iqm
from distqtrl.training.plan import plan

TUNING_SEEDS, FIRST_SEED = (101, 102), 201
FIRST = "circuit, fixed graph network"  # what is compared with everything
MAPPING_RATE = {"circuit, trained graph network": 0.1}  # its learning rate, as a part of the angles'
TRAINS_MAPPING = {*MAPPING_RATE, "frozen random, trained graph network", "chunked hypernetwork"}
WHAT = ("arm", "size", "rate", "seed", "steps")  # what tells a run from all others of its task
MARGIN = 0.05  # of the direct policy's return: what counts as equal


@dataclass(frozen=True)
class Task:
    """One environment: its budget, when it is looked at, and what is tried."""

    unit: str
    steps: int
    every: int  # updates between two greedy evaluations
    solved: float  # a greedy return
    rates: tuple[float, ...]
    sizes: tuple[int, ...]
    tuned_at: int
    seeds: int
    tuning_steps: int
    flags: tuple[str, ...] = ()
    budget: str = "train.steps"  # what ``steps`` counts
    preset: str = ""  # whose settings are used otherwise; "": the one of the task's name


SMALL = (0.003, 0.01, 0.03, 0.1)
LARGE = (0.0003, 0.001, 0.003, 0.01)
EIGHT = ("--environment.local_num", "8")
WIDE = ("--policy.hidden", "64", "64")
WIDEST = ("--policy.hidden", "256", "256")
PENDULUMS = {"rates": LARGE, "sizes": (670,), "tuned_at": 670, "seeds": 5, "tuning_steps": 102_400}
TASKS = {
    "cartpole": Task("CartPole-v1", 61_440, 16, 475, SMALL, (16, 32, 64, 128, 256, 512), 128, 10, 61_440, EIGHT),
    "acrobot": Task("Acrobot-v1", 122_880, 12, -100, SMALL, (32, 128), 128, 10, 122_880),
    "pendulum": Task("Pendulum-v1", 153_600, 30, -250, SMALL, (32, 128), 128, 10, 153_600),
    "hopper": Task("Hopper-v5", 499_712, 61, 3000, LARGE, (512,), 512, 5, 149_504),
    "walker2d": Task("Walker2d-v5", 499_712, 61, 3500, LARGE, (512,), 512, 5, 149_504, WIDE),
    "walker2d-sac": Task("Walker2d-v5, soft actor-critic", 249_600, 52, 3500, (0.001, 0.003), (512,), 512, 5, 59_520),
    "qtrl-cartpole": Task(
        "CartPole-v1 without its end at 500 steps, REINFORCE",
        1000,
        100,
        900,
        (0.001, 0.003, 0.01, 0.03),
        (512,),
        512,
        10,
        1000,
        budget="train.updates",
    ),
    "qtrl-cartpole-ppo": Task(
        "CartPole-v1 without its end at 500 steps, 1,000 episodes",
        250,
        25,
        900,
        SMALL,
        (512,),
        512,
        10,
        250,
        (
            *("--environment.max_episode_steps", "1000"),
            *("--algorithm.rollout", "episodes"),
            *("--train.steps", "none"),
        ),
        budget="train.updates",
        preset="cartpole",
    ),
    "halfcheetah": Task("HalfCheetah-v5", 499_712, 61, 3000, LARGE, (512,), 512, 5, 149_504, WIDE),
    "cartpole-large": Task(
        "CartPole-v1, 67,586 weights",
        61_440,
        16,
        475,
        SMALL,
        (670,),
        670,
        10,
        61_440,
        (*WIDEST, *EIGHT),
        preset="cartpole",
    ),
    "hopper-large": Task(
        "Hopper-v5, 69,635 weights",
        499_712,
        61,
        3000,
        (0.0003, 0.001, 0.003),
        (690,),
        690,
        5,
        249_856,
        WIDEST,
        preset="hopper",
    ),
    "inverted-pendulum-large": Task(
        "InvertedPendulum-v5, 67,329 weights",
        102_400,
        10,
        950,
        flags=WIDEST,
        preset="inverted-pendulum",
        **PENDULUMS,
    ),
    "inverted-double-pendulum-large": Task(
        "InvertedDoublePendulum-v5, 68,609 weights",
        102_400,
        10,
        9000,
        flags=(*WIDEST, "--environment.id", "InvertedDoublePendulum-v5"),
        preset="inverted-pendulum",
        **PENDULUMS,
    ),
}


def main() -> None:
    parser = runs.parser(__doc__, {name: task.seeds for name, task in TASKS.items()})
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--sizes", nargs="+", type=int, help="numbers that may be trained; default: the task's")
    parser.add_argument("--cores", type=int, help="runs at a time; default: one per core")
    parser.add_argument("--rate", type=float, help="of all arms, in place of the tuned ones; results beside the others")
    args = parser.parse_args()
    args.first_seed = args.first_seed or FIRST_SEED
    task = TASKS[args.task]
    if args.quick:
        args.arms, args.sizes = [FIRST, "random subspace"], [task.tuned_at]
    args.arms = [arm for arm in args.arms if sizes(args, task, arm)]
    kept = Lines(args)
    rates = {arm: args.rate or tuned(args, task, kept, arm) for arm in args.arms}
    cells = [(arm, size) for arm in args.arms for size in sizes(args, task, arm)]
    wanted = [kept.made(arm, size, rates[arm], seed, task.steps) for seed in runs.seeds(args) for arm, size in cells]
    kept.complete(wanted)
    results = {
        **setting.facts(*runs.PACKAGES),
        "task": args.task,
        "seeds": list(runs.seeds(args)),
        "rates": rates,
        "failed": kept.failed,
        "cells": [cell for arm, size in cells if (cell := summary(args, task, kept, arm, size, rates[arm]))],
    }
    results["verdicts"] = verdicts(results, task)
    name = args.task if args.rate is None else f"{args.task}-rate{args.rate:g}"
    setting.save(args, f"compression/{name}", results, table(results, task), figure)


def sizes(args: argparse.Namespace, task: Task, arm: str) -> list[int]:
    """Those at which the arm exists; the direct policy has one."""
    if arm == "direct":
        return [task.tuned_at]
    found = [size for size in args.sizes or task.sizes if trainable(args, task, arm, size)]
    return list({counts(args.task, arm, size): size for size in found}.values())  # the largest of those that are alike


def trainable(args: argparse.Namespace, task: Task, arm: str, size: int) -> bool:
    """Whether the arm can train so few numbers."""
    if ARMS[arm](size) is None:
        return False
    try:
        return counts(args.task, arm, size)[0] <= size
    except UserError:
        return False


@cache
def counts(name: str, arm: str, size: int) -> tuple[int, int]:
    """Trained numbers and policy weights of an arm."""
    task = TASKS[name]
    budget = (f"--{task.budget}", str(task.steps))
    words = (*flags(name, task, arm, size, task.rates[0]), *budget, "--generator.whiten", "false")
    config = with_flags(preset(base(name)), runs.fields(words))
    (spec,) = plan(config).specs
    generator = Generator(config, spec.layers(config.adapter))
    return generator.counts()["total"], spec.architecture.num_weights


def base(name: str) -> str:
    """The name of the preset that a task changes."""
    return TASKS[name].preset or name


def flags(name: str, task: Task, arm: str, size: int, rate: float) -> list[str]:
    """The words that make an arm, at a size and a learning rate."""
    made = ARMS[arm](size)
    assert made is not None
    if "generator.source" not in made and preset(base(name)).generator.source != "circuit":
        made = {"generator.source": "circuit", **made}
    made = {"algorithm.source_learning_rate": f"{rate:g}", **made}
    if arm in TRAINS_MAPPING:
        made["algorithm.learning_rate"] = f"{rate * MAPPING_RATE.get(arm, 1):g}"
    return [*(word for key, value in made.items() for word in (f"--{key}", value)), *task.flags]


def tuned(args: argparse.Namespace, task: Task, kept: "Lines", arm: str) -> float:
    """The rate with the highest mean over tuning seeds and evaluations, at one size."""
    size = next((s for s in (task.tuned_at, *sorted(task.sizes)[::-1]) if trainable(args, task, arm, s)), task.tuned_at)
    rates = task.rates[:2] if args.quick else task.rates
    jobs = {rate: [kept.made(arm, size, rate, seed, task.tuning_steps) for seed in TUNING_SEEDS] for rate in rates}
    kept.complete([job for each in jobs.values() for job in each])
    means = {rate: [np.mean(line["validations"]) for line in kept.of(each)] for rate, each in jobs.items()}
    return max(rates, key=lambda rate: np.mean(means[rate]) if means[rate] else -np.inf)


class Lines(Kept):
    """The lines of one task's runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.task = args, TASKS[args.task]
        path = (args.output or setting.RESULTS) / "compression" / f"runs-{args.task}.jsonl"
        super().__init__(path, WHAT, line, lambda jobs: runs.done(jobs, args.runs, args.cores))

    def made(self, arm: str, size: int, rate: float, seed: int, steps: int) -> runs.Job:
        """One training run of an arm."""
        schedule = ["--evaluate.every", str(self.task.every), "--evaluate.target", "none", "--evaluate.keep", "last"]
        words = [*flags(self.args.task, self.task, arm, size, rate), *schedule, f"--{self.task.budget}", str(steps)]
        quick = runs.QUICK if self.args.quick else ("--evaluate.validation_episodes", "20")
        return self.job(runs.Job(base(self.args.task), seed, 1, (*words, *quick)), arm, size, rate, seed, steps)

    def complete(self, wanted: list[runs.Job]) -> None:
        """Run what no line is kept of."""
        self.run(wanted, 2 * (self.args.cores or 2))


def line(run: runs.Run) -> dict:
    """What is kept of a run."""
    at = np.flatnonzero(np.isfinite(run.columns["validation_return"]))
    return {
        "greedy": run.result["evaluation"]["mean"],
        "last_tenth": round(run.last_tenth, 2),  # of the training episodes
        "env_steps": run.columns["env_steps"][at].astype(int).tolist(),
        "validations": [round(x, 2) for x in run.columns["validation_return"][at].tolist()],
        "cpu_s": round(run.result["cpu_s"], 1),
        "train_s": round(run.result["train_s"], 1),
    }


def summary(args: argparse.Namespace, task: Task, kept: Lines, arm: str, size: int, rate: float) -> dict | None:
    """The runs of an arm at one size."""
    jobs = [kept.made(arm, size, rate, seed, task.steps) for seed in runs.seeds(args)]
    lines = kept.of(jobs)
    if not lines:
        return None
    trained, weights = counts(args.task, arm, size)
    scores = np.array([line["greedy"] for line in lines])
    return {
        "arm": arm,
        "size": size,
        "rate": rate,
        "trained": trained,
        "weights": weights,
        "runs": len(lines),
        "of": len(jobs),
        "greedy": scores.tolist(),
        "last_tenth": [line.get("last_tenth") for line in lines],
        "iqm": iqm(scores),
        "interval": interval(iqm, scores) if len(scores) > 1 else (iqm(scores), iqm(scores)),
        "solved_at": [solved_at(line, task.solved) for line in lines],
        "env_steps": lines[0]["env_steps"],
        "validations": [line["validations"] for line in lines],
        "commits": sorted({line["commit"] for line in lines}),
    }


def solved_at(line: dict, target: float) -> int | None:
    """Environment steps of the first of two evaluations in a row that reach the target."""
    reached = [x >= target for x in line["validations"]]
    return next((at for at, *both in zip(line["env_steps"], reached, reached[1:], strict=False) if all(both)), None)


def verdicts(results: dict, task: Task) -> list[str]:
    """A sentence for every arm beside the first, at the size that was tuned, corrected for their number."""
    cells = {cell["arm"]: cell for cell in results["cells"] if cell["size"] == task.tuned_at and cell["runs"] > 1}
    if FIRST not in cells:
        return []
    x, others = np.array(cells[FIRST]["greedy"]), [arm for arm in cells if arm != FIRST]
    direct = cells.get("direct", cells[FIRST])
    margin = MARGIN * abs(float(np.mean(direct["greedy"])))
    told, p = [], [permutation(x, np.array(cells[arm]["greedy"])) for arm in others]
    for arm, adjusted in zip(others, holm(p), strict=True):
        y = np.array(cells[arm]["greedy"])
        difference = f"{x.mean() - y.mean():+.3g}"
        if adjusted < 0.05:
            word = "better" if x.mean() > y.mean() else "worse"
            told.append(f"**{FIRST}** is {word} than **{arm}** by {difference} (p = {adjusted:.2g})")
        elif (same := equivalent(x, y, margin)) < 0.05:
            told.append(f"**{FIRST}** equals **{arm}** within {margin:.3g} (difference {difference}, p = {same:.2g})")
        else:
            told.append(
                f"**{FIRST}** beside **{arm}**: undecided (difference {difference}, p = {adjusted:.2g}; "
                f"within {margin:.3g}: p = {same:.2g})"
            )
    return told


def table(results: dict, task: Task) -> str:
    """The results as Markdown."""
    lost = results["failed"]
    lines = [
        f"# Return against trained numbers: {task.unit}, {task.steps:,} {task.budget.removeprefix('train.')}",
        "",
        setting.line(results),
        f"Seeds {results['seeds'][0]} to {results['seeds'][-1]}; protocol.md says how. "
        + ("No run failed." if not lost else f"**{len(lost)} runs failed**: " + "; ".join(lost) + "."),
        "",
        "Return: 100 greedy episodes at the end. Solved at: the first of two evaluations in a row, on a fixed",
        f"schedule, at {task.solved:g} or above. Last tenth: the training episodes' mean return there.",
        "",
        "| arm | rate | trained | weights | runs | return, IQM (95 % interval) | last tenth, IQM | lowest | solved "
        "| median steps |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for c in results["cells"]:
        low, high = c["interval"]
        at = [np.inf if x is None else x for x in c["solved_at"]]
        middle = float(np.median(at)) if len(at) else np.inf
        cells = [c["arm"], f"{c['rate']:g}", f"{c['trained']:,}", f"{c['weights']:,}", f"{c['runs']} of {c['of']}"]
        ends = "not kept" if None in c["last_tenth"] else f"{iqm(np.array(c['last_tenth'])):.4g}"
        cells += [f"{c['iqm']:.4g} ({low:.4g} to {high:.4g})", ends, f"{min(c['greedy']):.4g}"]
        cells += [f"{sum(np.isfinite(at))} of {len(at)}", f"{middle:,.0f}" if np.isfinite(middle) else "never"]
        lines.append(f"| {' | '.join(cells)} |")
    if not results["verdicts"]:
        return "\n".join(lines)
    head = f"At {task.tuned_at} numbers, exact permutation tests of means, Holm's correction over all sentences:"
    return "\n".join([*lines, "", head, "", *(f"* {text}" for text in results["verdicts"])])


def figure(results: dict) -> Figure:
    """Return over trained numbers; and over steps, at the size that was tuned."""
    drawn, (left, right) = figures.panels(2)
    task = TASKS[results["task"]]
    arms, numbers = dict.fromkeys(c["arm"] for c in results["cells"]), [c["trained"] for c in results["cells"]]
    least, widest = min(numbers, default=1), max(numbers, default=1)
    for number, arm in enumerate(arms):
        cells = [c for c in results["cells"] if c["arm"] == arm]
        color, marker = figures.COLORS[number % 8], figures.MARKERS[(number + number // 8) % 8]
        x, y = [c["trained"] for c in cells], [c["iqm"] for c in cells]
        around = np.abs(np.array([c["interval"] for c in cells]).T - y)
        line = figures.LINES[number // 8]
        x = np.array(x) * (widest / least) ** (0.03 * number / max(1, len(arms) - 1))  # beside each other
        look = {"color": color, "marker": marker, "fillstyle": "none", "linestyle": line}  # what lies below is seen
        left.errorbar(x, y, yerr=around, capsize=2, label=arm, **look)
        for c in cells:
            if c["size"] == task.tuned_at and c["env_steps"]:
                validations, at = np.array(c["validations"]), np.array(c["env_steps"])
                if task.budget == "train.updates":  # seeds have other steps at the same update
                    at = task.every * np.arange(1, validations.shape[1] + 1)
                figures.band(right, at, validations, number, arm, shade=False)
    left.set_xscale("log", base=2)
    left.set_xlabel("trained numbers")
    left.set_ylabel("greedy return, IQM and 95 % interval")
    unit = {"train.steps": "environment steps", "train.updates": "updates"}[task.budget]
    right.set_xlabel(f"{unit} ({task.tuned_at} trained numbers; direct: all weights)")
    right.set_ylabel("greedy return, IQM")
    right.locator_params(axis="x", nbins=5)  # numbers of steps are wide
    drawn.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    drawn.suptitle(f"{task.unit}, {len(results['seeds'])} seeds")
    return drawn


if __name__ == "__main__":
    main()
