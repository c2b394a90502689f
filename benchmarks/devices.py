"""CartPole trained on finite shots and on a noisy device, beside the exact circuit: learning curves over seeds.

    python benchmarks/devices.py          5 seeds, 4 ranks, about 20 minutes; writes results/devices/devices.*
    python benchmarks/devices.py --quick  2 cases, 1 seed, 2 ranks, small budget; writes nothing unless -o is given

All cases get the same budget of environment steps and the same seeds; nothing stops early. Gradients of shots and
noise come from the parameter-shift rule, every circuit run by one rank only, or from SPSA. The noise is
benchmarks/noise.json: 0.05 and 0.5 % depolarization of one- and two-qubit gates, 1 to 2 % readout error.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lib import setting
from matplotlib.figure import Figure

SHARED = ["--qpu.gradient", "parameter-shift", "--qpu.shift", "distributed"]
NOISE = ["--qpu.backend", "aer", "--qpu.noise", str(setting.ROOT / "benchmarks" / "noise.json")]
CASES = {
    "exact": [],
    "4096 shots": ["--qpu.shots", "4096", *SHARED],
    "256 shots": ["--qpu.shots", "256", *SHARED],
    "4096 shots, SPSA": ["--qpu.shots", "4096", "--qpu.gradient", "spsa", "--qpu.spsa_samples", "8"],
    "4096 shots, noise": ["--qpu.shots", "4096", *NOISE, *SHARED],
}
COLORS = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00")  # told apart by colour-blind readers (Okabe & Ito)
LAST = 10  # updates


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=400)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=76_800, help="environment steps over all ranks")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.ranks, args.steps, args.cases = 1, 2, 1280, ["exact", "4096 shots, noise"]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with tempfile.TemporaryDirectory() as runs:
        rows = [trained(case, seed, args, runs) for seed in seeds for case in args.cases]
    results = {
        **setting.facts("torch", "numba", "numpy", "qiskit", "qiskit-aer", "mpi4py", "mpich"),
        "ranks": args.ranks,
        "steps": args.steps,
        "noise": json.loads((setting.ROOT / "benchmarks" / "noise.json").read_text()),
        "cases": {case: CASES[case] for case in args.cases},
        "runs": rows,
    }
    setting.save(args, "devices/devices", results, table(results), figure)


def trained(case: str, seed: int, args: argparse.Namespace, runs: str) -> dict:
    """One run, and what its files say."""
    command = [
        *setting.mpirun(args.ranks),
        "-m",
        "distqtrl",
        "train",
        "cartpole-gnn",
        "--json",
        "--train.seed",
        str(seed),
    ]
    command += ["--train.directory", runs, "--train.steps", str(args.steps)]
    command += ["--evaluate.target", "none", "--evaluate.every", "none", *CASES[case]]
    if args.quick:
        command += ["--algorithm.epochs", "1", "--evaluate.episodes", "5"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    updates = [json.loads(text) for text in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    row = {
        "case": case,
        "seed": seed,
        "evaluation": result["evaluation"]["mean"],
        "train_s": result["train_s"],
        "circuits": updates[-1]["circuits"],
        "shots": updates[-1]["shots"],
        "qpu_s": updates[-1]["qpu_s"],
        "env_steps": [update["env_steps"] for update in updates],
        "return_mean": [update["return_mean"] for update in updates],
    }
    print(f"{case}, seed {seed}: greedy return {row['evaluation']:.1f}, {row['train_s']:.1f} s", file=sys.stderr)
    return row


def last_return(row: dict) -> float:
    """Mean return of the training episodes of the last updates."""
    return statistics.mean(value for value in row["return_mean"][-LAST:] if value is not None)


def table(results: dict) -> str:
    """The results as Markdown."""
    seeds = sorted({row["seed"] for row in results["runs"]})
    lines = [
        f"# CartPole on shots and noise, {results['steps']:,} environment steps, {len(seeds)} seeds",
        "",
        f"{results['ranks']} ranks. {setting.line(results)}",
        "",
        "Medians over the seeds (smallest to largest). Greedy: 100 episodes with rank 0's last weights. Training:",
        f"sampled actions, the last {LAST} updates. QPU time: 250 us per shot, ranks side by side.",
        "",
        "| case | greedy return | training return | circuits | shots | QPU time | training wall time |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for case in results["cases"]:
        rows = [row for row in results["runs"] if row["case"] == case]
        greedy, training = [row["evaluation"] for row in rows], [last_return(row) for row in rows]
        cells = [f"{statistics.median(x):.0f} ({min(x):.0f} to {max(x):.0f})" for x in (greedy, training)]
        middle = {key: statistics.median(row[key] for row in rows) for key in ("circuits", "shots", "qpu_s", "train_s")}
        lines.append(
            f"| {case} | {cells[0]} | {cells[1]} | {middle['circuits']:,.0f} | {middle['shots']:,.0f} "
            f"| {middle['qpu_s'] / 3600:.1f} h | {middle['train_s']:.1f} s |"
        )
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """Median learning curves and the range over the seeds."""
    import numpy as np

    drawn = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawn.add_subplot()
    for color, case in zip(COLORS, results["cases"], strict=False):
        rows = [row for row in results["runs"] if row["case"] == case]
        returns = np.array([row["return_mean"] for row in rows], dtype=float)
        axes.plot(rows[0]["env_steps"], np.nanmedian(returns, axis=0), color=color, label=case)
        axes.fill_between(
            rows[0]["env_steps"], np.nanmin(returns, axis=0), np.nanmax(returns, axis=0), color=color, alpha=0.12
        )
    axes.set_xlabel("environment steps, all ranks")
    axes.set_ylabel("return of training episodes")
    seeds = len({row["seed"] for row in results["runs"]})
    axes.set_title(f"CartPole-v1, median and range over {seeds} seeds")
    axes.legend(frameon=False, loc="upper left")
    return drawn


if __name__ == "__main__":
    main()
