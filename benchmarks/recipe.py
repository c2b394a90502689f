"""Parts of the recipe for generated policies: how angles are whitened, where they start, codes of chunks.

    python benchmarks/recipe.py                  trainings of CartPole, 8 seeds; writes results/recipe/angles.*
    python benchmarks/recipe.py --task codes     a trained graph network or MLP reads bits of a chunk's index, or codes
    python benchmarks/recipe.py --task start     no training: spectra at the start, the metric's cost, weights' spreads
    python benchmarks/recipe.py --quick          2 seeds, 12 updates; writes only with -o

Small numbers of seeds, that were not held out: directions, no effect sizes. A training ends at the validation target.
"""

import argparse
import time
from statistics import mean, median

import numpy as np
import torch
from lib import runs, setting

from distqtrl.config.run import Config
from distqtrl.config.sources import preset, with_flags
from distqtrl.generator.generator import Generator
from distqtrl.generator.tangent import Whitened
from distqtrl.policy.network import Architecture

FIRST_SEED, STEPS = 11, 102_400
START, EVERY, NONE = (("--generator.whiten", word) for word in ("start", "every", "none"))
GAIN = "--mapping.gain"
CODES = "--mapping.codes"
MLP = ("--mapping.kind", "mlp")
CASES = {  # preset, and what is changed of it
    "angles": (
        "cartpole",
        {
            "whitened at the start, gain 16": START,
            "whitened at every step, gain 16": EVERY,
            "plain, gain 16": NONE,
            "plain, gain 1": (*NONE, GAIN, "1"),
            "whitened at the start, gain 4": (*START, GAIN, "4"),
            "whitened at every step, gain 4": (*EVERY, GAIN, "4"),
        },
    ),
    "codes": (
        "cartpole-gnn",
        {
            "graph network, bits": (),
            "graph network, 1 code": (CODES, "1"),
            "graph network, 2 codes": (CODES, "2"),
            "MLP, bits": MLP,
            "MLP, 1 code": (*MLP, CODES, "1"),
            "MLP, 2 codes": (*MLP, CODES, "2"),
        },
    ),
}
DRAWS = (1, 4, 16, 64)
LAYERS = {  # of the policies' presets
    "cartpole": Architecture(4, (128,), 2, "tanh").layers,
    "hopper-generated": Architecture(11, (64, 64), 3, "relu").layers,
    "qtrl-cartpole": Architecture(4, (128,), 2, "tanh").layers,
}


def main() -> None:
    parser = runs.parser(__doc__, {"angles": 8, "codes": 3, "start": 3})
    parser.add_argument("--cores", type=int, help="trainings at a time; default: one per core")
    args = parser.parse_args()
    args.first_seed = args.first_seed or FIRST_SEED
    if args.task == "start":
        torch.set_num_threads(1)
        results = {**setting.facts(*runs.PACKAGES), "draws": draws(args), "costs": costs(), "spreads": spreads()}
        setting.save(args, "recipe/start", results, table_of_starts(results))
    else:
        results = trained(args)
        setting.save(args, f"recipe/{args.task}", results, table(results))


def trained(args: argparse.Namespace) -> dict:
    """The trainings of every case."""
    name, cases = CASES[args.task]
    budget = ("--environment.local_num", "8", "--train.steps", str(STEPS))
    jobs = {case: runs.jobs(args, (*flags, *budget), preset=name) for case, flags in cases.items()}
    made = runs.done([job for each in jobs.values() for job in each], args.runs, args.cores)
    rows = []
    for case, wanted in jobs.items():
        ended = [run.result for run in runs.whole(made, wanted)]
        config = with_flags(preset(name), runs.fields(cases[case]))
        row = {
            "case": case,
            "trained": Generator(config, LAYERS["cartpole"]).counts()["total"],
            "env_steps": [result["env_steps"] for result in ended],
            "stopped": [result["env_steps"] < STEPS for result in ended],
            "greedy": [result["evaluation"]["mean"] for result in ended],
            "cpu_ms_per_step": [1000 * result["cpu_s"] / result["env_steps"] for result in ended],
        }
        rows.append(row)
    return {**runs.facts(args, made), "preset": name, "seeds": list(runs.seeds(args)), "rows": rows}


def table(results: dict) -> str:
    """Trainings as Markdown."""
    first, last = results["seeds"][0], results["seeds"][-1]
    lines = [f"# Preset {results['preset']}, seeds {first} to {last}", "", *runs.line(results), ""]
    lines += [
        f"Steps: until 30 validation episodes return 495; >= {STEPS:,}: never. Return: 100 greedy episodes at the end.",
        "",
        "| case | trained | steps | return | CPU ms per step |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        steps = [
            f"{n:,}" if stopped else f">= {STEPS:,}"
            for n, stopped in zip(row["env_steps"], row["stopped"], strict=True)
        ]
        greedy, cost = " ".join(f"{x:.0f}" for x in row["greedy"]), row["cpu_ms_per_step"]
        told = f"{median(cost):.2f}" if cost else ""
        lines.append(f"| {row['case']} | {row['trained']} | {' '.join(steps)} | {greedy} | {told} |")
    return "\n".join(lines)


def draws(args: argparse.Namespace) -> list[dict]:
    """The best of K sets of initial angles by the participation of the tangent, before and after whitening."""
    best: dict[int, list[list[float]]] = {k: [] for k in DRAWS}
    for seed in runs.seeds(args):
        generator = Generator(configured("cartpole", {"train.seed": str(seed)}), LAYERS["cartpole"])
        rng, found = np.random.default_rng(seed), []
        for _ in range(DRAWS[1] if args.quick else DRAWS[-1]):
            start_P = torch.from_numpy(rng.uniform(-np.pi, np.pi, len(generator.theta_P)))
            generator.theta_P.data = start_P
            metric_PP = generator.metric()
            white = Whitened(start_P, metric_PP, 1e-3)
            after_PP = white.basis_PP.T @ metric_PP @ white.basis_PP
            found.append([*spectrum(metric_PP), *spectrum(after_PP), bending(generator, white, rng)])
        for k in DRAWS:
            best[k].append(max(found[:k]))
    return [{"draws": k, **dict(zip(FACTS, np.mean(rows, axis=0).tolist(), strict=True))} for k, rows in best.items()]


FACTS = ("participation", "condition", "participation_whitened", "condition_whitened", "bending")


def spectrum(metric_PP: torch.Tensor) -> tuple[float, float]:
    """Participation ratio and condition of J, whose square this is."""
    value_P = torch.linalg.eigvalsh(metric_PP).clamp(min=1e-300)
    return float(value_P.sum() ** 2 / value_P.square().sum()), float((value_P[-1] / value_P[0]).sqrt())


def bending(generator: Generator, white: Whitened, rng: np.random.Generator) -> float:
    """|dw - J du| / |J du| after a step of every coordinate by 0.3 up or down; J du from steps of a thousandth."""
    assert generator.mapping is not None

    def weights(scale: float) -> torch.Tensor:
        generator.theta_P.data = white.start_P + white.basis_PP @ (scale * step_P)
        return generator.ideal().double()

    errors = []
    for _ in range(4):
        step_P = torch.from_numpy(rng.choice([-1.0, 1.0], len(white.start_P)))
        straight = (weights(3e-3) - weights(-3e-3)) / 6e-3
        errors.append(float(((weights(0.3) - weights(0)) / 0.3 - straight).norm() / straight.norm()))
    return mean(errors)


def costs() -> list[dict]:
    """CPU seconds of a metric and new coordinates, beside weights and a gradient."""
    rows = []
    for name in ("cartpole", "hopper-generated"):
        generator = Generator(with_flags(preset(name), {"generator.whiten": "every"}), LAYERS[name])
        metric_s = median(cpu_s(lambda g=generator: g.whiten_again(1)) for _ in range(5))
        step_s = median(cpu_s(lambda g=generator: g().sum().backward()) for _ in range(25))
        size = {"angles": generator.counts()["total"], "weights": generator.num_weights}
        rows.append({"preset": name, **size, "metric_s": metric_s, "weights_and_gradient_s": step_s})
    return rows


def cpu_s(action) -> float:
    """CPU seconds of this thread."""
    start = time.thread_time()
    action()
    return time.thread_time() - start


def spreads() -> list[dict]:
    """Deviations of every layer's weights at the start, times sqrt(fan_in): 0.577 is torch's, 1 is hyperfan-in's."""
    cases = {
        "cartpole": ("cartpole", {}),
        "cartpole-gnn, residual": ("cartpole-gnn", {"mapping.output": "residual"}),
        "cartpole-gnn": ("cartpole-gnn", {}),
        "qtrl-cartpole, raw": ("qtrl-cartpole", {}),
    }
    rows = []
    for case, (name, flags) in cases.items():
        layers = LAYERS["cartpole"]
        w_M = Generator(with_flags(preset(name), flags), layers).ideal()
        parts = torch.split(w_M, [size for size, _ in layers])
        of_layers = [float(part.std() * fan_in**0.5) for part, (_, fan_in) in zip(parts, layers, strict=True)]
        rows.append({"case": case, "of_layers": of_layers})
    return rows


def configured(name: str, flags: dict[str, str]) -> Config:
    """A preset with its angles as they are."""
    return with_flags(preset(name), {"generator.whiten": "none", **flags})


def table_of_starts(results: dict) -> str:
    """What was measured without training, as Markdown."""
    lines = ["# Before training", "", setting.line(results), ""]
    lines += [
        "Preset cartpole, the best of K sets of angles by participation, means over seeds:",
        "",
        "| K | participation | condition | whitened: participation | condition | bending |",
        "|--:|--:|--:|--:|--:|--:|",
        *(f"| {row['draws']} | " + " | ".join(f"{row[fact]:.3g}" for fact in FACTS) + " |" for row in results["draws"]),
        "",
        "Bending: how far the weights' change is from the tangent's, as a part, when all coordinates move by 0.3.",
        "",
        "| preset | angles | weights | metric, CPU ms | weights and gradient, CPU ms |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in results["costs"]:
        times = f"{1000 * row['metric_s']:.0f} | {1000 * row['weights_and_gradient_s']:.1f}"
        lines.append(f"| {row['preset']} | {row['angles']} | {row['weights']:,} | {times} |")
    lines += ["", "| start | deviation of a layer's weights times sqrt(fan_in) |", "|---|--:|"]
    lines += [f"| {row['case']} | {' '.join(f'{x:.3f}' for x in row['of_layers'])} |" for row in results["spreads"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
