"""distqtrl train: a run, started or gone on with."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqtrl.allreduce.agreement import agreed, check_equal
from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli.arguments import Flags, add_alone, add_configuration, add_fields, path, resolve
from distqtrl.cli.output import print_json, say, tell
from distqtrl.config import sources
from distqtrl.config.run import Config, save
from distqtrl.config.sources import presets
from distqtrl.files.places import quoted

if TYPE_CHECKING:
    from distqtrl.training.start import Beginning

TEXT = "Train a preset or a configuration file; every field is a flag."
SHARED = True


def add(command: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_configuration(command, preset="; ".join(f"{name}: {text}" for name, text in presets().items()))
    text = "resume a run directory; a new budget, target or evaluation may be given"
    command.add_argument("--resume", type=path, metavar="RUN", help=text)
    text = "use this run directory: start it where it is new, else resume it (for jobs that are requeued)"
    command.add_argument("--run", type=path, metavar="RUN", help=text)
    add_alone(command, "--print-config", "print the resolved configuration and exit")
    text = "send circuits to a device that is not simulated, without asking"
    command.add_argument("--yes", action="store_true", help=text)
    add_fields(command)


def run(args: argparse.Namespace, flags: Flags, comm: Communicator) -> int:
    """Train, or only report where the run is complete; returns the exit code."""
    config = agreed(comm, lambda: resolve(args, flags))
    text = save(config)
    check_equal(comm, text.encode(), "configurations", "give every rank the same command line, files and directory")
    if args.print_config:
        tell(args.json, config.model_dump(mode="json"), text.removesuffix("\n"))
        return 0
    directory, result, trained = _trained(args, config, comm)
    if comm.rank == 0 and (trained or not (directory / "learning_curve.png").exists()):  # killed just before its end
        draw(directory)
    if comm.rank == 0:
        report(directory, result, comm.size, args.json)
        if not trained and not args.json:
            print("nothing was trained: this run was complete; a larger budget and --evaluate.target none train on")
    agreed(comm, lambda: None)  # leave together: a launcher may end the others when the first has left
    return int(result.get("exit_code", 0))


def _trained(args: argparse.Namespace, config: Config, comm: Communicator) -> tuple[Path, dict[str, Any], bool]:
    """The run directory, the result of the run, and whether there was anything left to do."""
    from distqtrl.training.start import Request, start

    name = "" if args.resume or args.run else _name(args, config)
    request = Request(config, args.resume or args.run, name, resume=args.resume is not None)
    outcome = start(
        request,
        comm,
        began=lambda beginning: None if args.json else _print_begin(beginning),
        confirm=(lambda line: True) if args.yes else _confirmed,
        say=say,
    )
    return outcome.directory, outcome.result, outcome.trained


def _print_begin(b: "Beginning") -> None:
    """Print where the run is, and what it will ask of the QPUs."""
    from distqtrl.circuit import compiled
    from distqtrl.training.start import qpu_line

    done = f", resumes after {b.updates:,} update{'s' if b.updates > 1 else ''}" if b.updates else ""
    print(f"run directory {b.directory}, {b.ranks} rank{'s' if b.ranks > 1 else ''}{done}")
    if b.replicas > 1:
        print(f"{b.replicas} replicas per rank, circuits {'as one batch' if b.batched else 'one by one'}")
    if line := compiled.told():
        print(line)
    print(qpu_line(b.qpu, b.asked), flush=True)


def _confirmed(line: str) -> bool:
    """Whether the person at the terminal, if there is one, wants this to be sent."""
    if not sys.stdin or not sys.stdin.isatty():
        return False
    say(f"{line}\nsend this? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _name(args: argparse.Namespace, config: Config) -> str:
    """The name of a new run directory."""
    return f"{args.preset or args.config.stem}-seed{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def draw(directory: Path) -> None:
    """Draw the learning curve, or say why it cannot be drawn."""
    from distqtrl.report.figures import undrawn

    if problem := undrawn(directory):
        say(f"distqtrl: {problem}")


def report(directory: Path, result: dict[str, Any], ranks: int, as_json: bool) -> None:
    """Print the result of a run, its files, and how to go on."""
    from distqtrl.environment import permission
    from distqtrl.environment.rollout import cut
    from distqtrl.policy import policy_file

    if as_json:
        print_json({"run": str(directory), **result})
        return
    steps = (
        f"{result['update']} updates, {result['env_steps']:,} environment steps, {result['train_s']:.1f} s of training"
    )
    if result["status"] == "stopped":
        launcher = f"mpirun -n {ranks} " if ranks > 1 else ""
        again = f"{launcher}distqtrl train --resume {quoted(directory)}"
        print(f"stopped by {result['signal']} after {steps}; resume with: {again}")
        return
    e = result["evaluation"]
    print(f"return {e['mean']:.2f} ± {e['std']:.2f} over {e['episodes']} greedy episodes, after {steps}")
    if e.get("cut"):
        print(cut(e["cut"], e["episodes"], e["max_steps"]))
    policies = policy_file.files(directory)
    files = [
        *(("policy", path.name) for path in policies),
        ("curve", "learning_curve.png"),
        ("metrics", "metrics.jsonl"),
        ("events", "tensorboard"),
        ("checkpoints", "checkpoints"),
        ("result", "result.json"),
    ]
    one = directory if len(policies) == 1 else policies[0]
    play, export, exported = (quoted(path) for path in (directory, one, directory / "exported"))
    config = sources.load(directory / "config.json")
    decoder = config.language.base is not None
    asked = permission.asked_for_task(config.language.task) if decoder else permission.asked(config.environment.id)
    lines = [(what, str(directory / name)) for what, name in files if (directory / name).exists()]
    lines += [("play", f"distqtrl evaluate {play}{asked}")]
    lines += [("export", f"distqtrl export {export} -o {exported}{asked}")]
    for what, text in lines:
        print(f"  {what:<12} {text}")
