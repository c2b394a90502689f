"""distqtrl report: one page of many runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, path
from distqtrl.cli.output import tell

TEXT = "Make one page of any set of runs: scores, curves, cost of a target, verdicts, parameters, time, versions."
SHARED = False


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run directories, or folders of them")
    page = Path("report.html")
    command.add_argument("-o", "--output", type=path, default=page, metavar="FILE", help=f"the page [{page}]")
    text = "count what this return costs [evaluate.target, else train.target, of the runs]"
    command.add_argument("--target", type=float, metavar="RETURN", help=text)
    text = "also write the runs as the JSON that marl-eval reads"
    command.add_argument("--marl-eval", type=path, metavar="FILE.json", help=text)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Write the page and print the files that were written; returns the exit code."""
    from distqtrl.report.html import report

    files = [str(path) for path in report(args.runs, args.output, args.marl_eval, args.target)]
    tell(args.json, {"files": files}, "\n".join(files))
    return 0
