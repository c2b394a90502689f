"""distqtrl slurm."""

import argparse
import json
import sys
from pathlib import Path

from distqtrl.cli.arguments import Flags, _add_fields, _number, resolve


def _slurm(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl import slurm
    from distqtrl.generator import names

    config = resolve(args, flags)
    names.check(config)
    named = {"partition": args.partition, "nodelist": args.nodelist}
    job = slurm.checked(
        slurm.Job(
            name=args.preset or args.config.stem,
            words=(*([args.preset] if args.preset else [f"--config={args.config}"]), *_words(flags)),
            directory=config.train.directory,
            nodes=args.nodes,
            ranks_per_node=args.ranks_per_node,
            threads=config.train.threads,
            time=args.time,
            memory=args.memory,
            notice_s=args.notice,
            seeds=slurm.numbers(args.array_seeds) if args.array_seeds else (),
            ranks=slurm.numbers(args.array_ranks) if args.array_ranks else (),
            requeue=args.requeue,
            sbatch=(*(f"--{flag}={value}" for flag, value in named.items() if value), *args.sbatch),
        ),
        config,
    )
    text = slurm.script(job, slurm.launcher(args.launcher), sys.executable)
    if args.dry_run:
        print(text, end="")
        return 0
    path, number = slurm.submit(job, text, args.nodelist, args.partition)
    if args.json:
        print(json.dumps({"job": number, "script": str(path)}))
    else:
        print(f"submitted job {number} ({path}); watch it with: squeue --job {number}")
    return 0


def _words(flags: Flags) -> list[str]:
    words = []
    for key, values in flags.items():
        words += [f"--{key}={values[0]}", *values[1:]] if values[0].startswith("-") else [f"--{key}", *values]
    return words


def _add_slurm(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("preset", nargs="?", metavar="PRESET", help="as of train")
    sub.add_argument("--config", type=Path, metavar="FILE", help="a TOML or JSON file in place of a preset")
    sub.add_argument("--nodes", type=_number(1), default=1, metavar="N", help="default 1")
    sub.add_argument("--ranks-per-node", type=_number(1), default=4, metavar="N", help="default 4")
    sub.add_argument("--time", default="60", metavar="LIMIT", help="minutes, h:m:s or d-h:m:s [60]")
    text = "SIGUSR1 comes so many seconds before the time limit: the run saves, and is requeued [120]"
    sub.add_argument("--notice", type=_number(1), default=120, metavar="S", help=text)
    sub.add_argument("--memory", default="2G", metavar="SIZE", help="of one rank, over all its threads [2G]")
    sub.add_argument("--array-seeds", metavar="LIST", help="a job array over seeds, such as 0-9")
    text = "a job array over numbers of ranks, such as 1,2,4,8; every task is given the largest allocation"
    sub.add_argument("--array-ranks", metavar="LIST", help=text)
    text = "auto = srun where it speaks with the MPI that is installed, else its mpirun"
    sub.add_argument("--launcher", choices=("auto", "srun", "mpirun"), default="auto", help=text)
    text = "without, a run that the time limit stopped waits for you"
    sub.add_argument("--requeue", action=argparse.BooleanOptionalAction, default=True, help=text)
    sub.add_argument("--partition", metavar="NAME", help="default: the cluster's")
    sub.add_argument("--nodelist", metavar="LIST", help="hosts, as SLURM writes them: n[1-4]")
    text = "a further flag of sbatch, such as --sbatch=--account=abc; may be given several times"
    sub.add_argument("--sbatch", action="append", default=[], metavar="FLAG", help=text)
    sub.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    _add_fields(sub)
