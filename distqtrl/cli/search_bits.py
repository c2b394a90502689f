"""distqtrl search-bits."""

import argparse
import json
from pathlib import Path

from distqtrl.allreduce.agreement import Refused, agreed, check_equal
from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, _add_fields, _add_proof, resolve
from distqtrl.cli.terminal import say as _say
from distqtrl.errors import UserError
from distqtrl.training import stopping


def _search_bits(args: argparse.Namespace, flags: Flags, comm: Communicator) -> int:
    """Every rank is a worker of its own; ranks speak with each other before and after, but not while they work."""
    from distqtrl.search import grid, rule, workers
    from distqtrl.search.page import summary

    search = agreed(comm, lambda: grid.search(args, resolve(args, flags), flags))
    check_equal(comm, json.dumps(search.settings()).encode(), "configurations", "give every rank the same files")
    if args.dry_run:
        return _print_plan(rule.plan(search), args.json)
    agreed(comm, lambda: workers.checked(search))
    where = f"worker {comm.rank}: " if comm.size > 1 else ""
    with stopping.collected() as pending:
        try:
            code = workers.work(workers.Worker(search, pending, lambda text: _say(f"{where}{text}")))
        except Refused as error:  # by this worker alone: the other ranks have to be ended
            raise UserError(str(error)) from None
    if (about := workers.read(search.directory)) is not None and about["status"] == "complete" and comm.rank == 0:
        files = f"  {search.directory}: search.md, search.json, search.png{', chosen' if about['chosen'] else ''}"
        print(
            json.dumps({"search": str(search.directory), **about}) if args.json else "\n".join([*summary(about), files])
        )
    agreed(comm, lambda: None)  # leave together, as after training
    return code or int(about is None or about["chosen"] is None)


def _print_plan(plan: list[tuple[str, list[str], int]], as_json: bool) -> int:
    total = sum(runs for _, _, runs in plan)
    if as_json:
        steps = [{"step": what, "policies": names, "runs": runs} for what, names, runs in plan]
        print(json.dumps({"steps": steps, "runs": total}))
        return 0
    for what, names, runs in plan:
        print(f"{what}: at most {runs} runs: {' '.join(names)}")
    print(f"at most {total} runs")
    return 0


def _add_search(sub: argparse.ArgumentParser) -> None:
    sub.epilog = (
        "Start it as often as there are cores: under mpirun, in a SLURM array (launch/search.sbatch), by hand. Every "
        "process takes the next training that nobody has. Started again, it goes on."
    )
    sub.add_argument("preset", nargs="?", metavar="PRESET", help="as of train")
    sub.add_argument("--config", type=Path, metavar="FILE", help="a TOML or JSON file in place of a preset")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="of this search, new or begun")
    text = "rule = the smallest core bits, then width, then input bits that pass (arXiv 2511.07046); pareto = all "
    text += "combinations, and the front of return and cost [rule]"
    sub.add_argument("--mode", choices=("rule", "pareto"), default="rule", help=text)
    text = "1 to 8 bits of weights and hidden activations; pareto: also per layer, such as 4:2:3 [8,7,6,5,4,3,2]"
    sub.add_argument("--core-bits", default="8,7,6,5,4,3,2", metavar="LIST", help=text)
    text = "of every hidden layer [256,128,64,32,16]"
    sub.add_argument("--widths", default="256,128,64,32,16", metavar="LIST", help=text)
    text = "of observations [8,7,6,5,4,3,2]"
    sub.add_argument("--input-bits", default="8,7,6,5,4,3,2", metavar="LIST", help=text)
    sub.add_argument("--output-bits", default="8", metavar="LIST", help="of what the head reads [8]")
    sub.add_argument("--seeds", default="0-4", metavar="LIST", help="of every policy, such as 0-9 or 1,2,4 [0-4]")
    text = "rule: a step ends at the first policy that fails, smaller ones are not trained"
    sub.add_argument("--stop-at-failure", action="store_true", help=text)
    text = (
        "pareto: of the median seed's policy; LUTs, ns at 100 MHz or energy per action of a core, or memory of the C "
    )
    text += "code on a Cortex-M4 [luts]"
    sub.add_argument("--cost", choices=("luts", "ns", "energy", "memory"), help=text)
    sub.add_argument("--core", choices=("folded", "unrolled"), default="folded", help="pareto: which costs [folded]")
    text = "of --cost energy: static power and energy per toggle, such as 0.06,2e-13"
    sub.add_argument("--energy", metavar="WATTS,JOULES", help=text)
    sub.add_argument("--target", default="c,verilog", metavar="LIST", help="of the exported choice [c,verilog]")
    _add_proof(sub)
    sub.add_argument("--dry-run", action="store_true", help="print what would be trained, and leave")
    _add_fields(sub)
