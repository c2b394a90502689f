"""What the presets look like trained: a learning curve and a film of each, for the page of presets (docs/presets.md).

    python benchmarks/gallery.py                     every preset that results/gallery/gallery.json does not have yet
    python benchmarks/gallery.py --presets hopper    these, whether it has them or not
    python benchmarks/gallery.py --quick             CartPole, 12 updates, and a language model; writes only with -o

Every preset is trained as it is, on one rank, with a budget that was chosen so that its seeds together take a core
minute at most. Some are solved by then, for others that is the beginning; the table says how far each came. A
film is the beginning of the first greedy episode of the first seed's policy, as `distqtrl evaluate` plays it; a
language model has none, and gets a base pre-trained by `distqtrl pretrain` with seed 0. Presets that have a curve in
another table (docs/preset_gallery.py) get one seed, for the film. The cheapest come first, and a preset is written down
as soon as it is through: a second start goes on with the next.
"""

import argparse
import json
import math
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import qerl
from lib import films, runs, setting

from distqtrl.config.run import Config
from distqtrl.config.sources import preset, presets
from distqtrl.config.stages import Environment
from distqtrl.environment.rollout import evaluation
from distqtrl.environment.world import make
from distqtrl.errors import UserError
from distqtrl.policy import policy_file
from distqtrl.report import animation
from distqtrl.report.runs import Run
from distqtrl.report.statistics import spread

BUDGETS = {  # seeds, and of each the environment steps, or the updates where the preset's own budget is in updates
    "cartpole": (1, 200_000),
    "acrobot": (2, 100_000),
    "cartpole-large": (2, 61_440),
    "frozenlake": (2, 100_000),
    "inverted-pendulum": (2, 50_000),
    "simple-spread": (1, 40_000),
    "coin-game": (1, 40_000),
    "simple-speaker-listener": (2, 40_000),
    "minigrid": (2, 40_000),
    "cartpole-gnn": (1, 76_800),
    "hopper": (1, 60_000),
    "hopper-sac": (1, 15_000),
    "qtrl-cartpole": (1, 1000),
    "qtrl-cartpole-500": (2, 300),
    "pendulum": (1, 100_000),
    "cartpole-sac": (1, 6_000),
    "halfcheetah": (1, 30_000),
    "halfcheetah-sac": (1, 12_000),
    "walker2d": (1, 30_000),
    "walker2d-sac": (1, 12_000),
    "qtrl-minigrid": (1, 200),
    "qtrl-minigrid-corrected": (1, 200),
    "dist-qtrl": (1, 500),
    "hopper-generated": (1, 30_000),
    "walker2d-generated": (1, 8_000),
    "halfcheetah-generated": (1, 20_000),
    "ant": (1, 20_000),
    "ant-sac": (1, 10_000),
    "pendulum-sac": (1, 3_000),
    "humanoid": (1, 20_000),
    "humanoid-sac": (1, 8_000),
    "cooperative-pong": (1, 5_000),
    "qerl-arithmetic": (2, 120),
}
NEW = {"steps": (1, 10_000), "updates": (1, 100)}  # of a preset that has no entry above
EPISODES = 10  # greedy ones at the end of a training
POINTS = 61  # of a curve
CAMERAS = {"HalfCheetah-v5": {"camera_name": "track"}}  # what would run out of the picture is followed
QUICKLY = ("cartpole", "qerl-arithmetic")
TEXT = {"reason": "it trains a language model, whose episodes are text: there is nothing to film"}
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "minigrid", "mpe2", "pettingzoo", "pygame-ce", "pillow")


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--presets", nargs="+", choices=presets(), metavar="NAME", help="default: all that are missing")
    parser.add_argument("--runs", type=Path, default=setting.ROOT / "benchmarks" / "runs", help="where runs are kept")
    parser.add_argument("--cores", type=int, help="trainings at the same time; default as many as there are cores")
    args = parser.parse_args()
    folder = None if args.quick and not args.output else (args.output or setting.RESULTS) / "gallery"
    there = json.loads((folder / "gallery.json").read_text()) if folder and (folder / "gallery.json").exists() else {}
    found, failed = there.get("presets", {}), {}
    names = args.presets or [name for name in wanted(args) if name not in found]
    for name in names:
        print(name, file=sys.stderr, flush=True)
        try:
            found[name] = entry(args, name, folder)
        except UserError as error:
            failed[name] = str(error)
        keep(args, found, failed)
    if not names:
        keep(args, found, failed)


def wanted(args: argparse.Namespace) -> list[str]:
    """All presets, those with a budget of their own first."""
    return list(QUICKLY) if args.quick else [*BUDGETS, *(name for name in presets() if name not in BUDGETS)]


def keep(args: argparse.Namespace, found: dict[str, Any], failed: dict[str, str]) -> None:
    """Write what there is so far."""
    ordered = {name: found[name] for name in presets() if name in found}
    results = {**setting.facts(*PACKAGES), "presets": ordered, "failed": failed}
    setting.save(args, "gallery/gallery", results, table(results))


def entry(args: argparse.Namespace, name: str, folder: Path | None) -> dict[str, Any]:
    """A preset's curve and film; raises UserError where a training of it fails."""
    config = preset(name)
    jobs = trainings(args, name, config)
    outcomes = runs.done(jobs, args.runs, args.cores)
    for job, run in outcomes.items():
        if isinstance(run, str):
            raise UserError(f"{job.name}: {run}")
    whole = runs.whole(outcomes, jobs)
    return {
        **progress(whole, config),
        **(film(whole[0], None if folder is None else folder / f"{name}.gif") if has_pictures(config) else TEXT),
        "commits": runs.commits(jobs, args.runs),
        "machine": setting.facts()["machine"],
        "curve": curve(whole),
    }


def trainings(args: argparse.Namespace, name: str, config: Config) -> list[runs.Job]:
    """A training for every seed."""
    base: tuple[str, ...] = ()
    greedy, quick = ("--evaluate.episodes", str(EPISODES)), runs.QUICK
    if not has_pictures(config):
        qerl.prepare(args, seed=0)
        base = ("--language.base", str(qerl.place(args, seed=0)))
        greedy, quick = (), qerl.SMALL  # answers are quick: as many as the preset asks
    if args.quick:
        return [runs.Job(name, 0, 1, (*base, *quick))]
    seeds, number = BUDGETS.get(name, NEW[unit(config)])
    budget = (f"--train.{unit(config)}", str(number))
    return [runs.Job(name, seed, 1, (*budget, *base, *greedy)) for seed in range(seeds)]


def has_pictures(config: Config) -> bool:
    """Whether an episode can be looked at; a language model's are text."""
    return config.algorithm.name != "grpo"


def unit(config: Config) -> str:
    """What the preset's own budget is in."""
    return "updates" if config.train.steps is None else "steps"


def progress(whole: list[Run], config: Config) -> dict[str, Any]:
    """How far the trainings came of what the preset may take, at what price, and to what return."""
    made, most = {"updates": ("update", config.train.updates), "steps": ("env_steps", config.train.steps)}[unit(config)]
    return {
        "unit": unit(config),
        "of": most,
        "made": [int(run.result[made]) for run in whole],
        "target_reached": [bool(run.result["target_reached"]) for run in whole],
        "core_minutes": round(sum(run.result["cpu_s"] for run in whole) / 60, 2),
        "greedy": [round(run.score, 3) for run in whole],
        "greedy_episodes": whole[0].result["evaluation"]["episodes"],
    }


def curve(whole: list[Run]) -> dict[str, Any]:
    """Smoothed returns of training episodes of every seed, at some places of its training."""
    steps, returns = [], []
    for run in whole:
        x_T, y_T = run.curve("env_steps", "return_smoothed")
        at = spread(len(x_T), POINTS)
        steps.append(x_T[at].astype(int).tolist())
        returns.append([float(f"{y:.5g}") for y in y_T[at]])
    return {"env_steps": steps, "returns": returns}


def film(run: Run, gif: Path | None) -> dict[str, Any]:
    """A film of the run's policy in this file (None: nowhere), or the reason why there is none."""
    policies = policy_file.team(run.directory)
    environment, most = Environment(**policies[0].environment), policies[0].origin.get("max_steps")
    roles, acts = [policy.agents for policy in policies], [policy.act for policy in policies]
    drawn, steps = run.directory / "episode.gif", drawable(environment)
    try:
        followed = environment.model_copy(update={"kwargs": environment.kwargs | CAMERAS.get(environment.id, {})})
        animation.record(drawn, followed, 0, roles, acts, min(steps, most or steps))
    except UserError as error:
        return {"reason": str(error)}
    episode = evaluation(environment, range(1), 0, "evaluation", acts, roles, max_steps=most)
    length = int(episode.length_E[0])
    made, share = films.small(drawn)
    if gif is not None:
        gif.parent.mkdir(parents=True, exist_ok=True)
        gif.write_bytes(made)
    told = {"return": float(episode.returns_EG.mean()), "steps": length, "shown": round(share * min(length, steps))}
    return {"film": {**told, "seed": run.config.train.seed, "bytes": len(made)}}


def drawable(environment: Environment) -> int:
    """How many steps of an episode a film has room for, at the environment's pace."""
    with closing(make(environment)) as world:
        fps = world.metadata.get("render_fps") or animation.FPS
    return math.ceil(films.PICTURES * max(fps * films.SHORTEST_MS / 1000, 1))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    trained = {name: told for name, told in results["presets"].items() if "made" in told}
    lines = [
        "# The presets after a short training",
        "",
        setting.line(results),
        "",
        "One rank; budgets chosen for a core minute of training per preset at most, its seeds together.",
        "Trained is what each seed came to: its budget, or what it took to the preset's own target. Greedy returns are",
        "means of the episodes at the end of a training, as many as stand in brackets; a language model's episode is a",
        "question with its answer. A film is of the first seed's policy, in the first of the episodes of",
        "`distqtrl evaluate` with seed 0.",
        "",
        "| preset | trained, of the preset's budget | core minutes | greedy returns | film: return, steps | KB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, told in trained.items():
        made = ", ".join(f"{n:,}" for n in told["made"])
        greedy = ", ".join(f"{x:.4g}" for x in told["greedy"]) + f" ({told['greedy_episodes']:,})"
        cells = [f"{made} of {told['of']:,} {told['unit']}", f"{told['core_minutes']:.1f}", greedy]
        shown = told.get("film")
        cells += ["none", ""] if shown is None else [_episode(shown), f"{shown['bytes'] / 1000:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    reasons = [f"* {name}: {told['reason']}." for name, told in results["presets"].items() if "reason" in told]
    if reasons:
        lines += ["", "Without a film:", "", *reasons]
    if results["failed"]:
        lines += ["", "**Failed**: " + "; ".join(f"{name}: {text}" for name, text in results["failed"].items()) + "."]
    machines = {told["machine"] for told in trained.values()}
    commits = sorted({commit for told in trained.values() for commit in told["commits"]})
    return "\n".join([*lines, "", f"Runs made at {', '.join(commits)} on {'; '.join(sorted(machines))}."])


def _episode(shown: dict[str, Any]) -> str:
    return f"{shown['return']:.4g}, the first {shown['shown']:,} of {shown['steps']:,}"


if __name__ == "__main__":
    main()
