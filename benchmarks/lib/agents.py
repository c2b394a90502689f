"""Trainings of several agents, ours and of BenchMARL, and what is told of them."""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from distqtrl import seeding
from distqtrl.config.sources import preset, with_flags
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.policy import network, policy_file
from distqtrl.report.describe import describe
from distqtrl.report.runs import Run
from lib import compared, runs, setting

PRESETS = {"spread": "simple-spread", "rate": "simple-spread", "coin-game": "coin-game"}
SOURCES = ("direct", "frozen_random", "equal_mlp")
CASES: dict[str, dict[str, dict[str, str]]] = {
    "spread": {"circuit": {}, "direct": {"generator.source": "direct", "algorithm.learning_rate": "0.0007"}},
    "coin-game": {
        "circuit": {},
        **{source: {"generator.source": source} for source in SOURCES},
        "circuit, own rewards": {"agents.reward": "own"},
    },
}
PEERS = {
    "BenchMARL MAPPO": ("--algorithm", "mappo"),
    "BenchMARL IPPO": ("--algorithm", "ippo"),
    "BenchMARL MAPPO, our rates and batches": (
        *("--algorithm", "mappo", "--lr", "0.0007", "--epochs", "10", "--gamma", "0.9"),
        *("--frames-per-batch", "800", "--minibatch-size", "200"),
    ),
}
PAIRS = (
    *(("circuit", name) for name in ("direct", *PEERS)),
    *(("direct", name) for name in PEERS),
    *(("circuit", source) for source in SOURCES[1:]),
)
PACKAGES = ("torch", "numba", "numpy", "pettingzoo", "mpe2")
Numbers = dict[str, Any]


def wanted(args: argparse.Namespace, name: str) -> list[runs.Job]:
    """A case's job for every seed."""
    flags = (
        CASES[args.task][name] | {"train.steps": str(args.steps)} | ({"evaluate.episodes": "2"} if args.quick else {})
    )
    words = tuple(word for key, value in flags.items() for word in (f"--{key}", value))
    return [runs.Job(PRESETS[args.task], seed, 1, words) for seed in runs.seeds(args)]


def numbers(run: Run, times: float = 1.0) -> Numbers:
    """What is told of one of our runs; ``times`` scales its returns."""
    c, r = run.columns, run.result
    last = c["episodes"] > c["episodes"][-1] - 100  # whole updates
    return {
        "seed": run.config.train.seed,
        "greedy": times * r["evaluation"]["mean"],
        "training": times * float(np.nanmean(c["return_mean"])),
        "last": times * float(np.nanmean(c["return_mean"][last])),
        "steps_per_s": r["env_steps"] / r["train_s"],
        "steps_per_cpu_s": r["env_steps"] / r["cpu_s"],
        "env_steps": c["env_steps"].tolist(),
        "returns": np.round(times * c["return_smoothed"], 3).tolist(),
    }


def sampled(run: Run) -> float:
    """Mean return on the evaluation's episodes of the last policy when it draws its actions."""
    policy = policy_file.load(run.directory / "policy.safetensors")
    outputs, rng = network.acting(policy.architecture, policy.w_M), seeding.stream(0, "action")
    episodes = range(run.config.evaluate.episodes)
    environments = Environments(run.config.environment, episodes, 0, "evaluation", 0, [policy.agents])

    def act(obs_BO: np.ndarray) -> np.ndarray:
        logits_BA = outputs(policy.normalizer.apply(obs_BO).astype(np.float32))
        return policy.head.to_environment(policy.head.sample(logits_BA, rng.random(len(logits_BA)), np.zeros(0)))

    returns_B, _ = play(environments, environments.acting([act]))
    environments.close()
    return float(returns_B.mean())


def trained(args: argparse.Namespace, words: Sequence[str], seed: int) -> Numbers | str:
    """One training of the peer, judged on the episodes that ours are judged on."""
    cfg = preset(PRESETS["spread"])
    starts = [
        seeding.integer(0, "evaluation", number, 0) for number in range(2 if args.quick else cfg.evaluate.episodes)
    ]
    words = ("train", *words, "--frames", str(args.steps), "--evaluate", *map(str, starts))
    place = args.runs / f"benchmarl-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]}-seed{seed}.json"
    if not place.exists():
        found = asked(args, (*words, "--seed", str(seed)))
        if isinstance(found, str):
            return found
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found | {"seed": seed}))
    kept: Numbers = json.loads(place.read_text())
    Console(stderr=True).print(
        f"{' '.join(words[:3])}, seed {seed}: {kept['greedy']:.1f}, {kept['steps_per_s']:.0f} steps/s"
    )
    return kept


def asked(args: argparse.Namespace, words: Sequence[str]) -> Numbers | str:
    """What the peer found in its own interpreter, or its last words."""
    command = [args.peer, str(Path(__file__).with_name("benchmarl_peer.py")), *words]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if ended.returncode:
        return (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
    found: Numbers = json.loads(ended.stdout.splitlines()[-1])
    return found


def outcome(
    args: argparse.Namespace, everything: dict[runs.Job, Run | str], found: Mapping[str, Sequence[Numbers | str]]
) -> Numbers:
    """Where and how it was made, every case's runs, what failed."""
    made = {
        **runs.facts(args, everything),
        **setting.facts(*PACKAGES),
        "steps": args.steps,
        "seeds": list(runs.seeds(args)),
    }
    made["run_commits"] = made["run_commits"] or [made["commit"]]  # what ran in this process
    own, cases = CASES.get(args.task, {}), dict[str, Numbers]()
    for name, each in found.items():
        whole = [run for run in each if not isinstance(run, str)]
        cases[name] = {"runs": whole, "of": len(each)}
        if name in own:
            counts = describe(with_flags(preset(PRESETS[args.task]), own[name]))
            cases[name]["parameters"] = [counts["total_parameters"], counts["training_only_parameters"]]
        else:
            made["failed"] += [f"{name}, {number}: {run}" for number, run in enumerate(each) if isinstance(run, str)]
        for run in whole:
            made["peer"] = run.pop("versions", made.get("peer"))
            cases[name].setdefault("parameters", run.pop("parameters", None))
    return made | {"cases": cases, "verdicts": verdicts(cases)}


def verdicts(cases: dict[str, Numbers]) -> list[str]:
    """A sentence for every pair that was played, whichever way it falls."""
    out = []
    for pair in PAIRS:
        x, y = (values(cases.get(name, {"runs": []}), "greedy") for name in pair)
        if min(len(x), len(y)) > 1:
            out.append(compared.sentence(*pair, x, y))
    return out


def values(case: Numbers, key: str) -> np.ndarray:
    return np.array([run[key] for run in case["runs"]])


def ratios(ours: Sequence[Numbers | str], theirs: Sequence[Numbers | str]) -> Numbers:
    """Medians of the first's rates by the second's, pair by pair."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if not isinstance(a, str) and not isinstance(b, str)]
    keys = ("steps_per_cpu_s", "steps_per_s") if pairs else ()
    return {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in keys}
