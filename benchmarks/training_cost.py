"""What training costs: the authors' procedure beside ours, and our throughput beside a plain classical PPO.

    python benchmarks/training_cost.py            about 5 minutes; writes results/training_cost/training_cost.*
    python benchmarks/training_cost.py --quick    a few updates; writes nothing unless -o is given

The authors simulate the circuit at every environment step and keep every step's graph for one backward pass per
episode. Here that procedure runs on PennyLane devices through our own adapter, which is the fastest way to them
that we found (benchmarks/circuit.py), with their mapping and policy in torch. A few episodes are measured, and their
time is SCALED to the steps and episodes of our whole run of qtrl-cartpole: seconds per step times steps, plus seconds
per optimizer step times episodes. Time inside the environment is left out of theirs and counted in ours.

stable-baselines3 trains the same 4-128-2 policy by PPO, with its defaults and with the settings of our preset
`cartpole-gnn`; throughput is training wall time only, imports and compilation left out. One process, one thread.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lib import runs, setting

from distqtrl.config import sources
from distqtrl.config.sources import with_flags
from distqtrl.generator.generator import Generator
from distqtrl.policy import network
from distqtrl.policy.network import Architecture

DEVICES = ("default.qubit", "lightning.qubit")
POLICY = Architecture(4, (128,), 2, "relu")


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of our runs; the median counts")
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 20, 40, 80], help="of their measured episodes")
    parser.add_argument("--steps", type=int, default=100_000, help="of PPO")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.lengths, args.steps = 1, [2, 4], 2048
    torch.set_num_threads(1)
    theirs = {device: authors(device, args.lengths) for device in DEVICES}
    results = {
        **setting.facts(
            "torch", "numba", "numpy", "gymnasium", "pennylane", "pennylane-lightning", "stable-baselines3"
        ),
        "seeds": list(range(args.seeds)),
        "lengths": args.lengths,
        "authors": theirs,
        "ours": [ours("qtrl-cartpole", seed, runs.QUICK if args.quick else ()) for seed in range(args.seeds)],
        "ppo": throughput(args),
    }
    results["scaled"] = {device: scaled(cost, results["ours"]) for device, cost in theirs.items()}
    setting.save(args, "training_cost/training_cost", results, table(results))


def authors(device: str, lengths: list[int]) -> dict[str, float]:
    """Seconds per environment step and per episode of their procedure: a line through the measured episodes."""
    flags = {"qpu.backend": "pennylane", "qpu.device": device, "qpu.precision": "float64"}
    generator = Generator(with_flags(sources.preset("qtrl-cartpole"), flags), POLICY.layers)
    generator.set_precision(torch.float32)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    episode(generator, optimizer, 2)  # what is done once
    points = []
    for length in lengths:
        began = time.perf_counter()
        episode(generator, optimizer, length)
        points.append((length, time.perf_counter() - began))
    slope, at_zero = statistics.linear_regression(*zip(*points, strict=True))
    return {"step_s": slope, "episode_s": max(at_zero, 0.0)}


def episode(generator: Generator, optimizer: torch.optim.Optimizer, length: int) -> None:
    """Weights generated anew at every step, one backward pass through all of them. Random numbers stand for returns."""
    terms = []
    for return_, obs_BO in zip(torch.randn(length), torch.randn(length, 1, 4), strict=True):
        logits = network.outputs(POLICY, network.unpack(POLICY, generator()), obs_BO)
        action = torch.distributions.Categorical(logits=logits).sample()
        terms.append(-torch.log_softmax(logits, -1)[0, action] * return_)
    optimizer.zero_grad()
    torch.cat(terms).sum().backward()
    optimizer.step()


def ours(preset: str, seed: int, flags: tuple[str, ...]) -> dict[str, float]:
    """One run of a preset in a process of its own."""
    job = runs.Job(preset, seed, 1, ("--evaluate.every", "none", "--evaluate.target", "none", *flags))
    with tempfile.TemporaryDirectory() as folder:
        run = runs.done([job], Path(folder))[job]
    if isinstance(run, str):
        sys.exit(f"{job.name}: {run}")
    return {**{key: run.result[key] for key in ("env_steps", "episodes", "train_s")}, **run.profile_s}


def scaled(cost: dict[str, float], measured: list[dict[str, float]]) -> dict[str, float]:
    """Their seconds for as many steps and episodes as each of our runs, and how many times ours that is (medians)."""
    seconds = [run["env_steps"] * cost["step_s"] + run["episodes"] * cost["episode_s"] for run in measured]
    times = [theirs / run["train_s"] for theirs, run in zip(seconds, measured, strict=True)]
    return {"seconds": statistics.median(seconds), "times": statistics.median(times), "least": min(times)}


def throughput(args: argparse.Namespace) -> dict[str, float]:
    """Environment steps per second of training: PPO of ours (through the circuit, and direct) and of the peer."""
    budget = ("--train.steps", str(args.steps))
    preset = sources.preset("cartpole-gnn")
    a, num = preset.algorithm, preset.environment.local_num
    same = {"n_steps": a.rollout_steps, "batch_size": num * a.rollout_steps // a.minibatches, "n_epochs": a.epochs}
    same |= {"gamma": a.gamma, "gae_lambda": a.gae_lambda}
    rates: dict[str, list[float]] = {}
    for seed in range(max(1, args.seeds // 2)):  # in turns, so that a busy machine slows all alike
        for name, flags in {"circuit": (), "direct": ("--generator.source", "direct")}.items():
            run = ours("cartpole-gnn", seed, (*budget, *flags))
            rates.setdefault(f"distqtrl cartpole-gnn, {name}", []).append(run["env_steps"] / run["train_s"])
        for name, settings in {
            "its defaults, 8 environments": {},
            "our settings": same,
        }.items():
            rates.setdefault(f"stable-baselines3 PPO, {name}", []).append(peer(args.steps, seed, settings))
    return {name: statistics.median(values) for name, values in rates.items()}


def peer(steps: int, seed: int, settings: dict[str, float]) -> float:
    """Environment steps per second of stable-baselines3's PPO on the same policy."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    layers = {"net_arch": {"pi": [128], "vf": [64, 64]}, "activation_fn": torch.nn.ReLU}
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 8), policy_kwargs=layers, seed=seed, device="cpu", **settings)
    began = time.perf_counter()
    model.learn(steps)
    return model.num_timesteps / (time.perf_counter() - began)


def table(results: dict) -> str:
    """The results as Markdown."""
    mine = {key: statistics.median(run[key] for run in results["ours"]) for key in results["ours"][0]}
    lines = [
        "# What training costs",
        "",
        setting.line(results),
        "",
        f"## The authors' procedure on PennyLane beside `qtrl-cartpole` ({mine['episodes']:,.0f} episodes)",
        "",
        f"**Scaled**: episodes of {', '.join(map(str, results['lengths']))} steps of theirs were measured, and their",
        f"time per step multiplied by the steps of our {len(results['ours'])} runs (median {mine['env_steps']:,.0f}).",
        "",
        "| | per step | per episode more | whole training | times ours (median; least of the runs) |",
        "|---|--:|--:|--:|--:|",
    ]
    for device, cost in results["authors"].items():
        s = results["scaled"][device]
        lines.append(
            f"| circuit at every step, {device} | {cost['step_s'] * 1e3:.2f} ms | {cost['episode_s'] * 1e3:.1f} ms "
            f"| {s['seconds'] / 3600:.2f} h (scaled) | {s['times']:,.0f} ({s['least']:,.0f}) |"
        )
    per_step, per_episode = mine["train_s"] / mine["env_steps"], mine["train_s"] / mine["episodes"]
    lines += [
        f"| ours | {per_step * 1e6:.0f} us, everything | ({per_episode * 1e3:.1f} ms, everything) "
        f"| {mine['train_s']:.1f} s | 1 |",
        "",
        "Where ours goes: "
        + ", ".join(f"{k} {v:.1f} s" for k, v in mine.items() if k in ("rollout", "generate", "loss"))
        + f", optimize {mine['optimize']:.1f} s, write {mine['write']:.1f} s.",
        "",
        "## Throughput beside a classical PPO",
        "",
        "| | environment steps per second of training |",
        "|---|--:|",
        *(f"| {name} | {rate:,.0f} |" for name, rate in results["ppo"].items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
