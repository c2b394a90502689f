"""distqtrl pretrain: a small decoder of one's own, to be the base of a training by reinforcement."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, path, whole_number
from distqtrl.cli.output import aside, print_json

TEXT = "Pre-train a small language model on a task's own answers, as a base for train."
SHARED = False
TASKS = ("arithmetic",)


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.add_argument("task", choices=TASKS, metavar="TASK", help="arithmetic: sums of two numbers of two digits")
    text = "the directory to write, as transformers loads it; it must not exist"
    command.add_argument("-o", "--output", type=path, required=True, metavar="DIR", help=text)
    text = "architecture of the decoder: qwen2, qwen3 or llama [qwen2]"
    command.add_argument("--family", default="qwen2", metavar="NAME", help=text)
    sizes = {"layers": (4, "blocks"), "width": (128, "width of a block"), "heads": (4, "attention heads of a block")}
    for name, (default, text) in sizes.items():
        command.add_argument(
            f"--{name}", type=whole_number(1, 4096), default=default, metavar="N", help=f"{text} [{default}]"
        )
    text = "steps of 128 questions, at most [2000]"
    command.add_argument("--steps", type=whole_number(1, 10**6), default=2000, metavar="N", help=text)
    text = "part of right answers at which it ends, which leaves something to learn [0.7]"
    command.add_argument("--accuracy", type=_part, default=0.7, metavar="X", help=text)
    command.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help="random seed [0]")


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Write the base and say how good it is; returns the exit code."""
    from distqtrl.language import pretrain

    settings = pretrain.Settings(
        family=args.family,
        layers=args.layers,
        width=args.width,
        heads=args.heads,
        steps=args.steps,
        accuracy=args.accuracy,
        seed=args.seed,
    )
    found = pretrain.pretrain(args.output, settings, aside(args.json))
    if args.json:
        print_json(found)
    else:
        right = f"{found['accuracy']:.1%} of unseen sums right by greedy choice"
        print(f"{args.output}: {found['weights']:,} weights, {right}")
    return 0


def _part(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 < found <= 1:
        raise ArgumentTypeError(f"'{text[:40]}' is not a fraction: write a number above 0, at most 1")
    return found
