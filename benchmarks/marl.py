"""Several agents: beside BenchMARL, beside rollouts of TorchRL's and of a plain loop, and beside eQMARL's numbers.

    python benchmarks/marl.py                     simple_spread_v3, 120,000 steps, 5 seeds: 15 minutes of a core,
                                                  and 90 more with the peer
    python benchmarks/marl.py --task rate         steps per second of 16 copies of it, without learning: 5 minutes
    python benchmarks/marl.py --task coin-game    CoinGame-2, 150,000 steps, 5 seeds, 5 cases: 20 minutes of a core
    python benchmarks/marl.py --quick             a few steps; writes nothing unless -o is given

The peer (lib/benchmarl_peer.py) needs other versions than ours, so it may have its own interpreter: --peer PYTHON.
spread and rate run one process at a time, one thread, in turns, so that a busy machine slows all alike; coin-game as
many runs at a time as there are cores. Finished runs are kept, a second start goes on; one that fails is reported.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib import runs, setting
from rich.console import Console

from distqtrl import seeding
from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import Config
from distqtrl.config.sources import preset, with_flags
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.policy import network, policy_file
from distqtrl.report import figures
from distqtrl.report.describe import describe
from distqtrl.report.runs import Run
from distqtrl.report.statistics import interval, probability_of_improvement, verdict
from distqtrl.training.build import prepare
from distqtrl.training.policy_gradient.samples import rollout

STEPS = {"spread": (120_000, 1_600), "rate": (200, 25), "coin-game": (150_000, 1_200)}  # usual, and with --quick
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
INSTALL = "pip install benchmarl==1.5.2 torchrl==0.11.1 tensordict==0.11.0 mpe2"
PAIRS = (
    *(("circuit", name) for name in ("direct", *PEERS)),
    *(("direct", name) for name in PEERS),
    *(("circuit", source) for source in SOURCES[1:]),
)
EQMARL = "arXiv 2405.17486, from the metrics in its repository, github.com/news-vt/eqmarl"
PUBLISHED = {  # parameters of policy and critic, mean of all 3,000 training episodes, of the last 100
    "eQMARL-Psi+, L = 5": ("136", "265", "21.09", "24.85"),
    "fCTDE, 24 hidden units": ("", "", "", "25.70"),
    "sCTDE, 24 hidden units": ("", "", "", "25.86"),
}
OPTIMUM, OWN_COINS = 27.37, 26.90
PACKAGES = ("torch", "numba", "numpy", "pettingzoo", "mpe2")
Numbers = dict[str, Any]


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--task", choices=STEPS, default="spread")
    parser.add_argument(
        "--steps", type=int, help="of a run (BenchMARL plays whole batches of 6,000); of a round's copies"
    )
    parser.add_argument("--seeds", type=int, help="how many, or rounds of rate; default 5")
    parser.add_argument("--peer", help="its Python, or none; default: this one, if it has BenchMARL")
    parser.add_argument("--runs", type=Path, default=setting.ROOT / "benchmarks" / "runs", help="where runs are kept")
    args = parser.parse_args()
    args.steps = args.steps or STEPS[args.task][args.quick]
    args.seeds = args.seeds or (2 if args.quick else 5)
    args.peer = args.peer or (sys.executable if importlib.util.find_spec("benchmarl") else "none")
    if args.peer != "none" and not shutil.which(args.peer):
        parser.error(f"--peer {args.peer}: there is no such program")
    measure, table = {"spread": (spread, of_spread), "rate": (rate, of_rate), "coin-game": (coin_game, of_coins)}[
        args.task
    ]
    results = measure(args)
    if folder := setting.save(args, f"marl/{args.task}", results, table(results)):
        figure(results, folder / f"marl/{args.task}")


def spread(args: argparse.Namespace) -> Numbers:
    """Trainings of ours and of the peer, in turns."""
    everything: dict[runs.Job, Run | str] = {}
    found: dict[str, list[Numbers | str]] = {}
    for seed in range(args.seeds):
        for name in CASES["spread"]:
            job = wanted(args, name)[seed]
            everything |= runs.done([job], args.runs)
            run = everything[job]
            found.setdefault(name, []).append(run if isinstance(run, str) else numbers(run) | {"sampled": sampled(run)})
        for name, words in PEERS.items() if args.peer != "none" else ():
            found.setdefault(name, []).append(trained(args, words, seed))
    results = outcome(args, everything, found)
    results["ratios"] = {name: ratios(found["circuit"], found[name]) for name in PEERS if name in found}
    return results


def coin_game(args: argparse.Namespace) -> Numbers:
    """Trainings through the circuit and of the controls, scored as eQMARL does."""
    names = ("circuit", "frozen_random") if args.quick else CASES["coin-game"]
    jobs = {name: wanted(args, name) for name in names}
    everything = runs.done([job for each in jobs.values() for job in each], args.runs)
    found: dict[str, list[Numbers | str]] = {}
    for name, each in jobs.items():
        got = [everything[job] for job in each]
        found[name] = [run if isinstance(run, str) else numbers(run, 2) for run in got]  # 2: the sum over both agents
    return outcome(args, everything, found)


def rate(args: argparse.Namespace) -> Numbers:
    """Rollouts of ours, of the peer's and of a plain loop, in turns."""
    torch.set_num_threads(1)
    cfg = with_flags(preset(PRESETS["rate"]), {"algorithm.rollout_steps": str(args.steps)})
    copies = cfg.environment.local_num
    contenders = {"distqtrl": timed(Ours(cfg), copies * args.steps)}
    if args.peer != "none":
        contenders["BenchMARL"] = lambda: asked(args, ("rate", "--frames", str(copies * args.steps)))
    contenders["plain loop"] = timed(Plain(copies, args.steps), copies * args.steps)
    found: dict[str, list[Numbers | str]] = {name: [] for name in contenders}
    for number in range(args.seeds):
        for name, measure in contenders.items():
            got = measure()
            found[name].append(got if isinstance(got, str) else got | {"seed": number})
            Console(stderr=True).print(f"{name}, round {number}: {found[name][-1]}")
    results = outcome(args, {}, found)
    results["ratios"] = {name: ratios(found["distqtrl"], each) for name, each in found.items() if name != "distqtrl"}
    return results


def wanted(args: argparse.Namespace, name: str) -> list[runs.Job]:
    """A case's job for every seed."""
    flags = (
        CASES[args.task][name] | {"train.steps": str(args.steps)} | ({"evaluate.episodes": "2"} if args.quick else {})
    )
    words = tuple(word for key, value in flags.items() for word in (f"--{key}", value))
    return [runs.Job(PRESETS[args.task], seed, 1, words) for seed in range(args.seeds)]


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
    command = [args.peer, str(Path(__file__).with_name("lib") / "benchmarl_peer.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if ended.returncode:
        return (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
    found: Numbers = json.loads(ended.stdout.splitlines()[-1])
    return found


def timed(action: Callable[[], None], steps: int) -> Callable[[], Numbers | str]:
    """Steps per second of what makes so many, after a first time that does not count."""
    action()

    def measure() -> Numbers | str:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        action()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return {"steps_per_s": steps / wall_s, "steps_per_cpu_s": steps / cpu_s}

    return measure


class Ours:
    """One update's rollout by a policy whose weights the circuit makes anew, with the centralised critic's states."""

    def __init__(self, cfg: Config) -> None:
        self.run, self.number = prepare(cfg, Serial()), 0

    def __call__(self) -> None:
        self.run.policies.generated.forget()
        acting = [learner.acting_weights(self.number) for learner in self.run.policies.learners]
        rollout(self.run.config, self.run.environments, self.number, self.run.policies.players(acting))
        self.number += 1


class Plain:
    """What one writes without a library: the copies one by one, and for each a forward pass for its agents."""

    def __init__(self, copies: int, steps: int) -> None:
        from mpe2 import simple_spread_v3

        self.envs, self.steps = [simple_spread_v3.parallel_env(max_cycles=25) for _ in range(copies)], steps
        self.observed = [env.reset(seed=number)[0] for number, env in enumerate(self.envs)]
        layers = [torch.nn.Linear(18 + 3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
        self.policy, self.which = torch.nn.Sequential(*layers, torch.nn.Linear(64, 5)), torch.eye(3)

    @torch.no_grad()
    def __call__(self) -> None:
        samples = []
        for _ in range(self.steps):
            for b, env in enumerate(self.envs):
                obs = torch.from_numpy(np.stack(list(self.observed[b].values()))).float()
                obs = torch.cat([obs, self.which], dim=1)
                actions = torch.distributions.Categorical(logits=self.policy(obs)).sample()
                self.observed[b], rewards, *_ = env.step(dict(zip(env.agents, actions.tolist(), strict=True)))
                samples.append((obs, actions, list(rewards.values())))
                if not env.agents:
                    self.observed[b], _ = env.reset()


def outcome(
    args: argparse.Namespace, everything: dict[runs.Job, Run | str], found: Mapping[str, Sequence[Numbers | str]]
) -> Numbers:
    """Where and how it was made, every case's runs, what failed."""
    made = {**runs.facts(args, everything), **setting.facts(*PACKAGES), "steps": args.steps, "seeds": args.seeds}
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
            p, bounds = probability_of_improvement(x, y), interval(probability_of_improvement, x, y)
            out.append(verdict(*(f"**{name}**" for name in pair), p, *bounds))
    return out


def values(case: Numbers, key: str) -> np.ndarray:
    return np.array([run[key] for run in case["runs"]])


def ratios(ours: Sequence[Numbers | str], theirs: Sequence[Numbers | str]) -> Numbers:
    """Medians of the first's rates by the second's, pair by pair."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if not isinstance(a, str) and not isinstance(b, str)]
    keys = ("steps_per_cpu_s", "steps_per_s") if pairs else ()
    return {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in keys}


def of_spread(results: Numbers) -> str:
    """The results as Markdown."""
    lines = [
        *head(results, "simple_spread_v3 (3 agents, 25 steps), beside BenchMARL's MAPPO and IPPO"),
        "Mean over agents of an episode's undiscounted return, 100 episodes, which start alike on both sides: greedy,",
        "and with actions drawn. Rates are of the whole training, without the last evaluation.",
        "",
        "| | runs | trained, and the critic's | greedy, mean (95 % interval) | every seed | drawn "
        "| steps per CPU second, median | per second | circuit's by its (CPU; wall) |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(f"{start(name, case)} | {cell(case, 'sampled', 1)} | {rates(results, name)} |")
    return "\n".join([*lines, "", *notes(results)])


def of_coins(results: Numbers) -> str:
    """The results as Markdown."""
    lines = [
        *head(results, "CoinGame-2 (3 x 3, 2 agents, 50 steps), beside eQMARL's numbers"),
        "eQMARL's score: the sum over both agents of an episode's undiscounted return. Greedy: 100 episodes of the",
        "last policy. The last 100 episodes, and all, are of training, with actions drawn.",
        "",
        "| | runs | trained, and the critic's | greedy, mean (95 % interval) | every seed | last 100 | all |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(f"{start(name, case)} | {cell(case, 'last', 2)} | {cell(case, 'training', 2)} |")
    for name, (policy, critic, every, last) in PUBLISHED.items():
        counts = f"{policy} + {critic}" if policy else ""
        lines.append(f"| {name}, published | | {counts} | | | {last} | {every} |")
    lines += [
        "",
        f"Published: {EQMARL};",
        f"its largest mean of ten epochs is 25.67. Optimum: {OPTIMUM} (exact, by backward induction); two players",
        f"who go straight for their own coins get {OWN_COINS:.2f}.",
        "",
    ]
    return "\n".join([*lines, *notes(results)])


def of_rate(results: Numbers) -> str:
    """The results as Markdown."""
    lines = [
        *head(results, "Rollouts of 16 copies of simple_spread_v3"),
        f"{results['steps']} steps of every copy a round, without learning; medians over the rounds.",
        "distqtrl: the preset's rollout, its weights made by the circuit once a round. BenchMARL: its MAPPO's policy",
        "(256-256) and collector (TorchRL's). Plain loop: PettingZoo and torch, the preset's policy (64-64), a forward",
        "pass per copy and step.",
        "",
        "| | rounds | steps per CPU second | per second | distqtrl's by its (CPU; wall) |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, case in results["cases"].items():
        lines.append(f"| {name} | {len(case['runs'])} of {case['of']} | {rates(results, name)} |")
    return "\n".join([*lines, "", *notes(results)])


def head(results: Numbers, title: str) -> list[str]:
    """Title, how it was made, and by which peer."""
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("peer") or {}).items())
    peer = f"The peer's: {versions}." if versions else f"**No peer was run**: `{INSTALL}`, then --peer ITS_PYTHON."
    told = [] if results["task"] == "coin-game" else [peer]
    lines = runs.line(results, f"Seeds or rounds: {results['seeds']}; steps: {results['steps']:,}.")
    return [f"# {title}", "", *lines, *told, ""]


def start(name: str, case: Numbers) -> str:
    """The first cells of a row."""
    counts = " + ".join(f"{x:,}" for x in case.get("parameters") or ())
    seeds = ", ".join(f"{x:.1f}" for x in values(case, "greedy"))
    return f"| {name} | {len(case['runs'])} of {case['of']} | {counts} | {cell(case, 'greedy', 2)} | {seeds}"


def cell(case: Numbers, key: str, digits: int) -> str:
    """Mean, and its interval where there are two runs."""
    x = values(case, key)
    if not len(x):
        return ""
    bounds = interval(lambda drawn: float(drawn.mean()), x) if len(x) > 1 else ()
    return f"{x.mean():.{digits}f}" + (f" ({' to '.join(f'{bound:.{digits}f}' for bound in bounds)})" if bounds else "")


def rates(results: Numbers, name: str) -> str:
    """Cells of the median rates, and of how they compare."""
    keys, case, ratio = ("steps_per_cpu_s", "steps_per_s"), results["cases"][name], results["ratios"].get(name)
    cells = [f"{np.median(values(case, key)):,.0f}" if case["runs"] else "" for key in keys]
    return " | ".join([*cells, "; ".join(f"{ratio[key]:.2f}" for key in keys) if ratio else ""])


def notes(results: Numbers) -> list[str]:
    """Verdicts, and how far to trust them."""
    told = [f"* {text}" for text in results["verdicts"]]
    return [*told, "", runs.CAUTION] if told else []


def figure(results: Numbers, path: Path) -> None:
    """Every run's score; and smoothed returns of training over environment steps."""
    cases = {name: case for name, case in results["cases"].items() if case["runs"]}
    learned = results["task"] != "rate"
    with figures.styled():
        drawn, (left, *right) = figures.panels(1 + learned)
        key = "greedy" if learned else "steps_per_cpu_s"
        figures.scores(left, {name: values(case, key).tolist() for name, case in cases.items()})
        left.set_xlabel("greedy return" if learned else "steps per CPU second")
        if results["task"] == "coin-game":
            left.axvline(OPTIMUM, color="0.5", linestyle=":")
        for axes in right:
            for number, (name, case) in enumerate(cases.items()):
                x, y = np.array(case["runs"][0]["env_steps"]), np.array([run["returns"] for run in case["runs"]])
                figures.band(axes, x, y, number, name)
            axes.set_xlabel("environment steps")
            axes.set_ylabel("return of training")
            axes.legend(frameon=False, fontsize=7)
        drawn.suptitle(f"{results['task']}: IQM and 95 % interval, {results['seeds']} seeds")
        figures.save(drawn, path)


if __name__ == "__main__":
    main()
