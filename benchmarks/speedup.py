"""Speed-up against the number of ranks, predicted from one rank's noise scale and measured at every N's own best rate.

    python benchmarks/speedup.py                     REINFORCE on CartPole; writes benchmarks/results/speedup/cartpole.*
    python benchmarks/speedup.py --task cartpole-ppo            or minigrid, hopper, simple-spread
    python benchmarks/speedup.py --ranks 1 2 4 --cores 1        a part of it
    python benchmarks/speedup.py --hosts FILE --slots 64        N ranks on the hosts of mpirun's machine file
    python benchmarks/speedup.py --quick      2 seeds, 1 to tune by, 1 and 2 ranks, 12 updates; writes only with -o

The protocol is benchmarks/results/speedup/protocol.md. A run that ends is a line of runs-TASK.jsonl there; a second
start, on any machine that has the file, does what is missing, the cheapest first. Runs of several machines: join lines.

N ranks are N processes where each has a core of its own, and only there wall time is told; beyond, they are one process
with N times as many environments, which gives the same updates (tests/mpi/test_gradients.py).
"""

import argparse
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from lib import runs, setting
from lib.kept import Kept, Line
from matplotlib.figure import Figure

from distqtrl.algorithm.noise_scale import speedup
from distqtrl.config.sources import preset
from distqtrl.errors import UserError
from distqtrl.report import figures
from distqtrl.report.speedup import noise_ratio
from distqtrl.report.statistics import interval, median

TUNING_SEEDS, FIRST_SEED = (101, 102), 201
RANKS = (1, 2, 4, 8, 16, 32, 64)
WHAT = ("policy", "ranks", "factor", "seed")  # what tells a run from all others of its task
SHARES = (0.5, 0.75, 0.9)  # of the way from where one rank begins to where it ends: a policy's own thresholds
MEASURES = ("updates", "episodes", "env_steps", "wall_s")


@dataclass(frozen=True)
class Task:
    """One environment, and the presets whose settings its policies have but for the learning rates."""

    title: str
    presets: dict[str, str]  # of the generated and of the classical policy
    updates: int  # budget of one rank; N ranks have the square root of N less
    every: int  # updates between two greedy evaluations
    equal: tuple[float, float, float]  # greedy returns, thresholds of both policies
    factors: tuple[float, ...]  # of the preset's learning rates, tried for every N
    seeds: int


def alike(name: str) -> dict[str, str]:
    """The same preset for both policies."""
    return {"generated": name, "classical": name}


WIDE, NARROW = (1, 3, 9, 27), (1 / 3, 1, 3, 9)
TASKS = {
    "cartpole": Task(
        "CartPole-v1 without its end at 500 steps, REINFORCE",
        alike("qtrl-cartpole"),
        *(400, 2, (100, 250, 475), WIDE, 10),
    ),
    "cartpole-ppo": Task("CartPole-v1, PPO", alike("cartpole"), 320, 4, (100, 250, 475), NARROW, 10),
    "minigrid": Task(
        "MiniGrid-Empty-5x5, REINFORCE", alike("qtrl-minigrid-corrected"), 800, 4, (0.3, 0.6, 0.9), WIDE, 5
    ),
    "hopper": Task(
        "Hopper-v5, PPO",
        {"generated": "hopper-generated", "classical": "hopper"},
        *(120, 4, (500, 1000, 2000), NARROW, 5),
    ),
    "simple-spread": Task(
        "simple_spread_v3 (3 agents), PPO", alike("simple-spread"), 120, 4, (-24, -22, -20.5), NARROW, 5
    ),
}
RATES = ("learning_rate", "value_learning_rate", "source_learning_rate")


def main() -> None:
    parser = runs.parser(__doc__, {name: task.seeds for name, task in TASKS.items()})
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), help="1 is always run")
    parser.add_argument("--policies", nargs="+", choices=("generated", "classical"), default=["generated", "classical"])
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of this machine; default: all")
    parser.add_argument("--hosts", type=Path, help="machine file that mpirun is given")
    parser.add_argument("--slots", type=int, help="with --hosts: how many cores its hosts have; default: --cores")
    args = parser.parse_args()
    args.first_seed = args.first_seed or FIRST_SEED
    if args.hosts is not None and not args.hosts.is_file():
        parser.error(f"--hosts {args.hosts}: no such file")
    args.ranks = [1, 2] if args.quick else sorted({1, *args.ranks})
    args.slots = args.slots or args.cores
    task, kept = TASKS[args.task], Lines(args)
    factors = {(policy, n): tuned(kept, policy, n) for n in args.ranks for policy in args.policies}
    kept.complete([kept.made(*who, factor, s) for who, factor in factors.items() for s in runs.seeds(args)])
    results = {
        **setting.facts(*runs.PACKAGES),
        "task": args.task,
        "seeds": list(runs.seeds(args)),
        "failed": kept.failed,
        "policies": {policy: study(kept, policy, factors) for policy in args.policies},
    }
    setting.save(args, f"speedup/{args.task}", results, table(results, task), figure)


class Lines(Kept):
    """The lines of one task's runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.task = args, TASKS[args.task]
        self.tuning_seeds = TUNING_SEEDS[:1] if args.quick else TUNING_SEEDS
        super().__init__(
            (args.output or setting.RESULTS) / "speedup" / f"runs-{args.task}.jsonl",
            *(WHAT, line, lambda jobs: runs.done(jobs, args.runs, *self._place(jobs))),
        )

    def made(self, policy: str, n: int, factor: float, seed: int) -> runs.Job:
        """One training of N ranks."""
        task, ranks = self.task, n if 1 < n <= self.args.slots else 1
        base = preset(task.presets[policy])
        words = [] if policy == "generated" else ["--generator.source", "direct"]
        for name in RATES:
            rate = getattr(base.algorithm, name)
            if name == "source_learning_rate" and policy == "classical":
                rate = None  # it is that of angles
            words += [f"--algorithm.{name}", "none" if rate is None else f"{rate * factor:.6g}"]
        updates = max(2 * task.every, round(task.updates / n**0.5 / task.every) * task.every)
        words += ["--train.steps", "none", "--train.updates", str(updates), "--algorithm.anneal", "false"]
        words += ["--environment.local_num", str(base.environment.local_num * n // ranks)]
        words += ["--evaluate.every", str(task.every), "--evaluate.target", "none"]
        if self.args.quick:
            words += [*runs.QUICK, "--evaluate.every", "2", "--evaluate.validation_episodes", "2"]
        else:
            words += ["--evaluate.validation_episodes", "20", "--evaluate.episodes", "20"]
        return self.job(runs.Job(task.presets[policy], seed, ranks, tuple(words)), policy, n, factor, seed)

    def complete(self, wanted: list[runs.Job]) -> None:
        """Run what no line is kept of."""
        self.run(sorted(wanted, key=lambda job: job.ranks), 2 * max(self.args.cores, self.args.slots))

    def _place(self, jobs: list[runs.Job]) -> tuple[int, Path | None]:
        """The cores that these jobs have, and the hosts of those that are several ranks."""
        several = any(job.ranks > 1 for job in jobs)
        return (self.args.slots, self.args.hosts) if several else (self.args.cores, None)


def line(run: runs.Run) -> Line:
    """What is kept of a run: where it stood at every greedy evaluation, and its noise scale until then."""
    c, at = run.columns, np.flatnonzero(np.isfinite(run.columns["validation_return"]))
    ratios = []
    for end in at + 1:
        try:
            ratios.append(round(noise_ratio(run, int(end)), 4))
        except UserError:
            ratios.append(None)
    return {
        "processes": run.ranks,
        "validations": [round(x, 3) for x in c["validation_return"][at].tolist()],
        "updates": (at + 1).tolist(),
        **{name: c[name][at].astype(int).tolist() for name in ("episodes", "env_steps")},
        "wall_s": [round(x, 3) for x in c["wall_s"][at].tolist()],
        "noise_ratio": ratios,  # noise scale over the batch of one process
    }


def tuned(kept: Lines, policy: str, n: int) -> float:
    """The factor of the learning rates with the highest mean over tuning seeds and evaluations."""
    factors = kept.task.factors[:2] if kept.args.quick else kept.task.factors
    jobs = {factor: [kept.made(policy, n, factor, seed) for seed in kept.tuning_seeds] for factor in factors}
    kept.complete([job for each in jobs.values() for job in each])
    means = {x: [float(np.mean(told["validations"])) for told in kept.of(each)] for x, each in jobs.items()}
    return max(factors, key=lambda x: np.mean(means[x]) if means[x] else -np.inf)


def study(kept: Lines, policy: str, factors: dict[tuple[str, int], float]) -> dict:
    """One policy: its thresholds, and what every N took to each of them beside what one rank predicts."""
    task, seeds = kept.task, runs.seeds(kept.args)
    one = kept.of([kept.made(policy, 1, factors[policy, 1], seed) for seed in kept.tuning_seeds])
    own = []
    if one:
        seen = [np.array(told["validations"]) for told in one]
        starts = median(np.array([x[0] for x in seen]))
        ends = median(np.array([x[-max(1, len(x) // 10) :].mean() for x in seen]))
        own = [round(starts + share * (ends - starts), 3) for share in SHARES]
    thresholds = {f"own {share:.0%}": x for share, x in zip(SHARES, own, strict=False)}
    thresholds |= {f"equal {x:g}": float(x) for x in task.equal}
    rows = []
    for name, threshold in thresholds.items():
        alone: list[Line] = []
        for n in kept.args.ranks:
            lines = kept.of([kept.made(policy, n, factors[policy, n], seed) for seed in seeds])
            alone = alone or lines
            if lines:
                rows.append({"threshold": name, "of": len(seeds), **row(lines, alone, n, threshold)})
    tried = task.factors[:2] if kept.args.quick else task.factors
    chosen = {n: factors[policy, n] for n in kept.args.ranks}
    edges = [n for n, factor in chosen.items() if factor in (tried[0], tried[-1])]
    return {"thresholds": thresholds, "factors": chosen, "edges": edges, "rows": rows}


def row(lines: list[Line], alone: list[Line], n: int, threshold: float) -> dict:
    """What N ranks took to a threshold, and the speed-up over one rank: measured, and predicted of one rank's noise."""
    before, after = ([crossing(told, threshold) for told in each] for each in (alone, lines))
    out: dict = {"ranks": n, "runs": len(lines), "reached": sum(at is not None for at in after)}
    for measure in MEASURES:
        values = np.array([np.inf if at is None else told[measure][at] for told, at in zip(lines, after, strict=True)])
        out[measure] = {"seeds": values.tolist(), "median": median(values), "interval": interval(median, values)}
    if any(told["processes"] != n for told in lines):
        out["wall_s"] = None
    a = np.array([np.inf if at is None else told["updates"][at] for told, at in zip(alone, before, strict=True)])
    b = np.array(out["updates"]["seeds"])
    out["speedup"] = {"median": ratio(a, b), "interval": interval(ratio, a, b)}
    ratios = [told["noise_ratio"][-1 if at is None else at] for told, at in zip(alone, before, strict=True)]
    known = [x for x in ratios if x is not None]
    out["noise_ratio"] = float(np.median(known)) if known else None
    out["predicted"] = speedup(out["noise_ratio"], n) if known else None
    return out


def crossing(told: Line, threshold: float) -> int | None:
    """Which evaluation is the first of two in a row at the threshold.

    >>> crossing({"validations": [1, 5, 2, 5, 6]}, 5), crossing({"validations": [1, 5]}, 5)
    (3, None)
    """
    reached = [x >= threshold for x in told["validations"]]
    return next((i for i, both in enumerate(pairwise(reached)) if all(both)), None)


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Of the medians: 0 where b never gets there, nan where a does not."""
    return median(a) / median(b) if np.isfinite(median(a)) else np.nan


def errors(results: dict) -> dict[int, list[float]]:
    """Relative errors of the prediction, of every row in which something was measured and predicted, by N."""
    found: dict[int, list[float]] = {}
    for rows in (policy["rows"] for policy in results["policies"].values()):
        for r in rows:
            measured = r["speedup"]["median"]
            if r["ranks"] > 1 and r["predicted"] is not None and np.isfinite(measured) and measured > 0:
                found.setdefault(r["ranks"], []).append(r["predicted"] / measured - 1)
    return found


def table(results: dict, task: Task) -> str:
    """The results as Markdown."""
    lost, off = results["failed"], errors(results)
    every = [abs(x) for each in off.values() for x in each]
    high = sum(x > 0 for each in off.values() for x in each)
    lines = [
        f"# Speed-up against the number of ranks: {task.title}",
        "",
        setting.line(results),
        f"Seeds {results['seeds'][0]} to {results['seeds'][-1]}; protocol.md says how. "
        + ("No run failed." if not lost else f"**{len(lost)} runs failed**: " + "; ".join(lost) + "."),
        "",
        "To the first of two greedy evaluations in a row at the threshold; medians over seeds with 95 % bootstrap",
        "intervals, a run that does not get there in its budget counting as infinite. Linear would be N. Predicted:",
        "(1 + r) / (1 + r / N), r being the noise scale over the batch of one rank, from the runs of N = 1 alone.",
        "",
        f"Prediction off by {np.median(every):.0%} in the median over N, thresholds and policies; "
        f"too high in {high} of {len(every)}."
        if every
        else "Nothing was both measured and predicted.",
    ]
    for policy, told in results["policies"].items():
        rates = ", ".join(f"{factor:.3g} at N = {n}" for n, factor in told["factors"].items())
        lines += ["", f"## {policy}", "", f"Learning rates, times the preset's: {rates}."]
        if told["edges"]:
            lines.append(f"At the edge of the grid, so perhaps not the best: N = {', '.join(map(str, told['edges']))}.")
        lines += [
            "",
            "| threshold | N | reached | updates | speed-up | predicted | r | episodes, all | steps, all | wall s |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for r in told["rows"]:
            threshold = f"{r['threshold']} ({told['thresholds'][r['threshold']]:.4g})"
            predicted = ["none", "none"]
            if r["predicted"] is not None:
                predicted = [f"{r['predicted']:.2f}", f"{r['noise_ratio']:.3g}"]
            cells = [_reached(r), _cell(r["updates"]), _speedup(r), *predicted]
            cells += [_cell(r[name]) if r[name] else "not measured" for name in MEASURES[1:]]
            lines.append(f"| {threshold} | {r['ranks']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(r: dict) -> str:
    missing = r["of"] - r["reached"]
    return f"{r['reached']} of {r['of']}" if not missing else f"never {missing} of {r['of']}"


def _speedup(r: dict) -> str:
    middle = r["speedup"]["median"]
    if not np.isfinite(middle):
        return "none (one rank never)"
    return _cell(r["speedup"]) if middle else "none (never)"


def _cell(measure: dict) -> str:
    low, high = measure["interval"]
    if not np.isfinite(measure["median"]):
        return "never" if not np.isfinite(low) else f"never (from {low:,.3g})"
    digits = ",.0f" if measure["median"] >= 100 else ".3g"
    return f"{measure['median']:{digits}} ({low:{digits}} to {high:{digits}})"


def figure(results: dict) -> Figure:
    """Measured speed-up in updates with its interval, what one rank predicts, and N; a panel per policy."""
    drawn, panels = figures.panels(len(results["policies"]))
    for axes, (policy, told) in zip(panels, results["policies"].items(), strict=True):
        names = list(told["thresholds"])
        ranks = sorted({r["ranks"] for r in told["rows"]}) or [1]
        axes.plot(ranks, ranks, color="0.5", linestyle=":", label="linear")
        for number, name in enumerate(names):
            rows = [r for r in told["rows"] if r["threshold"] == name]
            points = [(r["ranks"], r["speedup"]["median"], *r["speedup"]["interval"]) for r in rows]
            if not any(np.isfinite(middle) and middle > 0 for _, middle, *_ in points):
                continue  # the table says that it was never reached
            figures.points(axes, points, number, f"{name} ({told['thresholds'][name]:.3g})")
            known = [(r["ranks"], r["predicted"]) for r in rows if r["predicted"] is not None]
            color = figures.COLORS[number % len(figures.COLORS)]
            axes.plot(*zip(*known, strict=True) if known else ([], []), color=color, linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(ranks, [str(n) for n in ranks])
        axes.set_xlabel("ranks")
        axes.set_ylabel("speed-up in updates (dashed: predicted)")
        axes.set_title(policy)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 4}
        axes.legend(frameon=False, fontsize=8, title="threshold", **below)
    drawn.suptitle(f"{TASKS[results['task']].title}, {len(results['seeds'])} seeds")
    return drawn


if __name__ == "__main__":
    main()
