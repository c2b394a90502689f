"""distqtrl search-bits: bit widths, chosen by many trainings."""

import json
import signal
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from distqtrl.allreduce.agreement import Refused, agreed, check_equal
from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import (
    Flags,
    add_alone,
    add_configuration,
    add_fields,
    add_proof,
    coefficients,
    numbers,
    path,
    resolve,
)
from distqtrl.cli.output import print_json, say, tell
from distqtrl.errors import UserError
from distqtrl.training import stopping

if TYPE_CHECKING:
    from distqtrl.search.grid import Search

TEXT = "Choose bit widths: train with quantization, share the runs out, export the best."
SHARED = True
START = (
    "Start it as often as there are cores: under mpirun, in a SLURM array (launch/search.sbatch), by hand. Every "
    "process takes the next training that nobody has taken. Started again, it resumes."
)
BITS = tuple("12345678")  # of the core, as text
OWN = {  # fields that a search sets for each of its trainings, and what to give instead
    "train.seed": "--seeds",
    "quantize.aware": "none of it, it trains both",
    "quantize.core_bits": "--core-bits",
    "quantize.input_bits": "--input-bits",
    "quantize.output_bits": "--output-bits",
}


def add(command: ArgumentParser) -> None:
    """Add the command's flags."""
    command.epilog = START
    add_configuration(command)
    text = "the folder of this search, new or begun"
    command.add_argument("-o", "--output", type=path, required=True, metavar="DIR", help=text)
    text = "rule = the smallest core bits, then width, then input bits that pass (arXiv 2511.07046); pareto = all "
    text += "combinations, and the front of return and cost [rule]"
    command.add_argument("--mode", choices=("rule", "pareto"), default="rule", help=text)
    _add_grid(command)
    text = "rule: a step ends at the first policy that fails, smaller ones are not trained"
    command.add_argument("--stop-at-failure", action="store_true", help=text)
    text = "pareto: cost of the median seed's policy: LUTs, ns at 100 MHz or energy per action of a core, or memory "
    text += "of the C code on a Cortex-M4 [luts]"
    command.add_argument("--cost", choices=("luts", "ns", "energy", "memory"), help=text)
    text = "pareto: the core whose cost counts [folded]"
    command.add_argument("--core", choices=("folded", "unrolled"), default="folded", help=text)
    text = "for --cost energy: static power and energy per toggle, such as 0.06,2e-13"
    command.add_argument("--energy", metavar="WATTS,JOULES", help=text)
    text = "targets to export what is chosen to [c,verilog]"
    command.add_argument("--target", default="c,verilog", metavar="LIST", help=text)
    add_proof(command)
    add_alone(command, "--dry-run", "print what would be trained, and exit")
    add_fields(command)


def _add_grid(command: ArgumentParser) -> None:
    """Add the lists of what is tried."""
    lists = {
        "--core-bits": (
            "8,7,6,5,4,3,2",
            "1 to 8 bits of weights and hidden activations; pareto: also per layer, such as 4:2:3",
        ),
        "--widths": ("256,128,64,32,16", "widths, each of every hidden layer"),
        "--input-bits": ("8,7,6,5,4,3,2", "bits of observations"),
        "--output-bits": ("8", "bits of what the head reads"),
        "--seeds": ("0-4", "seeds of every policy, such as 0-9 or 1,2,4"),
    }
    for flag, (default, text) in lists.items():
        command.add_argument(flag, default=default, metavar="LIST", help=f"{text} [{default}]")


def run(args: Namespace, flags: Flags, comm: Communicator) -> int:
    """Work on the search; returns the exit code.

    Every rank is a worker of its own; ranks speak with each other before and after, but not while they work.
    """
    from distqtrl.search import rule, workers
    from distqtrl.search.page import summary

    asked = agreed(comm, lambda: search(args, flags))
    check_equal(comm, json.dumps(asked.settings()).encode(), "configurations", "give every rank the same files")
    if args.dry_run:
        return _print_plan(rule.plan(asked), args.json)
    agreed(comm, lambda: workers.checked(asked))
    where = f"worker {comm.rank}: " if comm.size > 1 else ""
    with stopping.collected() as pending:
        try:
            code = workers.work(workers.Worker(asked, pending, lambda text: say(f"{where}{text}")))
        except Refused as error:  # by this worker alone: the other ranks have to be ended
            raise UserError(str(error)) from None
        if code == stopping.EXIT_CODES[signal.SIGUSR1]:
            stopping.requeued()
    about = workers.read(asked.directory)
    if about is not None and about["status"] == "complete" and comm.rank == 0:
        files = f"  {asked.directory}: search.md, search.json, search.png{', chosen' if about['chosen'] else ''}"
        whole = {"search": str(asked.directory), **about}
        tell(args.json, whole, "\n".join([*summary(about), files]))
    agreed(comm, lambda: None)  # leave together, as after training
    return code or int(about is None or about["chosen"] is None)


def _print_plan(plan: list[tuple[str, list[str], int]], as_json: bool) -> int:
    total = sum(runs for _, _, runs in plan)
    if as_json:
        steps = [{"step": what, "policies": names, "runs": runs} for what, names, runs in plan]
        print_json({"steps": steps, "runs": total})
        return 0
    for what, names, runs in plan:
        print(f"{what}: at most {runs} runs: {' '.join(names)}")
    print(f"at most {total} runs")
    return 0


def search(args: Namespace, flags: Flags) -> "Search":
    """The search that the command line asks for; raises UserError."""
    from distqtrl.export.options import Options
    from distqtrl.export.targets import named
    from distqtrl.search import grid

    config = resolve(args, flags)
    for key, instead in OWN.items():
        if key in flags:
            raise UserError(f"--{key}: the search sets it itself: remove it, and give {instead}")
    rule = args.mode == "rule"
    made = grid.Search(
        directory=args.output,
        config=config,
        mode=args.mode,
        widths=_descending(listed("--widths", args.widths, least=1)),
        core_bits=core_bits(args.core_bits),
        input_bits=_descending(listed("--input-bits", args.input_bits, least=1, most=8)),
        output_bits=_descending(listed("--output-bits", args.output_bits, least=1, most=8)),
        seeds=listed("--seeds", args.seeds, least=0, most=2**32 - 1),
        stop_at_failure=args.stop_at_failure,
        cost=args.cost if rule else args.cost or "luts",
        core=args.core,
        energy=coefficients(args.energy),
        export=Options(
            targets=named(args.target),
            vectors=args.vectors,
            episodes=args.episodes,
            imports=True,
            limit_s=args.tool_limit,
        ),
    )
    grid.check(config)
    _check_rule(args, made) if rule else _check_pareto(args, made)
    return made


def _check_rule(args: Namespace, made: "Search") -> None:
    """Raise UserError for what only --mode pareto has a use for, and for too few seeds."""
    if args.cost is not None or args.energy is not None:
        flag, value = ("--cost", args.cost) if args.cost is not None else ("--energy", args.energy)
        raise UserError(f"{flag} {value}: the rule looks at no cost: remove it, or give --mode pareto")
    if any(len(core) > 1 for core in made.core_bits):
        raise UserError(f"--core-bits {args.core_bits}: the rule takes one number for all layers: use --mode pareto")
    if len(made.output_bits) > 1:
        raise UserError(f"--output-bits {args.output_bits}: the rule keeps one number: use --mode pareto for more")
    if len(made.seeds) < 2:
        raise UserError(f"--seeds {args.seeds}: the rule needs the deviation over seeds: give 2 or more, such as 0-4")


def _check_pareto(args: Namespace, made: "Search") -> None:
    """Raise UserError for what only --mode rule has a use for, and for a cost that cannot be found here."""
    from distqtrl.search import cost

    if made.stop_at_failure:
        raise UserError("--stop-at-failure belongs to --mode rule: remove it")
    layers = len(made.config.policy.convolutions) + len(made.config.policy.hidden) + 1
    for core in made.core_bits:
        if len(core) not in (1, layers):
            text = ":".join(map(str, core))
            raise UserError(f"--core-bits {text}: the policy has {layers} layers: give 1 or {layers}")
    if made.cost == "energy" and made.energy is None:
        raise UserError("--cost energy needs --energy WATTS,JOULES: static power and energy per toggle")
    if made.cost != "energy" and made.energy is not None:
        raise UserError(f"--energy {args.energy}: only --cost energy has a use for it: remove it")
    assert made.cost is not None
    cost.check(made.cost)


def listed(flag: str, text: str, least: int, most: int | None = None) -> tuple[int, ...]:
    """The numbers of a flag's list; raises UserError, also for one that is not from ``least`` to ``most``."""
    try:
        values = numbers(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
    for value in values:
        if value < least or (most is not None and value > most):
            upper = "" if most is None else f", at most {most}"
            raise UserError(f"{flag} {text}: {value} does not fit: at least {least}{upper}")
    return values


def core_bits(text: str) -> tuple[tuple[int, ...], ...]:
    """Bits of the core, in descending order; raises UserError.

    >>> core_bits("4,8"), core_bits("4:2:3,4")
    (((8,), (4,)), ((4, 2, 3), (4,)))
    """
    found = [tuple(int(b) if b in BITS else 0 for b in part.split(":")) for part in text.split(",")]
    if not all(1 <= bits <= 8 for part in found for bits in part):
        raise UserError(f"--core-bits {text}: write numbers from 1 to 8, such as 8,6,4, or 4:2:3 for three layers")
    if len(set(found)) < len(found):
        raise UserError(f"--core-bits {text}: names a number twice")
    return _descending(found)


def _descending(values: Any) -> tuple[Any, ...]:
    return tuple(sorted(values, reverse=True))
