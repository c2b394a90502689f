"""How many environment steps and seconds a preset takes to solve its environment, over seeds.

    python benchmarks/solve.py                    cartpole, 10 seeds, 4 ranks; writes results/solve/cartpole.*
    python benchmarks/solve.py --preset acrobot --seeds 3
    python benchmarks/solve.py --quick            2 seeds, 2 ranks, small budget; writes nothing unless -o is given

Every seed is one `mpirun -n R distqtrl train PRESET --train.seed S --json`. Solved: the mean return over 100 greedy
evaluation episodes, with seeds of their own, is at least Gymnasium's threshold (Pendulum has none; ours is -200).
Training steps are counted over all ranks; validation episodes, which decide when to stop, are not among them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lib import setting

from distqtrl.report.runs import read

SOLVED = {"cartpole": 475, "acrobot": -100, "frozenlake": 0.70, "pendulum": -200}


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--preset", choices=SOLVED, default="cartpole")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=100, help="the preset was tuned on seeds below 100")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("flags", nargs="*", help="after --: further flags of distqtrl train")
    args = parser.parse_args()
    flags = list(args.flags)
    if args.quick:
        args.seeds, args.ranks = 2, 2
        flags += ["--train.steps", "8192", "--evaluate.episodes", "10"]
    with tempfile.TemporaryDirectory() as runs:
        rows = [trained(seed, args, flags, runs) for seed in range(args.first_seed, args.first_seed + args.seeds)]
    results = {
        **setting.facts("torch", "gymnasium", "numba", "numpy", "mpi4py", "mpich"),
        "preset": args.preset,
        "threshold": SOLVED[args.preset],
        "ranks": args.ranks,
        "flags": flags,
        "config": config(args, flags),
        "summary": summary(rows),
        "seeds": rows,  # each with its number
    }
    setting.save(args, f"solve/{args.preset}", results, table(results))


def trained(seed: int, args: argparse.Namespace, flags: list[str], runs: str) -> dict:
    """One run, and what its files say."""
    command = [*setting.mpirun(args.ranks), "-m", "distqtrl", "train", args.preset, "--json"]
    command += ["--train.seed", str(seed), "--train.directory", runs, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    run = read(Path(json.loads(done.stdout.splitlines()[-1])["run"]))
    result = run.result
    row = {
        "seed": seed,
        "solved": result["evaluation"]["mean"] >= SOLVED[args.preset],
        "return": result["evaluation"]["mean"],
        "env_steps": result["env_steps"],
        "validation_steps": result["validation_steps"],
        "updates": result["update"],
        "train_s": result["train_s"],
        "setup_s": result["setup_s"],
        "share": {phase: s / result["train_s"] for phase, s in run.profile_s.items()},
    }
    print(
        f"seed {seed}: return {row['return']:.2f}, {row['env_steps']:,} steps, {row['train_s']:.1f} s", file=sys.stderr
    )
    return row


def summary(rows: list[dict]) -> dict:
    """Medians and extremes over the seeds."""
    out = {"solved": sum(row["solved"] for row in rows), "of": len(rows)}
    for key in ("env_steps", "validation_steps", "train_s", "setup_s"):
        values = [row[key] for row in rows]
        out[key] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    shares = [row["share"] for row in rows]
    return out | {"share": {phase: statistics.median(s[phase] for s in shares) for phase in shares[0]}}


def config(args: argparse.Namespace, flags: list[str]) -> dict:
    """The preset with the flags, as distqtrl resolves them."""
    show = [sys.executable, "-m", "distqtrl", "train", args.preset, "--print-config", *flags]
    printed: dict = json.loads(subprocess.run(show, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return printed


def table(results: dict) -> str:
    """The results as Markdown."""
    s = results["summary"]
    lines = [
        f"# {results['preset']}: {s['solved']} of {s['of']} seeds solved (return of at least {results['threshold']})",
        "",
        f"{results['ranks']} ranks. {setting.line(results)}",
        "",
        "| seed | return (100 greedy episodes) | training steps, all ranks | validation steps | updates | training s |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results["seeds"]:
        lines.append(
            f"| {r['seed']} | {r['return']:.2f} | {r['env_steps']:,} | {r['validation_steps']:,} "
            f"| {r['updates']} | {r['train_s']:.1f} |"
        )
    e, v, t = s["env_steps"], s["validation_steps"], s["train_s"]
    lines += [
        f"| **median** | | **{e['median']:,.0f}** | {v['median']:,.0f} | | **{t['median']:.1f}** |",
        "",
        "Median share of training wall time: " + ", ".join(f"{k} {100 * x:.1f} %" for k, x in s["share"].items()) + ".",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
