"""distqtrl verify."""

import argparse
import json
from dataclasses import asdict

from distqtrl.cli.arguments import Flags
from distqtrl.cli.output import _aside


def _verify(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.export import readme, targets, tools, verify

    say, found = _aside(args.json), []
    named = targets.named(args.target) if args.target is not None else ()
    more = {"netlists": args.implement, "imports": args.import_environment}
    with tools.orderly(args.tool_limit):
        for check in verify.checks(args.folder, args.vectors, args.episodes, named, **more):
            say(readme.line(check))
            found.append(check)
    if args.json:
        print(json.dumps([asdict(check) for check in found]))
    return verify.exit_code(found, named)
