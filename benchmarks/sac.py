"""SAC beside stable-baselines3's: return after the same number of steps, and environment steps per second.

    python benchmarks/sac.py --task pendulum      Pendulum-v1, 10,000 steps, 5 seeds: about 25 minutes
    python benchmarks/sac.py --task hopper        Hopper-v5, 20,000 steps, 5 seeds: about an hour
    python benchmarks/sac.py --task hopper --recipes    ours alone: critics and schedules, by return and core-minutes
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
from distqtrl.report.runs import Run
from distqtrl.report.statistics import interval

TASKS = {
    "pendulum": ("pendulum-sac", 10_000),
    "hopper": ("hopper-sac", 20_000),
    "halfcheetah": ("halfcheetah-sac", 20_000),
}
STARTS = {"pendulum": 100, "hopper": 1000, "halfcheetah": 1000}
PEER = "stable-baselines3"
ALIKE = {  # of all recipes
    "policy.hidden": "64 64",
    "environment.local_num": "1",
    "algorithm.learning_starts": "4800",
    "algorithm.value_hidden": "128 128",
    "algorithm.critic_norm": "none",
    "algorithm.batch_size": "256",
    "algorithm.learning_rate": "0.0003",
    "algorithm.value_learning_rate": "0.001",
    "algorithm.policy_every": "2",
    "algorithm.policy_steps": "none",
    "algorithm.adam_beta1": "0.9",
    "algorithm.temperature": "1",
    "policy.normalize_observations": "true",
}
CROSSQ = {
    "algorithm.critic_norm": "batch_renorm",
    "algorithm.learning_rate": "0.001",
    "algorithm.policy_every": "3",
    "algorithm.policy_steps": "1",
    "algorithm.adam_beta1": "0.5",
}
LAYER_NORM = {"algorithm.critic_norm": "layer_norm", "algorithm.policy_every": "3", "algorithm.policy_steps": "1"}
TWO, FOUR, EIGHT = ({"environment.local_num": num} for num in "248")  # environments, and steps per update
COOL = {"algorithm.temperature": "0.1"}
RECIPES = {
    "one update per step, 256": {"algorithm.value_hidden": "256 256"},
    "one update per step": {},
    "one in 4": FOUR,
    "CrossQ 128": CROSSQ,
    "CrossQ 128, one in 2": CROSSQ | TWO,
    "CrossQ 128, one in 4": CROSSQ | FOUR,
    "CrossQ 256, one in 4": CROSSQ | FOUR | {"algorithm.value_hidden": "256 256"},
    "CrossQ 128, one in 4, temperature 0.1": CROSSQ | FOUR | COOL,
    "CrossQ 128, one in 2, temperature 0.1": CROSSQ | TWO | COOL,
    "one in 4, temperature 0.1": FOUR | COOL,
    "CrossQ 128, one in 8": CROSSQ | EIGHT,
    "layer norm 128": LAYER_NORM,
    "layer norm 128, one in 2": LAYER_NORM | TWO,
    "layer norm 128, one in 4": LAYER_NORM | FOUR,
}
QUICKLY = {"evaluate.episodes": "2", "algorithm.learning_starts": "96", "environment.max_episode_steps": "20"}


def main() -> None:
    parser = runs.parser(__doc__, dict.fromkeys(TASKS, 5))
    parser.add_argument("--steps", type=int, help="of a run")
    parser.add_argument("--recipes", action="store_true", help="ours with other critics and schedules, no peer")
    parser.add_argument("--only", nargs="*", help="names of recipes; default all")
    parser.add_argument("--cores", type=int, default=1, help="recipes that train at the same time")
    args = parser.parse_args()
    if args.recipes:
        return recipes(args)
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


def recipes(args: argparse.Namespace) -> None:
    """Every recipe's return by steps and core-minutes, on all seeds."""
    steps = args.steps or (192 if args.quick else 100_000)
    chosen = args.only or (["one update per step", "CrossQ 128"] if args.quick else list(RECIPES))
    jobs = {
        (name, seed): runs.Job(TASKS[args.task][0], seed, 1, runs.words(recipe(args, name, steps)))
        for name in chosen
        for seed in runs.seeds(args)
    }
    found = runs.done(list(jobs.values()), args.runs, args.cores)
    rows = {}
    for name in chosen:
        own = runs.whole(found, [job for (case, _), job in jobs.items() if case == name])
        rows[name] = {
            "flags": RECIPES[name],
            "greedy": [run.result["evaluation"]["mean"] for run in own],
            "core_minutes": [float(run.columns["cpu_s"][-1]) / 60 for run in own],
            "halfway": [halfway(run) for run in own],
        }
    results = {**runs.facts(args, found), "steps": steps, "seeds": list(runs.seeds(args)), "rows": rows}
    results["versions"] = setting.facts("torch", "gymnasium", "mujoco", "numpy")["versions"]
    setting.save(args, f"sac/{args.task}-recipes", results, recipe_table(results))


def recipe(args: argparse.Namespace, name: str, steps: int) -> dict[str, str]:
    """A recipe's flags, with those that all have."""
    flags = ALIKE | RECIPES[name] | {"train.steps": str(steps)}
    num = int(flags["environment.local_num"])
    flags |= {"algorithm.rollout_steps": str(960 // num), "train.checkpoint_every": "20"}
    return flags | (QUICKLY | {"algorithm.rollout_steps": str(96 // num)} if args.quick else {})


def halfway(run: Run) -> float:
    """Mean return of training's episodes, whose actions are drawn, from 40 to 60 percent of the steps."""
    share = np.asarray(run.columns["env_steps"]) / run.columns["env_steps"][-1]
    found = run.columns["return_mean"][(share > 0.4) & (share <= 0.6)]
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def recipe_table(results: dict) -> str:
    """The recipes as Markdown, and what differs between them."""
    lines = [f"# Recipes of SAC on {results['task']}: {results['steps']:,} steps", "", *runs.line(results), ""]
    columns = ["greedy return, mean", "every seed", "in training, halfway", "core-minutes", "return per core-minute"]
    lines += [f"| recipe | {' | '.join(columns)} |", "|---|--:|---|--:|--:|--:|"]
    for name, row in results["rows"].items():
        seeds = ", ".join(f"{x:.0f}" for x in row["greedy"])
        mean, minutes = statistics.fmean(row["greedy"]), statistics.fmean(row["core_minutes"])
        half = statistics.fmean(row["halfway"])
        lines.append(f"| {name} | {mean:.0f} | {seeds} | {half:.0f} | {minutes:.1f} | {mean / minutes:.0f} |")
    lines += ["", f"All: {' '.join(runs.words(ALIKE))}", ""]
    return "\n".join(
        [*lines, *(f"* {name}: {' '.join(runs.words(row['flags']))}" for name, row in results["rows"].items())]
    )


def job(args: argparse.Namespace, seed: int) -> runs.Job:
    """One of our runs."""
    return runs.Job(TASKS[args.task][0], seed, 1, settings(args))


def settings(args: argparse.Namespace) -> tuple[str, ...]:
    """The peer's defaults as our flags."""
    starts = "100" if args.quick else str(STARTS[args.task])
    flags = runs.SAC_OF_PEER | {"algorithm.learning_starts": starts, "train.steps": str(args.steps)}
    flags |= {"train.checkpoint_every": "100"} | ({"evaluate.episodes": "2"} if args.quick else {})
    return runs.words(flags)


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
