"""distqtrl describe: what a preset or a run consists of."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_configuration, add_fields, numbers, resolve, whole_number
from distqtrl.cli.output import print_json
from distqtrl.config.run import Config, differences
from distqtrl.config.sources import parent, preset, presets
from distqtrl.errors import UserError

TEXT = "Print qubits, parameter counts and compression of a preset or run."
SHARED = False
MOST_RANKS = 1 << 20


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    add_configuration(command, preset="the name of a preset, or a run directory")
    command.add_argument(
        "--suggest",
        type=whole_number(1),
        metavar="TRAINED",
        help="flags of a generator that trains at most so many numbers",
    )
    command.add_argument(
        "--ranks",
        metavar="N,N",
        help="learning rates on these numbers of ranks, and for a run the speed-up that its noise scale predicts",
    )
    add_fields(command)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Print the facts, and for a preset that extends another what it changes; returns the exit code."""
    from distqtrl.report.describe import describe

    if args.preset is not None and Path(args.preset).is_dir():
        args.preset, args.config = None, Path(args.preset)
    config = resolve(args, flags)
    if args.suggest is not None:
        return _suggest(config, args.suggest, args.json)
    facts = describe(config)
    if args.preset is not None:
        facts = {"preset": presets()[args.preset]} | facts
        if extended := parent(args.preset):
            facts |= {"extends": extended, "changes": differences(preset(extended), config)}
    on_ranks = {} if args.ranks is None else _on_ranks(args.config, config, args.ranks)
    if args.json:
        print_json(facts | ({"ranks": on_ranks} if on_ranks else {}))
        return 0
    changes = facts.pop("changes", {})
    for n, told in on_ranks.items():
        facts[f"{n} rank{'s' if n > 1 else ''}"] = ", ".join(f"{k.replace('_', ' ')} {x:g}" for k, x in told.items())
    width = _table(facts)
    for key, (old, new) in changes.items():
        print(f"{'':<{width}}  {key}: {old} -> {new}")
    return 0


def _on_ranks(path: Path | None, config: Config, text: str) -> dict[int, dict[str, float]]:
    """What is expected of numbers of ranks: learning rates, and the speed-up over one rank where there is a run."""
    from distqtrl.report.describe import learning_rates
    from distqtrl.report.runs import read
    from distqtrl.report.speedup import predicted

    wanted = numbers(text)
    if min(wanted) < 1 or max(wanted) > MOST_RANKS:
        raise UserError(f"--ranks {text}: ranks are counted from 1, to {MOST_RANKS:,} at most")
    found: dict[int, dict[str, float]] = {n: dict(learning_rates(config, n)) for n in wanted}
    if path is not None and path.is_dir():
        for n, times in predicted(read(path), wanted).items():
            found[n]["predicted_speedup"] = float(f"{times:.4g}")
    return found


def _suggest(config: Config, trained: int, as_json: bool) -> int:
    """Print flags and what they make; returns the exit code."""
    from distqtrl.report.suggest import suggest

    flags, facts = suggest(config, trained)
    if as_json:
        print_json({"flags": flags, **facts})
        return 0
    print(" ".join(f"--{key} {value}" for key, value in flags.items()), end="\n\n")
    _table(facts)
    return 0


def _table(facts: dict[str, Any]) -> int:
    """Print a line per fact; returns the width of the names."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    return width
