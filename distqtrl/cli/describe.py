"""distqtrl describe."""

import argparse
import json
from pathlib import Path

from distqtrl.cli.arguments import Flags
from distqtrl.config import sources
from distqtrl.config.run import differences
from distqtrl.config.sources import load, preset, presets, with_flags


def _describe(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.report.describe import describe

    path = Path(args.preset)
    config = load(path / "config.json") if path.is_dir() else preset(args.preset)
    config = with_flags(config, flags)
    facts = describe(config)
    if not path.is_dir():
        facts = {"preset": presets()[args.preset]} | facts
        if parent := sources.parent(args.preset):
            facts |= {"extends": parent, "changes": differences(preset(parent), config)}
    if args.json:
        print(json.dumps(facts))
        return 0
    width, changes = max(len(name) for name in facts), facts.pop("changes", {})
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    for key, (old, new) in changes.items():
        print(f"{'':<{width}}  {key}: {old} -> {new}")
    return 0
