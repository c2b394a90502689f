"""Parse, call, print: train, evaluate, describe, doctor.

Every error ends here. Bad input is one line and exit code 2; on one rank only, that rank prints it and ends
the job; a bug prints the rank's traceback and ends the job. No rank is left waiting.
"""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from distqtrl import __version__
from distqtrl import config as configuration
from distqtrl.allreduce.communicator import (
    Communicator,
    Refused,
    Serial,
    agreed,
    allgather_bytes,
    check_equal,
    connect,
)
from distqtrl.config import Config, UserError, nearest

COMMANDS = ("train", "evaluate", "describe", "doctor")


class Parser(argparse.ArgumentParser):
    """argparse that raises UserError in place of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: list[str]) -> int:
    """Run one command on this rank; returns the exit code."""
    comm: Communicator = Serial()
    try:
        comm = connect()
        return _run(argv, comm)
    except Refused as error:
        if comm.rank == 0:
            _say(f"distqtrl: {error}")
        return 2
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code = _explain(error, comm)
        if comm.size > 1:
            comm.abort(code)
        return code


def _explain(error: BaseException, comm: Communicator) -> int:
    """Say what went wrong on this rank; returns the exit code."""
    where = f"rank {comm.rank}: " if comm.size > 1 else ""
    if isinstance(error, UserError):
        if comm.size > 1 or _launched_rank() == 0:
            _say(f"distqtrl: {where}{error}")
        return 2
    if isinstance(error, OSError) and error.filename is not None:
        _say(f"distqtrl: {where}{error.strerror}: {error.filename}; nothing half-written was kept")
        return 1
    if isinstance(error, KeyboardInterrupt):
        _say(f"distqtrl: {where}interrupted before the first update; nothing was trained")
        return 130
    trace = "".join(traceback.format_exception(error))
    _say("\n".join(f"[rank {comm.rank}] {line}" for line in trace.splitlines()))
    _say(f"distqtrl: {where}{type(error).__name__}: {error} (a bug, or an environment's own error; traceback above)")
    return 1


def _say(text: str) -> None:
    """One write, so that lines of different ranks do not mix."""
    sys.stdout.flush()
    os.write(2, (text + "\n").encode())


def _launched_rank() -> int:
    """The rank the launcher gave this process, known before (or without) MPI."""
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def _run(argv: list[str], comm: Communicator) -> int:
    args, flags = agreed(comm, lambda: _parse(argv))
    if args.command == "train":
        return _train(args, flags, comm)
    if args.command == "doctor":
        return _doctor(args, comm)
    result: int = agreed(comm, lambda: {"evaluate": _evaluate, "describe": _describe}[args.command](args, flags, comm))
    return result


# ---- the four commands


def _train(args: argparse.Namespace, flags: dict[str, list[str]], comm: Communicator) -> int:
    config = agreed(comm, lambda: _resolve(args, flags))
    text = configuration.save(config)
    check_equal(comm, text.encode(), "configurations", "give every rank the same command line, files and directory")
    if args.print_config:
        if comm.rank == 0:
            print(text, end="")
        return 0
    directory = _run_directory(args, config, comm)
    result = agreed(comm, lambda: _complete(directory)) if args.resume else None
    if result is None:
        from distqtrl.train import train

        if comm.rank == 0 and not args.json:
            print(f"run directory {directory}, {comm.size} rank{'s' if comm.size > 1 else ''}", flush=True)
        result = train(config, comm, directory, resume=args.resume is not None)
        if comm.rank == 0:
            _draw(directory)
    if comm.rank == 0:
        _report(directory, result, args.json)
    return int(result.get("exit_code", 0))


def _evaluate(args: argparse.Namespace, flags: dict[str, list[str]], comm: Communicator) -> int:
    import numpy as np

    from distqtrl.environment.rollout import episode_returns, summary
    from distqtrl.environment.vector import Environments
    from distqtrl.policy import policy_file

    if comm.rank:
        return 0
    path = Path(args.policy)
    policy = policy_file.load(path / "policy.safetensors" if path.is_dir() else path)
    environment = configuration.Environment(**policy.environment)
    environments = Environments(environment, range(args.episodes), args.seed, "evaluation")
    returns = np.array(episode_returns(environments, policy.act))
    result = {"environment": environment.id, "seed": args.seed, **summary(returns)}
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{environment.id}: return {returns.mean():.2f} ± {returns.std():.2f} "
            f"(min {returns.min():.2f}, max {returns.max():.2f}) over {len(returns)} greedy episodes, seed {args.seed}"
        )
    return 0


def _describe(args: argparse.Namespace, flags: dict[str, list[str]], comm: Communicator) -> int:
    from distqtrl.report.describe import describe

    if comm.rank:
        return 0
    path = Path(args.preset)
    config = configuration.load(path / "config.json") if path.is_dir() else configuration.preset(args.preset)
    facts = describe(configuration.with_flags(config, flags))
    if args.json:
        print(json.dumps(facts))
    else:
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):<{width}}  {value}")
    return 0


def _doctor(args: argparse.Namespace, comm: Communicator) -> int:
    from distqtrl.report.doctor import rank_facts, versions

    mine = json.dumps({"rank": comm.rank, **comm.describe(), **rank_facts()}).encode()
    ranks = [json.loads(part) for part in allgather_bytes(comm, mine)]
    if comm.rank == 0:
        if args.json:
            print(json.dumps({"versions": versions(), "ranks": ranks}))
        else:
            for name, version in versions().items():
                print(f"{name:<18} {version}")
            for r in ranks:
                print(
                    f"rank {r['rank']} of {comm.size}: host {r['host']}, pid {r['pid']}, cores {r['cores']}, "
                    f"threads {r['threads']}, {r['mpi']}"
                )
    return 0


# ---- what they are made of


def _parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    takes_flags = args.command in ("train", "describe")
    flags: dict[str, list[str]] = {}
    if takes_flags:
        flags = {key: vars(args)[key] for key in configuration.field_names() if vars(args)[key] is not None}
    if rest:
        word = rest[0].removeprefix("--").partition("=")[0]
        if not rest[0].startswith("--"):
            raise UserError(f"unexpected argument '{rest[0]}'; values follow their flag: --stage.field value")
        known = [*(configuration.field_names() if takes_flags else ()), "json", "help"]
        raise UserError(f"unknown key '{word}': {nearest(word, known)}")
    return args, flags


def _parser() -> Parser:
    parser = Parser(
        prog="distqtrl",
        description="Policies generated by (simulated) QPUs, trained over MPI ranks.",
        epilog="mpirun -n 4 distqtrl train cartpole        runs four ranks; without mpirun it is one.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"distqtrl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    presets = "; ".join(f"{name}: {text}" for name, text in configuration.presets().items())
    sub = command("train", "Train a preset or a configuration file; every field is a flag.")
    sub.add_argument("preset", nargs="?", metavar="PRESET", help=presets.replace("%", "%%"))
    sub.add_argument("--config", type=Path, metavar="FILE", help="a TOML or JSON file in place of a preset")
    sub.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run directory, same number of ranks")
    sub.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    _add_fields(sub)
    sub = command("evaluate", "Play greedy episodes with a policy file; needs nothing else of the run.")
    sub.add_argument("policy", metavar="RUN|POLICY", help="a run directory or a policy.safetensors")
    sub.add_argument("--episodes", type=_positive, default=100, metavar="N", help="default 100")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the episodes, default 0")
    sub = command("describe", "Print qubits, parameter counts and compression of a preset or run.")
    sub.add_argument("preset", metavar="PRESET|RUN", help="a preset's name or a run directory")
    _add_fields(sub)
    command("doctor", "Print versions, ranks, hosts, cores and threads; run it under mpirun to see every rank.")
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    for stage, model in configuration.stages().items():
        group = parser.add_argument_group(stage, (model.__doc__ or "").splitlines()[0].replace("%", "%%"))
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = " ".join(str(x) for x in default) if isinstance(default, tuple) else default
            text = f"{field.description} [{shown}]".replace("%", "%%")
            group.add_argument(f"--{stage}.{name}", nargs="+", metavar="X", help=text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 1 or more")
    return int(text)


def _resolve(args: argparse.Namespace, flags: dict[str, list[str]]) -> Config:
    given = [name for name in ("preset", "config", "resume") if getattr(args, name) is not None]
    if len(given) != 1:
        known = ", ".join(configuration.presets())
        raise UserError(f"train takes one of PRESET, --config FILE, --resume RUN; presets: {known}")
    if args.resume is not None:
        if flags:
            raise UserError(f"--resume takes the run's own configuration: remove --{next(iter(flags))}")
        return configuration.load(args.resume / "config.json")
    config = configuration.preset(args.preset) if args.preset else configuration.load(args.config)
    return configuration.with_flags(config, flags)


def _run_directory(args: argparse.Namespace, config: Config, comm: Communicator) -> Path:
    """The run's directory; rank 0 names and makes a new one, with its config.json."""
    if args.resume is not None:
        return Path(args.resume)
    name = f"{args.preset or args.config.stem}-seed{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"

    def make() -> str:
        if comm.rank:
            return ""
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            directory = Path(config.train.directory) / (name + suffix)
            try:
                directory.mkdir(parents=True)
            except FileExistsError:
                if not directory.is_dir():
                    raise
                continue
            (directory / "config.json").write_text(configuration.save(config))
            return str(directory)
        raise UserError(f"cannot find a free name for a run in {config.train.directory}: remove old runs")

    return Path(allgather_bytes(comm, agreed(comm, make).encode())[0].decode())


def _complete(directory: Path) -> dict[str, Any] | None:
    """The result of a run that is complete already."""
    path = directory / "result.json"
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return result


def _draw(directory: Path) -> None:
    from distqtrl.report.figures import learning_curve

    learning_curve(directory)


def _report(directory: Path, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(directory), **result}))
        return
    steps = (
        f"{result['update']} updates, {result['env_steps']:,} environment steps, {result['train_s']:.1f} s of training"
    )
    if result["status"] == "stopped":
        print(f"stopped by {result['signal']} after {steps}; go on with: distqtrl train --resume {directory}")
        return
    e = result["evaluation"]
    print(f"return {e['mean']:.1f} ± {e['std']:.1f} over {e['episodes']} greedy episodes, after {steps}")
    files = {
        "policy": "policy.safetensors",
        "curve": "learning_curve.png",
        "metrics": "metrics.jsonl",
        "events": "tensorboard",
        "checkpoints": "checkpoints",
        "result": "result.json",
    }
    for what, name in files.items():
        print(f"  {what:<12} {directory / name}")
