"""distqtrl verify: the proof of an exported folder, once more."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_permission, add_proof, path
from distqtrl.cli.output import aside, print_json

TEXT = "Check an exported folder again: every target whose tool is here, vector by vector."
SHARED = False
EXIT_CODES = (
    "Exit code 0: everything that was asked for is equal. 1: something differs. 2: it cannot be done as asked. "
    "3: a target named with --target could not be checked, or nothing could."
)


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.epilog = EXIT_CODES
    command.add_argument("folder", type=path, metavar="DIR", help="a folder made by export")
    text = "targets that must be checked [every one of the folder's that can be]"
    command.add_argument("--target", metavar="LIST", help=text)
    text = "also simulate the synthesized netlists (minutes)"
    command.add_argument("--implement", action="store_true", help=text)
    add_proof(command)
    add_permission(command)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Print every check as it is done; returns the exit code."""
    from distqtrl.export import readme, targets, tools, verify

    say, found = aside(args.json), []
    named = () if args.target is None else targets.named(args.target)
    more = {"netlists": args.implement, "imports": args.import_environment}
    with tools.orderly(args.tool_limit):
        for check in verify.checks(args.folder, args.vectors, args.episodes, named, **more):
            say(readme.line(check))
            found.append(check)
    if args.json:
        print_json([asdict(check) for check in found])
    return verify.exit_code(found, named)
