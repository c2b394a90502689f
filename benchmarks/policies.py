"""Integer policies of the tasks of Kresse & Lampert (arXiv 2511.07046), trained with quantization from the start.

    python benchmarks/policies.py --task ant      5 seeds; writes benchmarks/results/policies/ant.*
    python benchmarks/policies.py --quick         a few steps of InvertedPendulum; writes nothing unless -o is given

Settings are those of TASKS; what else was tried is in benchmarks/results/policies/README.md. A run keeps the policy of
its best validation (20 greedy episodes of seeds of their own), and 100 other episodes score it, in integers. The policy
file of the median seed is copied beside the table, for benchmarks/cores.py. Finished runs are kept, and what was
stopped goes on from its last checkpoint; --cores of them at a time.
"""

import argparse
import shlex
import shutil
import statistics
from typing import Any

import numpy as np
from lib import runs, setting

from distqtrl.report.runs import Run
from distqtrl.report.statistics import LEAST, interval

BEST = {"evaluate.keep": "best", "evaluate.every": "20", "evaluate.validation_episodes": "20"}
SMALL = {"policy.hidden": "16 16", "quantize.core_bits": "3", "quantize.input_bits": "4"}
MIDDLE = {
    "policy.hidden": "64 64",
    "quantize.core_bits": "3",
    "quantize.input_bits": "6",
    "algorithm.gradient_steps": "2",
}
FINE = MIDDLE | {"quantize.core_bits": "4", "quantize.input_bits": "8"}
AS_V4 = {"environment.kwargs": '{"include_cfrc_ext_in_observation":false}'}
TASKS = {  # preset, and what is set beside it
    "hopper": ("hopper-sac", SMALL | {"train.steps": "300000", "evaluate.every": "10"}),
    "walker2d": ("walker2d-sac", FINE | {"train.steps": "500000"}),
    "halfcheetah": ("halfcheetah-sac", FINE | {"train.steps": "500000"}),
    "ant": ("ant-sac", MIDDLE | AS_V4 | {"train.steps": "500000"}),
    "humanoid": ("humanoid-sac", MIDDLE | {"train.steps": "500000"}),
}
THEIRS = {  # mean and deviation of 10 seeds, 1,000,000 steps of v4: floating point, chosen integers
    "hopper": ((2710, 712), (2126, 1124)),
    "walker2d": ((4977, 395), (4623, 538)),
    "halfcheetah": ((11066, 1190), (10156, 1209)),
    "ant": ((5089, 943), (4340, 818)),
    "humanoid": ((6262, 513), (5761, 825)),
}
COLUMNS = ("env_steps", "episodes", "mean", "std", "min", "policy_env_steps", "core_minutes")


def main() -> None:
    parser = runs.parser(__doc__, dict.fromkeys(TASKS, 5))
    parser.add_argument("--cores", type=int, help="runs at a time; default as many as there are cores")
    args = parser.parse_args()
    name, flags = TASKS[args.task]
    flags = BEST | flags | {"quantize.aware": "true"} | (runs.QUICK_SAC if args.quick else {})
    jobs = [runs.Job(name, seed, 1, runs.words(flags)) for seed in runs.seeds(args)]
    found = runs.done(jobs, args.runs, args.cores)
    whole = runs.whole(found, jobs)
    results = {
        **runs.facts(args, found),
        **{"preset": name, "flags": flags, "seeds": {run.config.train.seed: row(run) for run in whole}},
        **{"summary": summary([run.score for run in whole]), "theirs": THEIRS[args.task]},
    }
    results["versions"] = setting.facts("torch", "gymnasium", "mujoco", "numpy")["versions"]
    setting.save(args, f"policies/{args.task}", results, table(results))
    if whole and (args.output or not args.quick):
        keep(args, whole)


def row(run: Run) -> dict[str, Any]:
    """What there is to say about a seed."""
    steps_T, validation_T = run.curve("env_steps", "validation_return")
    return {
        **{key: run.result["evaluation"][key] for key in ("mean", "std", "min", "max", "episodes")},
        **{key: run.result[key] for key in ("env_steps", "policy_env_steps")},
        "environment": run.config.environment.id,
        "core_minutes": run.result["cpu_s"] / 60,
        "validation_steps": [int(steps) for steps in steps_T],
        "validation_return": np.round(validation_T, 1).tolist(),
    }


def summary(scores: list[float]) -> str:
    """Of all seeds, in words."""
    if len(scores) < LEAST:
        return "Too few seeds for a mean."
    low, high = interval(np.mean, np.array(scores))
    mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
    spread = f"95 % interval {low:,.0f} to {high:,.0f}; sample deviation {deviation:,.0f}"
    return f"Mean of {len(scores)} seeds {mean:,.0f} ({spread})."


def keep(args: argparse.Namespace, whole: list[Run]) -> None:
    """Copy the policy file of the median seed; of an even number, that of the lower one in the middle."""
    median = sorted(whole, key=lambda run: run.score)[(len(whole) - 1) // 2]
    place = (args.output or setting.RESULTS) / "policies" / f"{args.task}.safetensors"
    shutil.copyfile(median.directory / "policy.safetensors", place)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"# Integer policies: {results['task']}",
        "",
        *runs.line(results),
        f"`{shlex.join(['distqtrl', 'train', results['preset'], *runs.words(results['flags'])])}`",
        "",
        "| seed | environment | steps | episodes | return, mean | deviation | least | policy of step | core minutes |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for seed, r in results["seeds"].items():
        cells = (f"{r[key]:,.0f}" for key in COLUMNS)
        lines.append(f"| {seed} | {r['environment']} | {' | '.join(cells)} |")
    (floating, over), (chosen, among) = results["theirs"]
    theirs = f"floating point {floating:,} (deviation {over:,}), chosen integers {chosen:,} ({among:,})"
    return "\n".join([*lines, "", results["summary"], f"Theirs, v4, 1,000,000 steps, 10 seeds: {theirs}."])


if __name__ == "__main__":
    main()
