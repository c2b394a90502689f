"""GRPO beside TRL's GRPOTrainer: rollouts and steps of the same decoder, prompts, groups and lengths, on a CPU.

    python benchmarks/qerl_speed.py            2 core minutes; writes benchmarks/results/qerl/speed.*
    python benchmarks/qerl_speed.py --quick    one small case; writes nothing unless -o is given

The decoder has random weights, rounded to NVFP4. TRL reads them from a checkpoint in float32 and trains LoRA of the
same rank on the same layers (PEFT), with its own loss, optimizer and loop, nothing logged or saved; ours is the loop's
update, with the weights packed, and with the same checkpoint in float32. No completion ends early, so that lengths are
equal. All take turns: after every step of TRL's trainer, ours makes one each way. Times are CPU seconds of one thread.

Needs the extras llm and llm-peers, the latter best in an environment of its own.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib import setting
from lib.watch import watched

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.frozen import TARGETS
from distqtrl.config.sources import preset, with_flags
from distqtrl.language import arithmetic, checkpoint, pretrain, tasks
from distqtrl.language.model import Model
from distqtrl.language.questions import Task
from distqtrl.training import updates
from distqtrl.training.build import prepare
from distqtrl.training.grpo import update as grpo

PEERS = ("trl", "peft", "accelerate", "datasets")
RATE, RANK = 3e-3, 8
OURS = {"packed": "nvfp4", "float32": "none"}  # adapter.precision of our two ways
QUESTIONS = 2000  # of a task with long prompts
WHAT = ("rollout", "step")


@dataclass(frozen=True)
class Case:
    """Tokens of a prompt and of a completion, prompts and group of an update, the decoder's width and layers."""

    name: str
    asked: int
    answered: int
    prompts: int = 32
    group: int = 8
    width: int = 128
    layers: int = 4


CASES = (
    Case("the preset", 6, 5),
    Case("long completions", 6, 48),
    Case("long prompts", 48, 8),
    Case("few prompts", 6, 16, prompts=4),
    Case("a wide decoder", 6, 16, prompts=8, width=512),
)
SMALL = (Case("small", 6, 3, prompts=2, group=2, width=32, layers=1),)


def main() -> None:
    args = setting.parser(__doc__).parse_args()
    missing = [name for name in PEERS if find_spec(name) is None]
    if missing:
        raise SystemExit(f"no {', '.join(missing)} here: pip install -c constraints.txt -e '.[llm,llm-peers]'")
    from lib.trl_peer import Theirs

    torch.set_num_threads(1)
    cases, times = (SMALL, 2) if args.quick else (CASES, 7)
    results = {
        **setting.facts("torch", "transformers", *PEERS),
        "times": times,
        "cases": [measured(case, times, Theirs) for _, case in setting.said({case.name: case for case in cases})],
    }
    setting.save(args, "qerl/speed", results, table(results))


class Ours:
    """An update after the other."""

    def __init__(self, base: Path, task: str, case: Case, precision: str) -> None:
        flags = {
            "language.base": base,
            "language.task": task,
            "language.prompts": case.prompts,
            "language.group": case.group,
            "language.max_tokens": case.answered,
            "adapter.rank": RANK,
            "adapter.precision": precision,
            "rollout.noise": "none",
            "train.updates": 10_000,
        }
        config = with_flags(preset("qerl-arithmetic"), {key: str(value) for key, value in flags.items()})
        self.run = prepare(config, Serial())
        self.model = self.run.learner.model
        self.model.checkpoint = replace(self.model.checkpoint, ends=(-1,))  # none ends early
        self.steps_s: list[float] = []
        self.rollouts_s: list[float] = []
        self.tokens = 0

    def __call__(self) -> None:
        plain, grpo._rollout = grpo._rollout, watched(grpo._rollout, self.rollouts_s)
        try:
            found, *_ = watched(updates.update, self.steps_s)(self.run, ())
        finally:
            grpo._rollout = plain
        self.tokens = found["tokens"]


def measured(case: Case, times: int, peer: Callable[..., Any]) -> dict[str, Any]:
    """What a case's rollouts and steps take, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        base, rounded = decoder(Path(folder), case)
        task, questions = asked(Path(folder), case)
        ours = {name: Ours(rounded if name == "float32" else base, questions, case, p) for name, p in OURS.items()}
        theirs = peer(rounded, task, case, rank=RANK, rate=RATE, folder=Path(folder))
        differs = max(theirs.differs(each.model) for each in ours.values())
        theirs.train(times + 1, between=[*ours.values()])
    tokens = case.prompts * case.group * case.answered
    assert {tokens} == {theirs.tokens, *(each.tokens for each in ours.values())}  # none has ended early
    everyone = {**ours, "TRL": theirs}
    taken = {
        what: {name: np.array(getattr(each, f"{what}s_s")[1:]) for name, each in everyone.items()} for what in WHAT
    }
    ways = {name: {what: cell(taken[what][name], taken[what]["TRL"]) for what in WHAT} for name in everyone}
    return {**asdict(case), "weights": theirs.weights, "tokens": tokens, "differs": differs, "ways": ways}


def cell(taken_s: np.ndarray, peer_s: np.ndarray) -> dict[str, Any]:
    """The median, and how many times as long the peer takes: quartiles of the turns' ratios."""
    quartiles = np.quantile(peer_s / taken_s, [0.25, 0.5, 0.75]).tolist()
    return {"ms": 1e3 * float(np.median(taken_s)), "ratio": quartiles}


def decoder(folder: Path, case: Case) -> tuple[Path, Path]:
    """Directories of a decoder with random weights, and of the same rounded to NVFP4, in float32."""
    tokenizer = pretrain.characters(arithmetic.CHARACTERS)
    settings = pretrain.Settings(width=case.width, layers=case.layers)
    network = pretrain.decoder(settings, len(tokenizer), ends=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    for part in (network, tokenizer):
        part.save_pretrained(folder / "base")
    model = Model(checkpoint.opened(folder / "base"), "nvfp4", RANK, TARGETS)
    checkpoint.merged(folder / "rounded", model, None, torch.float32)
    return folder / "base", folder / "rounded"


def asked(folder: Path, case: Case) -> tuple[Task, str]:
    """The task and its name: additions, or sums of as many digits as make a prompt of the case's length."""
    if case.asked == len(tasks.opened("arithmetic").question("train", 0).prompt):
        return tasks.opened("arithmetic"), "arithmetic"
    path, drawn = folder / "sums.jsonl", np.random.default_rng(0).integers(10, size=(QUESTIONS, case.asked - 1))
    lines = [{"question": f"{''.join(map(str, row))}=", "answer": str(sum(row))} for row in drawn.tolist()]
    path.write_text("\n".join(map(json.dumps, lines)))
    return tasks.opened(str(path)), str(path)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# GRPO beside TRL's GRPOTrainer",
        "",
        f"CPU milliseconds of one thread, medians of {results['times']} turns; in brackets how many times as long TRL",
        "takes, median and quartiles of the turns' ratios. A step is the update with its rollout and rewards.",
        "",
        "| case | weights | completions | asked, answered | way | rollout | step | tokens / s of a step |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for c in results["cases"]:
        about = f"{c['name']} | {c['weights']:,} | {c['prompts']} x {c['group']} | {c['asked']}, {c['answered']}"
        for name, way in c["ways"].items():
            cells = [f"{way[what]['ms']:.0f}{'' if name == 'TRL' else told(way[what]['ratio'])}" for what in WHAT]
            lines.append(f"| {about} | {name} | {' | '.join(cells)} | {1e3 * c['tokens'] / way['step']['ms']:,.0f} |")
    most = max(c["differs"] for c in results["cases"])
    lines += ["", f"Before training, log probabilities of TRL's decoder and ours differ by at most {most:.0e}."]
    return "\n".join([*lines, "", setting.line(results)])


def told(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f" ({middle:.2f}; {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
