"""distqtrl train."""

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqtrl.allreduce.agreement import agreed, check_equal
from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, resolve
from distqtrl.cli.terminal import say as _say
from distqtrl.config.run import Config, save

if TYPE_CHECKING:
    from distqtrl.training.start import Beginning


def _train(args: argparse.Namespace, flags: Flags, comm: Communicator) -> int:
    config = agreed(comm, lambda: resolve(args, flags))
    text = save(config)
    check_equal(comm, text.encode(), "configurations", "give every rank the same command line, files and directory")
    if args.print_config:
        print(text, end="")
        return 0
    directory, result, trained = _trained(args, config, comm)
    if comm.rank == 0 and (trained or not (directory / "learning_curve.png").exists()):  # killed just before its end
        _draw(directory)
    if comm.rank == 0:
        _report(directory, result, comm.size, args.json)
    agreed(comm, lambda: None)  # leave together: a launcher may end the others when the first has left
    return int(result.get("exit_code", 0))


def _trained(args: argparse.Namespace, config: Config, comm: Communicator) -> tuple[Path, dict[str, Any], bool]:
    """The run directory, the result of the run, and whether there was anything left to do."""
    from distqtrl.training.start import Request, start

    name = "" if args.resume or args.run else _name(args, config)
    request = Request(config, args.resume or args.run, name, resume=args.resume is not None)
    outcome = start(request, comm, began=lambda beginning: None if args.json else _print_begin(beginning), say=_say)
    return outcome.directory, outcome.result, outcome.trained


def _print_begin(b: "Beginning") -> None:
    from distqtrl.circuit import compiled

    print(f"run directory {b.directory}, {b.ranks} rank{'s' if b.ranks > 1 else ''}")
    if b.replicas > 1:
        print(f"{b.replicas} replicas per rank, circuits {'as one batch' if b.batched else 'one by one'}")
    if line := compiled.told():
        print(line)
    print(_qpu_line(b.qpu, b.asked), flush=True)


def _name(args: argparse.Namespace, config: Config) -> str:
    return f"{args.preset or args.config.stem}-seed{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _qpu_line(qpu: Any, asked: dict[str, Any]) -> str:
    """What rank 0's QPU is, and what all ranks' will be asked for."""
    if qpu is None:
        return "no QPU"
    facts = qpu.facts()
    name = " ".join(str(facts[key]) for key in ("backend", "device", "noise") if facts[key])
    how = f"{facts['shots']:,} shots" if facts["shots"] else "exact"

    def amount(x: dict[str, Any]) -> str:
        shots = f", {x['shots']:,} shots, {x['qpu_s']:,.1f} s of QPU time" if x["shots"] else ""
        return f"{x['circuits']:,} circuits{shots}"

    run = f"; {amount(asked['run'])} in the whole budget of {asked['updates']:,} updates" if asked["run"] else ""
    return f"QPU {name}, {how}, gradient {facts['gradient']}: {amount(asked['update'])} per update{run}"


def _draw(directory: Path) -> None:
    from distqtrl.report.figures import undrawn

    if problem := undrawn(directory):
        _say(f"distqtrl: {problem}")


def _report(directory: Path, result: dict[str, Any], ranks: int, as_json: bool) -> None:
    from distqtrl.environment.rollout import cut
    from distqtrl.policy import policy_file

    if as_json:
        print(json.dumps({"run": str(directory), **result}))
        return
    steps = (
        f"{result['update']} updates, {result['env_steps']:,} environment steps, {result['train_s']:.1f} s of training"
    )
    if result["status"] == "stopped":
        launcher = f"mpirun -n {ranks} " if ranks > 1 else ""
        print(f"stopped by {result['signal']} after {steps}; go on with: {launcher}distqtrl train --resume {directory}")
        return
    e = result["evaluation"]
    print(f"return {e['mean']:.2f} ± {e['std']:.2f} over {e['episodes']} greedy episodes, after {steps}")
    if e.get("cut"):
        print(cut(e["cut"], e["episodes"], e["max_steps"]))
    policies = policy_file.files(directory)
    files = {
        "policy": [path.name for path in policies],
        "curve": ["learning_curve.png"],
        "metrics": ["metrics.jsonl"],
        "events": ["tensorboard"],
        "checkpoints": ["checkpoints"],
        "result": ["result.json"],
    }
    for what, names in files.items():
        for name in names:
            if (directory / name).exists():
                print(f"  {what:<12} {directory / name}")
    print(f"  {'play':<12} distqtrl evaluate {shlex.quote(str(directory))}")
    one = directory if len(policies) == 1 else policies[0]
    print(f"  {'export':<12} distqtrl export {shlex.quote(str(one))} -o {shlex.quote(str(directory / 'exported'))}")
