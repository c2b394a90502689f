"""SAC beside stable-baselines3's: return after the same number of steps, and environment steps per second.

    python benchmarks/sac.py --task pendulum      Pendulum-v1, 10,000 steps, 5 seeds: about 25 minutes
    python benchmarks/sac.py --task hopper        Hopper-v5, 20,000 steps, 5 seeds: about an hour
    python benchmarks/sac.py --quick              a few steps; writes nothing unless -o is given

Same networks (256-256), one gradient step per environment step, and stable-baselines3's default hyperparameters on both
sides; ours without observation normalisation. One process at a time, one thread, in turns, so that a busy machine slows
both alike. Both are judged by the same 100 greedy episodes' seeds. Finished runs are kept; a second start goes on.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from lib import runs, setting
from rich.console import Console

from distqtrl.config.sources import preset, with_flags
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.report.statistics import interval

TASKS = {"pendulum": ("pendulum-sac", 10_000), "hopper": ("hopper-sac", 20_000)}
STARTS = {"pendulum": 100, "hopper": 1000}
PEER = "stable-baselines3"


def main() -> None:
    parser = runs.parser(__doc__, dict.fromkeys(TASKS, 5))
    parser.add_argument("--steps", type=int, help="of a run")
    args = parser.parse_args()
    args.steps = args.steps or (200 if args.quick else TASKS[args.task][1])
    found: dict[str, list[dict]] = {"distqtrl": [], PEER: []}
    seeds = list(runs.seeds(args))
    for seed in seeds:
        found["distqtrl"].append(ours(args, seed))
        found[PEER].append(theirs(args, seed))
    rows = {name: {"runs": each, **summary(each)} for name, each in found.items()}
    rates = [[run["steps_per_s"] for run in each] for each in found.values()]
    made = runs.commits((job(args, seed) for seed in seeds), args.runs)
    results = {
        **setting.facts("torch", "gymnasium", "mujoco", "numpy", PEER),
        **{"task": args.task, "steps": args.steps, "seeds": seeds, "rows": rows, "run_commits": made},
        "ratio": statistics.median(a / b for a, b in zip(*rates, strict=True)),
    }
    setting.save(args, f"sac/{args.task}", results, table(results))


def job(args: argparse.Namespace, seed: int) -> runs.Job:
    """One of our runs."""
    return runs.Job(TASKS[args.task][0], seed, 1, settings(args))


def settings(args: argparse.Namespace) -> tuple[str, ...]:
    """The peer's defaults as our flags."""
    starts = "100" if args.quick else str(STARTS[args.task])
    flags = {"algorithm.value_learning_rate": "0.0003", "algorithm.policy_every": "1", "algorithm.adam_epsilon": "1e-8"}
    flags |= {"algorithm.learning_starts": starts, "policy.normalize_observations": "false"}
    flags |= {"evaluate.episodes": "2"} if args.quick else {}
    flags |= {"train.steps": str(args.steps), "algorithm.rollout_steps": "100", "train.checkpoint_every": "100"}
    return tuple(word for key, value in flags.items() for word in (f"--{key}", value))


def ours(args: argparse.Namespace, seed: int) -> dict:
    wanted = job(args, seed)
    run = runs.done([wanted], args.runs)[wanted]
    if isinstance(run, str):
        sys.exit(f"{wanted.name}: {run}")
    return {"return": run.result["evaluation"]["mean"], "steps_per_s": args.steps / run.result["train_s"]}


def theirs(args: argparse.Namespace, seed: int) -> dict:
    place = args.runs / f"sb3-sac-{args.task}-{args.steps}-seed{seed}.json"
    if not place.exists():
        import stable_baselines3  # noqa: F401 (once, and not in every fork)

        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as apart:
            outcome = apart.submit(peer, args, seed).result()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(outcome))
    found: dict = json.loads(place.read_text())
    Console(stderr=True).print(f"{PEER} seed {seed}: {found}")
    return found


def peer(args: argparse.Namespace, seed: int) -> dict:
    """One run of the peer."""
    import gymnasium
    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(1)
    cfg = with_flags(preset(TASKS[args.task][0]), {})
    starts = 100 if args.quick else STARTS[args.task]
    model = SAC("MlpPolicy", gymnasium.make(cfg.environment.id), learning_starts=starts, seed=seed, device="cpu")
    began = time.perf_counter()
    model.learn(args.steps)
    seconds = time.perf_counter() - began
    environments = Environments(cfg.environment, range(2 if args.quick else cfg.evaluate.episodes), 0, "evaluation")
    returns, _ = play(environments, lambda obs_BO: model.predict(obs_BO, deterministic=True)[0])
    return {"return": float(returns.mean()), "steps_per_s": args.steps / seconds}


def summary(found: list[dict]) -> dict:
    """Mean return with its 95 % interval, sample deviation, median rate."""
    scores = np.array([run["return"] for run in found])
    return {
        "mean": float(scores.mean()),
        "interval": interval(lambda x: float(np.mean(x)), scores),
        "std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        "steps_per_s": statistics.median(run["steps_per_s"] for run in found),
    }


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = [
        f"# SAC on {results['task']}: {results['steps']:,} steps, beside {PEER}",
        "",
        f"{setting.line(results)} Our runs were made at {', '.join(results['run_commits'])}.",
        "",
        "| | greedy return, mean (95 % interval) | every seed | steps per second of training, median |",
        "|---|--:|---|--:|",
    ]
    for name, row in results["rows"].items():
        low, high = row["interval"]
        seeds = ", ".join(f"{run['return']:.0f}" for run in row["runs"])
        lines.append(f"| {name} | {row['mean']:.0f} ({low:.0f} to {high:.0f}) | {seeds} | {row['steps_per_s']:.0f} |")
    (low, high), (least, most) = (row["interval"] for row in results["rows"].values())
    word = "overlap" if low <= most and least <= high else "do NOT overlap"
    lines += ["", f"The intervals {word}. Median ratio of the rates, pair by pair: {results['ratio']:.2f}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
