"""A language model by GRPO on a frozen base of four bits: what rounding costs, what is learned, by which factors.

    python benchmarks/qerl.py            5 bases, 2 seeds, 11 arms; writes benchmarks/results/qerl/qerl.*; 3 core hours
    python benchmarks/qerl.py --cores 1 --arms nvfp4 circuit        a part of it
    python benchmarks/qerl.py --quick    1 small base, 1 seed, 2 arms, 2 updates; writes only with -o

The protocol is benchmarks/results/qerl/protocol.md. Bases are pre-trained where they are not in --runs yet; a run that
ends is a line of runs.jsonl, and a second start does what is missing. Needs the extra llm.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from lib import runs, setting
from lib.kept import Kept, Line
from lib.supervised import supervised
from matplotlib.figure import Figure

from distqtrl import seeding
from distqtrl.config.sources import preset, with_flags
from distqtrl.language import adapted, pretrain
from distqtrl.language.adapted import Adapted
from distqtrl.report import figures
from distqtrl.report.describe import describe
from distqtrl.report.statistics import interval
from distqtrl.training.grpo.spec import specs

PRESET, TUNING, BASES, SEEDS = "qerl-arithmetic", 100, (1, 2, 3, 4, 5), (201, 202)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
QUESTIONS, SAMPLES = 500, 8  # of the sampled accuracy
QUIET = {"rollout.noise": "none"}
CIRCUIT = QUIET | {"generator.source": "circuit"}
ALONE = {"mapping.trained": "false", "mapping.kind": "gnn_expansion", "mapping.gain": "16", "generator.whiten": "start"}
ARMS = {
    "float32": QUIET | {"adapter.precision": "none"},
    "nvfp4": QUIET,
    "mxfp4": QUIET | {"adapter.precision": "mxfp4"},
    "nvfp4, noise 1e-2": {},
    "nvfp4, noise 5e-2": {"rollout.noise_start": "5e-2", "rollout.noise_end": "5e-4"},
    "circuit": CIRCUIT,
    "circuit, fixed graph network": CIRCUIT | ALONE,
    "frozen random": CIRCUIT | {"generator.source": "frozen_random"},
    "random subspace": QUIET | {"generator.source": "random_subspace"},
    "free factors of rank 1": QUIET | {"adapter.rank": "1"},
    "supervised": QUIET,
}
FIRST = "nvfp4"
SHARING = ("float32", "mxfp4", "nvfp4, noise 1e-2", "nvfp4, noise 5e-2")  # the rate of FIRST
OF_ANGLES = ("circuit, fixed graph network", "random subspace")
WHAT = ("arm", "rate", "base", "seed")
SMALL = ("--train.updates", "2", "--language.prompts", "2", "--evaluate.episodes", "8")


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--cores", type=int, help="runs at a time; default: one per core")
    parser.add_argument(
        "--runs", type=Path, default=setting.ROOT / "benchmarks" / "runs", help="where bases and runs are"
    )
    args = parser.parse_args()
    bases, seeds = (BASES[:1], SEEDS[:1]) if args.quick else (BASES, SEEDS)
    if args.quick:
        args.arms = [FIRST, "supervised"]
    for seed in (TUNING, *bases):
        prepare(args, seed)
    kept = Lines(args)
    own = {arm: tuned(args, kept, arm) for arm in (FIRST, *args.arms) if arm not in SHARING}
    rates = {arm: own.get(arm, own[FIRST]) for arm in args.arms}
    jobs = {arm: [kept.made(arm, rates[arm], base, seed) for base in bases for seed in seeds] for arm in args.arms}
    kept.run([job for each in zip(*jobs.values(), strict=True) for job in each], 2 * (args.cores or 2))
    before = {(arm, base): start(args, arm, base) for arm in ("float32", "nvfp4", "mxfp4") for base in bases}
    cells = [cell for arm in args.arms if (cell := summary(arm, rates[arm], kept.of(jobs[arm]), before))]
    results = {
        **setting.facts("torch", "numpy", "transformers", "tokenizers"),
        "bases": list(bases),
        "seeds": list(seeds),
        "failed": kept.failed,
        "before": [{"arm": arm, "base": base, **line} for (arm, base), line in before.items()],
        "cells": cells,
    }
    setting.save(args, "qerl/qerl", results, table(results), figure)


def place(args: argparse.Namespace, seed: int) -> Path:
    """The directory of a base."""
    return Path(args.runs).resolve() / f"base-{'small' if args.quick else 'arithmetic'}-seed{seed}"


def prepare(args: argparse.Namespace, seed: int) -> None:
    """Pre-train a base that is not there."""
    if not place(args, seed).exists():
        place(args, seed).parent.mkdir(parents=True, exist_ok=True)
        small = {"layers": 1, "width": 32, "heads": 2, "steps": 2} if args.quick else {}
        pretrain.pretrain(place(args, seed), pretrain.Settings(seed=seed, **small), print)


def words(args: argparse.Namespace, arm: str, rate: float, base: int) -> list[str]:
    """The flags of an arm on a base."""
    made = {"language.base": str(place(args, base)), **ARMS[arm], "algorithm.learning_rate": f"{rate:g}"}
    if arm == "random subspace":
        made["generator.numbers"] = str(numbers(args))
    return [word for key, value in made.items() for word in (f"--{key}", value)]


@cache
def _numbers(base: Path) -> int:
    changes = runs.fields(["--language.base", str(base), "--generator.source", "circuit"])
    return int(describe(with_flags(preset(PRESET), changes))["total_parameters"])


def numbers(args: argparse.Namespace) -> int:
    """What the arm ``circuit`` trains."""
    return _numbers(place(args, BASES[0]))


class Lines(Kept):
    """The lines of all runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        super().__init__((args.output or setting.RESULTS) / "qerl" / "runs.jsonl", WHAT, self._line, self._trained)

    def made(self, arm: str, rate: float, base: int, seed: int) -> runs.Job:
        """One training, judged by questions of training where the rate is tuned."""
        judged = ["--evaluate.every", "120", "--evaluate.validation_episodes", "2000"] if seed == TUNING else []
        small = SMALL if self.args.quick else ()
        flags = (*words(self.args, arm, rate, base), *judged, *small)
        kind = "supervised" if arm == "supervised" else PRESET
        return self.job(runs.Job(kind, seed, 1, flags), arm, rate, base, seed)

    def _trained(self, jobs: list[runs.Job]) -> dict[runs.Job, runs.Run | str]:
        taught = [job for job in jobs if job.preset == "supervised"]
        found = runs.done([job for job in jobs if job not in taught], self.args.runs, self.args.cores)
        for job in taught:
            found[job] = self._taught(job)
        return found

    def _taught(self, job: runs.Job) -> dict:
        config = with_flags(preset(PRESET), runs.fields([*job.flags, "--train.seed", str(job.seed)]))
        made, cpu_s = supervised(config, 2 if self.args.quick else 200)
        purpose = "validation" if job.seed == TUNING else "evaluation"
        asked = adapted.questions(made.task, purpose, 0, range(config.evaluate.episodes))
        return {"greedy": float(adapted.answers(made, asked)[0].mean()), "cpu_s": cpu_s, **sampled(made, job.seed)}

    def _line(self, run: runs.Run | dict) -> Line:
        if isinstance(run, dict):
            return run
        made = adapted.load(run.directory / "policy.safetensors")
        result, tuning = run.result, run.config.train.seed == TUNING
        greedy = result["validation_return"] if tuning else result["evaluation"]["mean"]
        with (run.directory / "metrics.jsonl").open() as file:
            trained = json.loads(file.readline())["trained"]
        facts = {"trained": trained, "factors": len(made.factors_F)}
        drawn = {} if tuning else sampled(made, run.config.train.seed)
        return {"greedy": greedy, "cpu_s": round(result["cpu_s"], 1), **facts, **drawn}


def sampled(made: Adapted, seed: int) -> dict[str, list[float]]:
    """pass@1 to pass@8 of questions of the tests (Chen et al., arXiv 2107.03374, eq. 1)."""
    asked = adapted.questions(made.task, "evaluation", 0, range(QUESTIONS))
    streams = [seeding.stream(seed, "action", i, j) for i in range(QUESTIONS) for j in range(SAMPLES)]
    rewards, _ = adapted.answers(made, [q for q in asked for _ in range(SAMPLES)], streams)
    return {"passed": passed((rewards.reshape(QUESTIONS, SAMPLES) > 0).sum(1)).round(5).tolist()}


def passed(right_N: np.ndarray) -> np.ndarray:
    """The chance that one of k of the samples is right, k from 1 to all.

    >>> passed(np.array([0, 8])).tolist()[:2]
    [0.5, 0.5]
    """
    wrong_N, out, chance_N = SAMPLES - right_N, [], np.ones(len(right_N))
    for k in range(SAMPLES):
        chance_N = chance_N * np.maximum(wrong_N - k, 0) / (SAMPLES - k)
        out.append(1 - chance_N.mean())
    return np.array(out)


def tuned(args: argparse.Namespace, kept: Lines, arm: str) -> float:
    """The rate that is best on the base for tuning."""
    rates = RATES[1:2] if args.quick else [10 * rate for rate in RATES] if arm in OF_ANGLES else RATES
    if len(rates) == 1:
        return rates[0]
    jobs = [kept.made(arm, rate, TUNING, TUNING) for rate in rates]
    kept.run(jobs, 2 * (args.cores or 2))
    scores = [lines[0]["greedy"] if (lines := kept.of([job])) else -np.inf for job in jobs]
    return rates[int(np.argmax(scores))]


@cache
def _untrained(arm: str, base: Path) -> Adapted:
    flags = {"language.base": [str(base)], **{key: [value] for key, value in ARMS[arm].items()}}
    config = with_flags(preset(PRESET), flags)
    (spec,) = specs(config)
    zeros_F = torch.zeros(spec.num_weights)
    made = Adapted(
        zeros_F, zeros_F, spec.sha256, config.language, config.adapter, "float32", {"source": "none", "env_steps": 0}
    )
    spec.model.start(zeros_F)
    return made.with_model(spec.model, spec.task)


def start(args: argparse.Namespace, arm: str, base: int) -> dict:
    """What a base answers before anything is trained."""
    made = _untrained(arm, place(args, base))
    asked = adapted.questions(made.task, "evaluation", 0, range(8 if args.quick else 2000))
    return {"greedy": float(adapted.answers(made, asked)[0].mean()), **sampled(made, 0)}


def summary(arm: str, rate: float, lines: list[Line], before: dict) -> dict | None:
    """The runs of an arm: means, and intervals over bases."""
    if not lines:
        return None
    base_arm = arm if arm in ("float32", "mxfp4") else "nvfp4"
    found = {}
    for name, of in (("greedy", lambda line: line["greedy"]), ("sampled", lambda line: line["passed"][0])):
        bases = sorted({line["base"] for line in lines})
        means = np.array([np.mean([of(line) for line in lines if line["base"] == base]) for base in bases])
        gains = means - [of(before[base_arm, base]) for base in bases]
        found[name] = {
            "mean": float(means.mean()),
            "interval": between(means),
            "gain": float(gains.mean()),
            "gain_interval": between(gains),
        }
    return {
        "arm": arm,
        "rate": rate,
        "runs": len(lines),
        "trained": lines[0].get("trained"),
        "factors": lines[0].get("factors"),
        **found,
        "passed": np.mean([line["passed"] for line in lines], axis=0).tolist(),
        "cpu_s": float(np.mean([line["cpu_s"] for line in lines])),
        "lines": [{key: line[key] for key in ("base", "seed", "greedy", "passed")} for line in lines],
    }


def between(x: np.ndarray) -> tuple[float, float]:
    """The interval of a mean; without width where there is one number."""
    return interval(lambda drawn: float(drawn.mean()), x) if len(x) > 1 else (float(x[0]), float(x[0]))


def table(results: dict) -> str:
    """The results as Markdown."""
    lost, before = results["failed"], results["before"]
    lines = [
        "# GRPO of a decoder on a frozen base",
        "",
        setting.line(results),
        f"{len(results['bases'])} bases, {len(results['seeds'])} seeds each; protocol.md says how. "
        + ("No run failed." if not lost else f"**{len(lost)} runs failed**: " + "; ".join(lost) + "."),
        "",
        "Accuracy on questions that no training asked; intervals of 95 % over bases. Gain: over the same base, rounded",
        "alike, before GRPO.",
        "",
        "| untrained base | greedy | pass@1 | pass@8 |",
        "|---|--:|--:|--:|",
    ]
    for arm in dict.fromkeys(line["arm"] for line in before):
        own = [line for line in before if line["arm"] == arm]
        cells = [np.mean([line["greedy"] for line in own]), *np.mean([line["passed"] for line in own], axis=0)[[0, -1]]]
        lines.append(f"| {arm} | " + " | ".join(f"{x:.3f}" for x in cells) + " |")
    lines += [
        "",
        "| arm | rate | trained | greedy | gain | pass@1 | gain | pass@8 | CPU s | runs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for c in results["cells"]:
        cells = [c["arm"], f"{c['rate']:g}", "" if c["trained"] is None else f"{c['trained']:,}"]
        for name in ("greedy", "sampled"):
            low, high = c[name]["interval"]
            gain_low, gain_high = c[name]["gain_interval"]
            cells.append(f"{c[name]['mean']:.3f} ({low:.3f} to {high:.3f})")
            cells.append(f"{c[name]['gain']:+.3f} ({gain_low:+.3f} to {gain_high:+.3f})")
        cells += [f"{c['passed'][-1]:.3f}", f"{c['cpu_s']:.0f}", str(c["runs"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """Greedy accuracy of every arm, and pass@k."""
    drawn, (left, right) = figures.panels(2)
    for number, c in enumerate(results["cells"]):
        color, marker = figures.COLORS[number % 8], figures.MARKERS[(number + number // 8) % 8]
        means = [np.mean([x["greedy"] for x in c["lines"] if x["base"] == base]) for base in results["bases"]]
        left.plot([number] * len(means), means, marker, color=color, alpha=0.5)
        left.plot([number], [c["greedy"]["mean"]], "_", color="black", markersize=14)
        style = figures.LINES[number // 8]
        right.plot(range(1, SAMPLES + 1), c["passed"], style, color=color, marker=marker, label=c["arm"])
    left.set_xticks(range(len(results["cells"])), [c["arm"] for c in results["cells"]], rotation=40, ha="right")
    left.set_ylabel("greedy accuracy, every base and mean")
    right.set_xlabel("k")
    right.set_ylabel("pass@k")
    drawn.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
