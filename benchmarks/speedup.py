"""Speed-up against the number of ranks (Dist-QTRL's figure 1c), for the generated and for the classical policy.

    python benchmarks/speedup.py                     CartPole, 10 seeds; writes benchmarks/results/speedup/cartpole.*
    python benchmarks/speedup.py --task minigrid     MiniGrid-Empty-5x5, 5 seeds
    python benchmarks/speedup.py --task coin-game    or simple-spread: several agents, 3 seeds, 1, 2 and 4 ranks
    python benchmarks/speedup.py --quick             2 seeds, 1 and 2 ranks, 12 updates; writes only with -o

One update is one episode on every rank. The target is the return of the central run (one rank) at its end: the mean
return of its last tenth of episodes, median over seeds, each policy's own. Every N runs until the smoothed return of
training (10 or 25 updates, mean over ranks) reaches it, or to the end of the budget of the central run. A run that
does not get there counts as infinite. The classical policy (`direct`) goes through the same runs, because data
parallelism alone speeds up too. More ranks than cores: read CPU seconds per rank, not wall time.

Several agents train by PPO: an update is a rollout of the preset's number of steps and environments on every rank, so
N ranks play N times as much; and the target is 80 % of the way from where one rank begins to where it ends, because its
return still rises there.
"""

import argparse

import numpy as np
from lib import runs, setting
from lib.effort import first_reached
from matplotlib.figure import Figure

from distqtrl.config import sources
from distqtrl.report import figures
from distqtrl.report.runs import Run
from distqtrl.report.statistics import interval, median

POLICIES = {"generated": "circuit", "classical": "direct"}
AGGREGATIONS = ("mean", "sum", "average")
MEASURES = ("updates", "episodes", "env_steps", "wall_s", "cpu_s")
AGENTS = {"simple-spread": 250, "coin-game": 375}  # updates
TITLES = {**runs.OF_DIST_QTRL, "simple-spread": "simple_spread_v3 (3 agents)", "coin-game": "CoinGame-2 (2 agents)"}


def main() -> None:
    parser = runs.parser(__doc__, {**runs.SEEDS, **dict.fromkeys(AGENTS, 3)})
    parser.add_argument("--ranks", type=int, nargs="+", help="1 is always run; default 1 2 4 8, for agents 1 2 4")
    parser.add_argument("--layers", type=int, help="default 3, for agents the preset's")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--aggregations", nargs="+", choices=AGGREGATIONS, help="default all, for agents mean")
    args = parser.parse_args()
    agents = args.task in AGENTS
    args.layers = args.layers or (sources.preset(args.task).circuit.layers if agents else 3)
    args.ranks = args.ranks or ([1, 2, 4] if agents else [1, 2, 4, 8])
    args.aggregations = args.aggregations or (["mean"] if agents else list(AGGREGATIONS))
    if args.quick:
        args.ranks, args.aggregations = [1, 2], ["mean"]
    several = sorted(set(args.ranks) - {1})
    shared = {policy: flags(args, policy) for policy in args.policies}
    preset = args.task if agents else runs.PRESETS[args.task]
    central = {policy: runs.jobs(args, shared[policy], preset=preset) for policy in args.policies}
    everything = runs.done([job for jobs in central.values() for job in jobs], args.runs)
    targets = {policy: goal(runs.whole(everything, jobs), agents) for policy, jobs in central.items()}
    cases = {}
    for policy in args.policies:
        for aggregation in args.aggregations:
            for n in several:
                stop = ("--allreduce.aggregation", aggregation, "--train.target", f"{targets[policy]:.6g}")
                cases[policy, aggregation, n] = runs.jobs(args, shared[policy] + stop, n, preset)
    everything |= runs.done([job for jobs in cases.values() for job in jobs], args.runs)
    for policy in args.policies:
        cases |= {(policy, aggregation, 1): central[policy] for aggregation in args.aggregations}
    rows = [row(everything, key, cases[key], targets[key[0]]) for key in sorted(cases)]
    compare(rows)
    results = {
        **runs.facts(args, everything),
        "seeds": list(runs.seeds(args)),
        "layers": args.layers,
        "targets": targets,
        "rows": rows,
    }
    setting.save(args, f"speedup/{args.task}", results, table(results), figure)


def flags(args: argparse.Namespace, policy: str) -> tuple[str, ...]:
    """What makes the preset this policy, with a budget in updates; the classical one has no circuit, so no depth."""
    layers = ("--circuit.layers", str(args.layers))
    words = layers if policy == "generated" else ("--generator.source", POLICIES[policy])
    if args.task in AGENTS:
        words += ("--train.steps", "none")
        words += ("--algorithm.rollout_steps", "20") if args.quick else ("--train.updates", str(AGENTS[args.task]))
    return words


def goal(central: list[Run], agents: bool) -> float:
    """What one rank has at its end, or for several agents 80 % of the way there; median over seeds."""
    ends = median(np.array([run.score for run in central]))
    if not agents:
        return ends
    starts = median(np.array([run.columns["return_smoothed"][run.config.train.smoothing - 1] for run in central]))
    return starts + 0.8 * (ends - starts)


def row(everything: dict, key: tuple[str, str, int], jobs: list[runs.Job], target: float) -> dict:
    """What every seed took to the target; infinite where it did not get there or the run failed."""
    policy, aggregation, n = key
    reached = [cost(run, target) for run in runs.whole(everything, jobs)]
    reached += [dict.fromkeys(MEASURES, np.inf)] * (len(jobs) - len(reached))
    out = {"policy": policy, "aggregation": aggregation, "ranks": n, "seeds": len(jobs)}
    out["reached"] = int(sum(np.isfinite(each["updates"]) for each in reached))
    for measure in MEASURES:
        values = np.array([each[measure] for each in reached])
        out[measure] = {"seeds": values.tolist(), "median": median(values), "interval": interval(median, values)}
    return out


def cost(run: Run, target: float) -> dict[str, float]:
    """Updates (= episodes of one rank), and what they took, to the first smoothed return at the target."""
    c = run.columns
    window = run.config.train.smoothing - 1  # the smoothed return means something once its window is full
    at = first_reached(c["return_smoothed"][window:], target)
    if at is None:
        return dict.fromkeys(MEASURES, np.inf)
    at += window
    return {"updates": at + 1.0, **{name: float(c[name][at]) for name in MEASURES[1:]}}


def compare(rows: list[dict]) -> None:
    """Add to every row how many times fewer episodes of one rank it took than one rank alone, with its interval."""
    for row_ in rows:
        one = next(r for r in rows if (r["policy"], r["aggregation"], r["ranks"]) == (*_who(row_), 1))
        a, b = (np.array(r["updates"]["seeds"]) for r in (one, row_))
        row_["speedup"] = {"median": ratio(a, b), "interval": interval(ratio, a, b)}


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Of the medians; 0 where b never reached its target."""
    return median(a) / median(b)


def _who(row_: dict) -> tuple[str, str]:
    return row_["policy"], row_["aggregation"]


def table(results: dict) -> str:
    """The results as Markdown."""
    goals = ", ".join(f"{policy} {target:.3g}" for policy, target in results["targets"].items())
    share, update, columns = "what one rank has at its end", "one episode", "updates = episodes per rank"
    if results["task"] in AGENTS:
        share, update, columns = f"80 % of the way to {share}", "one rollout of the preset's environments", "updates"
    lines = [
        f"# Speed-up against the number of ranks: {TITLES[results['task']]}",
        "",
        *runs.line(results, f"L = {results['layers']}, {len(results['seeds'])} seeds."),
        f"Target return ({share}): {goals}.",
        "",
        "Medians over seeds with 95 % bootstrap intervals; a run that does not reach its target in its budget counts",
        f"as infinite. An update is {update} on every rank: linear speed-up is N times fewer updates. CPU is per",
        "rank, without waiting for others.",
        "",
        f"| policy | aggregation | N | reached | {columns} | speed-up (linear: N) "
        "| episodes of all ranks | environment steps | CPU s per rank | wall s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results["rows"]:
        cells = [_cell(r[m]) for m in ("updates", "speedup", "episodes", "env_steps", "cpu_s", "wall_s")]
        start = f"| {r['policy']} | {r['aggregation']} | {r['ranks']} | {r['reached']} of {r['seeds']} |"
        lines.append(f"{start} {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measure: dict) -> str:
    low, high = measure["interval"]
    if not np.isfinite(measure["median"]):
        return "not reached" if not np.isfinite(low) else f"inf (from {low:,.3g})"
    digits = ",.0f" if measure["median"] >= 100 else ".3g"
    return f"{measure['median']:{digits}} ({low:{digits}} to {high:{digits}})"


def figure(results: dict) -> Figure:
    """Speed-up in updates, beside the linear line; and CPU seconds of one rank."""
    drawn, (left, right) = figures.panels(2)
    ranks = sorted({r["ranks"] for r in results["rows"]})
    left.plot(ranks, ranks, color="0.5", linestyle=":", label="linear")
    for number, who in enumerate(dict.fromkeys(_who(r) for r in results["rows"])):
        rows = [r for r in results["rows"] if _who(r) == who]
        for axes, measure in ((left, "speedup"), (right, "cpu_s")):
            points = [(r["ranks"], r[measure]["median"], *r[measure]["interval"]) for r in rows]
            figures.points(axes, points, number, ", ".join(who))
    for axes, what in (
        (left, "speed-up in updates"),
        (right, "CPU s of one rank to the target"),
    ):
        axes.set_xscale("log", base=2)
        if np.isfinite(axes.dataLim.height):  # there is a point
            axes.set_yscale("log", base=2)
        axes.set_xticks(ranks, [str(n) for n in ranks])
        axes.set_xlabel("ranks")
        axes.set_ylabel(what)
    left.legend(frameon=False, fontsize=8)
    drawn.suptitle(f"{TITLES[results['task']]}, L = {results['layers']}, {len(results['seeds'])} seeds")
    return drawn


if __name__ == "__main__":
    main()
