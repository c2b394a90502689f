"""distqtrl train: a run, started or gone on with."""

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

from distqtrl.allreduce.agreement import agreed, check_equal
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.rendezvous import Rendezvous
from distqtrl.cli.arguments import Flags, add_alone, add_configuration, add_fields, resolve
from distqtrl.cli.output import say as _say
from distqtrl.config.run import Config, save
from distqtrl.config.sources import presets
from distqtrl.environment.vector import Environments
from distqtrl.record import directory as run_directory
from distqtrl.training import stopping

TEXT = "Train a preset or a configuration file; every field is a flag."
SHARED = True


def add(command: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_configuration(command, preset="; ".join(f"{name}: {text}" for name, text in presets().items()))
    text = "go on with a run directory; a new budget, target or evaluation may be given"
    command.add_argument("--resume", type=Path, metavar="RUN", help=text)
    text = "use this run directory: start it where it is new, else go on with it (for jobs that are requeued)"
    command.add_argument("--run", type=Path, metavar="RUN", help=text)
    add_alone(command, "--print-config", "print the resolved configuration and exit")
    add_fields(command)


def run(args: argparse.Namespace, flags: Flags, comm: Communicator) -> int:
    """Train, or only report where the run is complete; returns the exit code."""
    config = agreed(comm, lambda: resolve(args, flags))
    text = save(config)
    check_equal(comm, text.encode(), "configurations", "give every rank the same command line, files and directory")
    comm.limit(config.allreduce.timeout_s)
    if args.print_config:
        print(text, end="")
        return 0
    directory = args.resume or args.run
    there = run_directory.found(directory, config, comm) if directory else None
    if there is None or there.goes_on:
        directory, result = _trained(args, config, comm, directory, there)
        if comm.rank == 0:
            draw(directory)
    else:
        assert there.result is not None
        result = there.result
        if there.changes:
            _extend(directory, config, there, comm)
        if comm.rank == 0 and not (directory / "learning_curve.png").exists():  # killed just before its end
            draw(directory)
    if comm.rank == 0:
        report(directory, result, comm.size, args.json)
    agreed(comm, lambda: None)  # leave together: a launcher may end the others when the first has left
    return int(result.get("exit_code", 0))


def _trained(
    args: argparse.Namespace,
    config: Config,
    comm: Communicator,
    directory: Path | None,
    there: run_directory.Found | None,
) -> tuple[Path, dict[str, Any]]:
    """The run directory and the result of the training that this process takes part in, with all its replicas.

    Nothing is written before every rank has made its environments: a try that cannot run owns no directory.
    """
    from distqtrl.allreduce import threads as replicas
    from distqtrl.circuit import compiled
    from distqtrl.training import shared_qpu as shared
    from distqtrl.training.build import compare, prepare
    from distqtrl.training.loop import train
    from distqtrl.training.metrics import prediction
    from distqtrl.training.run import Run

    meet, circuits = Rendezvous(config.qpu.replicas), Rendezvous(config.qpu.replicas)
    members, limit_s = replicas.members(comm, meet), config.allreduce.timeout_s
    resume = directory if args.resume or (there is not None and there.saved) else None
    with stopping.collected() as pending:
        if limit_s is not None and not compiled.ready(config.qpu.precision):
            comm.limit(limit_s + compiled.WAIT_S)  # some may have nothing to compile, and wait for those that do
        runs = agreed(comm, lambda: [prepare(config, member, resume) for member in members])
        comm.limit(limit_s)
        compare(comm, runs[0])
        if directory is None:
            directory = run_directory.create(config, _name(args, config), comm)
        elif there is None:
            run_directory.claim(directory, config, comm)
        elif there.changes:
            _extend(directory, config, there, comm)
        made = directory
        qpus = [run.learner.generator.qpu for run in runs if run.learner.generator.qpu is not None]
        batched = len(qpus) > 1 and shared.share(qpus, circuits)

        def trained(run: Run) -> dict[str, Any]:
            if run.restarted:
                _say(f"distqtrl: environments {run.restarted} cannot be replayed, they start their next episode")
            asked = prediction(run)
            if run.comm.rank == 0 and not args.json:
                print(f"run directory {made}, {comm.size} rank{'s' if comm.size > 1 else ''}")
                if len(runs) > 1:
                    print(f"{len(runs)} replicas per rank, circuits {'as one batch' if batched else 'one by one'}")
                if line := compiled.told():
                    print(line)
                print(_qpu_line(run.learner.generator.qpu, asked), flush=True)
            return train(run, made, pending)

        result = replicas.each(runs, trained, [meet, circuits])[0]
        for run in runs:
            _close(run.environments)
        return directory, result


def _extend(directory: Path, config: Config, there: run_directory.Found, comm: Communicator) -> None:
    run_directory.extend(directory, config, there, comm)
    for key, (old, new) in there.changes.items() if comm.rank == 0 else ():
        _say(f"distqtrl: {directory} goes on with {key} {old} -> {new}")


def _close(environments: "Environments") -> None:
    """Give an environment's resources back; its last words cannot undo what was done."""
    try:
        environments.close()
    except Exception as error:
        _say(
            f"distqtrl: warning: an environment did not close ({type(error).__name__}: {' '.join(str(error).split())})"
        )


def _name(args: argparse.Namespace, config: Config) -> str:
    """The name of a new run directory."""
    return f"{args.preset or args.config.stem}-seed{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _qpu_line(qpu: Any, asked: dict[str, Any]) -> str:
    """What rank 0's QPU is, and what will be asked of all ranks' QPUs."""
    if qpu is None:
        return "no QPU"
    facts = qpu.facts()
    name = " ".join(str(facts[key]) for key in ("backend", "device", "noise") if facts[key])
    how = f"{facts['shots']:,} shots" if facts["shots"] else "exact"

    def amount(x: dict[str, Any]) -> str:
        shots = f", {x['shots']:,} shots, {x['qpu_s']:,.1f} s of QPU time" if x["shots"] else ""
        return f"{x['circuits']:,} circuits{shots}"

    total = f"; {amount(asked['run'])} in the whole budget of {asked['updates']:,} updates" if asked["run"] else ""
    return f"QPU {name}, {how}, gradient {facts['gradient']}: {amount(asked['update'])} per update{total}"


def draw(directory: Path) -> None:
    """Draw the learning curve, or say why it cannot be drawn."""
    from distqtrl.report.figures import undrawn

    if problem := undrawn(directory):
        _say(f"distqtrl: {problem}")


def report(directory: Path, result: dict[str, Any], ranks: int, as_json: bool) -> None:
    """Print the result of a run, its files, and how to go on."""
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
    files = [
        *(("policy", path.name) for path in policies),
        ("curve", "learning_curve.png"),
        ("metrics", "metrics.jsonl"),
        ("events", "tensorboard"),
        ("checkpoints", "checkpoints"),
        ("result", "result.json"),
    ]
    one = directory if len(policies) == 1 else policies[0]
    exported = shlex.quote(str(directory / "exported"))
    lines = [(what, str(directory / name)) for what, name in files if (directory / name).exists()]
    lines += [("play", f"distqtrl evaluate {shlex.quote(str(directory))}")]
    lines += [("export", f"distqtrl export {shlex.quote(str(one))} -o {exported}")]
    for what, text in lines:
        print(f"  {what:<12} {text}")
