"""distqtrl slurm: a training run as a SLURM job."""

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_configuration, add_fields, numbers, resolve, whole_number
from distqtrl.cli.output import tell

TEXT = "Write and submit a SLURM job that trains, and resumes by itself after its time limit."
SHARED = False


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    add_configuration(command)
    command.add_argument("--nodes", type=whole_number(1), default=1, metavar="N", help="number of nodes [1]")
    text = "ranks on every node [4]"
    command.add_argument("--ranks-per-node", type=whole_number(1), default=4, metavar="N", help=text)
    text = "time limit: minutes, h:m:s or d-h:m:s [60]"
    command.add_argument("--time", default="60", metavar="LIMIT", help=text)
    text = "SIGUSR1 comes this many seconds before the time limit: the run saves, and is requeued [120]"
    command.add_argument("--notice", type=whole_number(1), default=120, metavar="S", help=text)
    text = "memory of one rank, all its threads together [2G]"
    command.add_argument("--memory", default="2G", metavar="SIZE", help=text)
    command.add_argument("--array-seeds", metavar="LIST", help="submit a job array over seeds, such as 0-9")
    text = "submit a job array over numbers of ranks, such as 1,2,4,8; every task is given the largest allocation"
    command.add_argument("--array-ranks", metavar="LIST", help=text)
    text = "what starts the ranks; auto = srun where it works with the installed MPI, else that MPI's mpirun [auto]"
    command.add_argument("--launcher", choices=("auto", "srun", "mpirun"), default="auto", help=text)
    text = "whether a run that the time limit stopped resumes by itself, or waits for you [yes]"
    command.add_argument("--requeue", action=BooleanOptionalAction, default=True, help=text)
    command.add_argument("--partition", metavar="NAME", help="partition [the cluster's default]")
    command.add_argument("--nodelist", metavar="LIST", help="hosts, as SLURM writes them: n[1-4]")
    text = "a further flag of sbatch, such as --sbatch=--account=abc; may be given several times"
    command.add_argument("--sbatch", action="append", default=[], metavar="FLAG", help=text)
    text = "let the job send circuits to a device that is not simulated, as in train"
    command.add_argument("--yes", action="store_true", help=text)
    command.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    add_fields(command)


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Submit the job, or print its script; returns the exit code."""
    from distqtrl import slurm
    from distqtrl.generator import names

    config = resolve(args, flags)
    names.check(config)
    named = {"partition": args.partition, "nodelist": args.nodelist}
    job = slurm.checked(
        slurm.Job(
            name=args.preset or args.config.stem,
            words=(
                *([args.preset] if args.preset else [f"--config={args.config}"]),
                *_words(flags),
                *(["--yes"] if args.yes else []),
            ),
            directory=config.train.directory,
            nodes=args.nodes,
            ranks_per_node=args.ranks_per_node,
            threads=config.train.threads,
            time=args.time,
            memory=args.memory,
            notice_s=args.notice,
            seeds=numbers(args.array_seeds) if args.array_seeds else (),
            ranks=numbers(args.array_ranks) if args.array_ranks else (),
            requeue=args.requeue,
            sbatch=(*(f"--{flag}={value}" for flag, value in named.items() if value), *args.sbatch),
        ),
        config,
    )
    text = slurm.script(job, slurm.launcher(args.launcher), sys.executable)
    if args.dry_run:
        tell(args.json, {"text": text}, text.removesuffix("\n"))
        return 0
    path, number = slurm.submit(job, text, args.nodelist, args.partition)
    submitted = f"submitted job {number} ({path}); watch it with: squeue --job {number}"
    tell(args.json, {"job": number, "script": str(path)}, submitted)
    return 0


def _words(flags: Flags) -> list[str]:
    """The fields as words of a command line again; a value that looks like a flag is joined to its own."""
    words = []
    for key, values in flags.items():
        words += [f"--{key}={values[0]}", *values[1:]] if values[0].startswith("-") else [f"--{key}", *values]
    return words
