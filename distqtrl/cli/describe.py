"""distqtrl describe: what a preset or a run consists of."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_fields
from distqtrl.config.run import differences
from distqtrl.config.sources import load, parent, preset, presets, with_flags

TEXT = "Print qubits, parameter counts and compression of a preset or run."
SHARED = False


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.add_argument("preset", metavar="PRESET|RUN", help="the name of a preset, or a run directory")
    add_fields(command)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Print the facts, and for a preset that extends another what it changes; returns the exit code."""
    from distqtrl.report.describe import describe

    path = Path(args.preset)
    config = load(path / "config.json") if path.is_dir() else preset(args.preset)
    config = with_flags(config, flags)
    facts = describe(config)
    if not path.is_dir():
        facts = {"preset": presets()[args.preset]} | facts
        if extended := parent(args.preset):
            facts |= {"extends": extended, "changes": differences(preset(extended), config)}
    if args.json:
        print(json.dumps(facts))
        return 0
    width, changes = max(len(name) for name in facts), facts.pop("changes", {})
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    for key, (old, new) in changes.items():
        print(f"{'':<{width}}  {key}: {old} -> {new}")
    return 0
