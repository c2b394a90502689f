"""distqtrl site-check: whether this cluster (or machine) is fit for trainings, and what to do where it is not."""

import os
import platform
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, path, whole_number
from distqtrl.cli.output import print_json
from distqtrl.errors import UserError, lookup

if TYPE_CHECKING:
    from distqtrl.doctor.launching import Site

TEXT = "Check a cluster in under five minutes: MPI, filesystems, signals, kill and resume; each with a remedy."
SHARED = False


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    text = "where runs are to be written [runs]"
    command.add_argument("--directory", type=path, default=Path("runs"), metavar="DIR", help=text)
    text = "ranks to start [inside a SLURM job its tasks, else 2]"
    command.add_argument("--ranks", type=whole_number(1), metavar="N", help=text)
    text = "what starts the ranks; auto = as `distqtrl slurm` inside a SLURM job, else mpirun [auto]"
    command.add_argument("--launcher", choices=("auto", "srun", "mpirun"), default="auto", help=text)
    text = "the mpirun to use [the one beside this Python, else the one on PATH]"
    command.add_argument("--mpirun", metavar="FILE", help=text)
    text = "seconds for all of it; what does not fit is not checked [280]"
    command.add_argument("--limit", type=whole_number(1), default=280, metavar="S", help=text)
    text = "only these, and what they need: names with commas between them"
    command.add_argument("--only", metavar="LIST", help=text)
    text = "also submit a SLURM job of one minute, to see its signal and requeue (--limit 600 where queues are long)"
    command.add_argument("--submit", action="store_true", help=text)
    text = "a further flag of sbatch for that job, such as --sbatch=--account=abc; may be given several times"
    command.add_argument("--sbatch", action="append", default=[], metavar="FLAG", help=text)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Print one line per check as it is done, or one JSON object; 1 where anything failed."""
    from distqtrl.doctor import site as checks

    only = args.only.split(",") if args.only else []
    for name in only:
        lookup("check", name, checks.CHECKS)
    site, began, found = _site(args), time.monotonic(), []
    for result in checks.results(site, args.limit, only):
        found.append(result)
        if not args.json:
            print(f"{result.status:<12} {result.name:<16} {result.found}", flush=True)
            if result.remedy:
                print(f"{'':<29} remedy: {result.remedy}", flush=True)
    told = checks.as_json(site, found, platform.node(), time.monotonic() - began)
    if args.json:
        print_json(told)
    else:
        counts = ", ".join(f"{count} {status}" for status, count in told["counts"].items())
        print(f"{len(found)} checks in {told['took_s']:.0f} s: {counts}")
    return int(told["status"] == "failed")


def _site(args: Namespace) -> "Site":
    """What is to be checked."""
    from distqtrl import slurm
    from distqtrl.doctor.launching import Site, slurm_number

    if args.mpirun and args.launcher == "srun":
        raise UserError("--mpirun FILE and --launcher srun: choose one of them")
    job = "SLURM_JOB_ID" in os.environ
    if args.mpirun:
        launcher = slurm.Launcher(None, args.mpirun)
    else:
        launcher = slurm.launcher(args.launcher if args.launcher != "auto" or job else "mpirun")
    ranks = args.ranks or (slurm_number("SLURM_NTASKS", without=2) if job else 2)
    return Site(args.directory.absolute(), ranks, launcher, args.submit, tuple(args.sbatch))
