"""Parse, call, print: train, evaluate, describe, export, verify, report, doctor, slurm, search-bits.

Every error ends here. Bad input is one line and exit code 2; on one rank only, that rank prints it and ends
the job; a bug prints the rank's traceback and ends the job. No rank is left waiting.

Ranks connect only for what they do together (``_shared``). Whatever else a launcher starts more than once is done by
the first of its processes, and needs no MPI: also inside a SLURM allocation, which looks like a launcher.
"""

import argparse
import io
import json
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqtrl import config as configuration
from distqtrl import run_directory, stopping
from distqtrl.allreduce.communicator import (
    Communicator,
    Refused,
    Serial,
    agreed,
    allgather_bytes,
    announced,
    check_equal,
    connect,
)
from distqtrl.arguments import Flags, parse, resolve
from distqtrl.config import Config, UserError
from distqtrl.rendezvous import Rendezvous
from distqtrl.terminal import say as _say

if TYPE_CHECKING:
    from distqtrl.environment.vector import Environments

SHARED = ("train", "search-bits", "doctor")  # by all ranks
Request = tuple[argparse.Namespace, Flags]


def main(argv: list[str]) -> int:
    """Run one command on this rank; returns the exit code."""
    comm: Communicator = Serial()
    threading.excepthook = _quiet_disk_errors
    first = announced("rank", without=0) == 0
    try:
        try:
            with redirect_stdout(sys.stdout if first else io.StringIO()):
                request: Request | UserError = parse(argv)
        except UserError as error:  # with the others, where there are any
            request = error
        except SystemExit as leaving:  # --help and --version
            return int(leaving.code or 0)
        if _shared(argv, request):
            comm = connect(_limit_s(request))
        elif not first:
            return 2 if isinstance(request, UserError) else 0
        code = _run(request, comm)
        comm.finish(code)
        return code
    except Refused as error:
        if comm.rank == 0:
            _say(_words_of(error))
        return error.exit_code
    except BaseException as error:
        code = _explain(error, comm)
        if comm.size > 1:
            comm.abort(code)
        return code


def _explain(error: BaseException, comm: Communicator) -> int:
    """Say what went wrong on this rank; returns the exit code."""
    where = f"rank {comm.rank}: " if comm.size > 1 else ""
    if isinstance(error, UserError):
        if comm.size > 1 or announced("rank", without=0) == 0:
            _say(_words_of(error, where))
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        _say(f"distqtrl: {where}{error.strerror}: {error.filename}; nothing half-written was kept")
        return 1
    if isinstance(error, KeyboardInterrupt):
        _say(f"distqtrl: {where}interrupted{f' by {error}' if str(error) else ''}; files that were written stay whole")
        return getattr(error, "exit_code", 130)
    trace = "".join(traceback.format_exception(error))
    _say("\n".join(f"[rank {comm.rank}] {line}" for line in trace.splitlines()))
    _say(f"distqtrl: {where}{type(error).__name__}: {error} (a bug; traceback above)")
    return 1


def _words_of(error: UserError, where: str = "") -> str:
    """One line, and below it where the user's own code raised."""
    return f"distqtrl: {where}{error}" + (f"\n{error.trace}" if error.trace else "")


def _quiet_disk_errors(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands its OSError on to the main thread, which reports it: once is enough."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _shared(argv: list[str], request: Request | UserError) -> bool:
    """Whether all ranks of a job take part, or only say together that they cannot."""
    if isinstance(request, UserError):
        return argv[:1] in ([name] for name in SHARED)
    args = request[0]
    alone = ("print_config", "dry_run", "gradients")
    return args.command in SHARED and not any(getattr(args, name, False) for name in alone)


def _limit_s(request: Request | UserError) -> float | None:
    """allreduce.timeout_s as far as it is known before ranks have spoken with each other."""
    try:
        if not isinstance(request, UserError) and request[0].command != "doctor":
            return resolve(*request).allreduce.timeout_s
    except (UserError, OSError):  # said later, by all ranks together
        pass
    return configuration.Allreduce().timeout_s


def _parsed(request: Request | UserError) -> Request:
    if isinstance(request, UserError):
        raise request
    return request


def _run(request: Request | UserError, comm: Communicator) -> int:
    args, flags = agreed(comm, lambda: _parsed(request))
    check_equal(comm, repr(sorted(vars(args).items())).encode(), "command lines", "start every rank alike")
    if args.command == "train":
        return _train(args, flags, comm)
    if args.command == "doctor":
        return _doctor(args, comm)
    if args.command == "search-bits":
        return _search_bits(args, flags, comm)
    commands = {
        "evaluate": _evaluate,
        "describe": _describe,
        "export": _export,
        "verify": _verify,
        "report": _report_page,
        "slurm": _slurm,
    }
    result: int = agreed(comm, lambda: commands[args.command](args, flags))
    return result


# ---- the commands


def _train(args: argparse.Namespace, flags: Flags, comm: Communicator) -> int:
    config = agreed(comm, lambda: resolve(args, flags))
    text = configuration.save(config)
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
            _draw(directory)
    else:
        assert there.result is not None
        result = there.result
        if there.changes:
            _extend(directory, config, there, comm)
        if comm.rank == 0 and not (directory / "learning_curve.png").exists():  # killed just before its end
            _draw(directory)
    if comm.rank == 0:
        _report(directory, result, comm.size, args.json)
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
    from distqtrl.allreduce import replicas
    from distqtrl.circuit import compiled, shared
    from distqtrl.train import Run, compare, prediction, prepare, train

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


def _evaluate(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.environment import permission
    from distqtrl.environment.rollout import cut, evaluation, summary
    from distqtrl.export import episodes
    from distqtrl.policy import policy_file

    policies = policy_file.team(Path(args.policy))
    environment = configuration.Environment(**policies[0].environment)
    permission.check(environment.id, args.policy, args.import_environment)
    episodes.check(policies)
    roles, acts, shown = [policy.agents for policy in policies], [policy.act for policy in policies], None
    most = args.max_steps or policies[0].origin.get("max_steps")
    if args.gif is not None:
        from distqtrl.report import animation

        shown = animation.record(args.gif, environment, args.seed, roles, acts, most)
    found = evaluation(environment, range(args.episodes), args.seed, "evaluation", acts, roles, 0, most)
    returns, num_cut = found.returns_EG.mean(1), int(found.cut_E.sum())
    result = {"environment": environment.id, "seed": args.seed, **summary(returns)}
    result |= {"cut": num_cut, "max_steps": found.max_steps}
    if len(found.agents) > 1:
        result["agents"] = dict(zip(found.agents, found.returns_EG.mean(0).tolist(), strict=True))
    if shown is not None:
        result["gif"] = {"file": str(args.gif), "return": shown}
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{environment.id}: return {returns.mean():.2f} ± {returns.std():.2f} "
            f"(min {returns.min():.2f}, max {returns.max():.2f}) over {len(returns)} greedy episodes, seed {args.seed}"
        )
        if num_cut:
            print(cut(num_cut, args.episodes, found.max_steps or 0))
        if shown is not None:
            print(f"{args.gif} shows the first of them, return {shown:.2f}")
    return 0


def _describe(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.report.describe import describe

    path = Path(args.preset)
    config = configuration.load(path / "config.json") if path.is_dir() else configuration.preset(args.preset)
    config = configuration.with_flags(config, flags)
    facts = describe(config)
    if not path.is_dir():
        facts = {"preset": configuration.presets()[args.preset]} | facts
        if parent := configuration.parent(args.preset):
            facts |= {"extends": parent, "changes": configuration.differences(configuration.preset(parent), config)}
    if args.json:
        print(json.dumps(facts))
        return 0
    width, changes = max(len(name) for name in facts), facts.pop("changes", {})
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    for key, (old, new) in changes.items():
        print(f"{'':<{width}}  {key}: {old} -> {new}")
    return 0


def _export(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.export import folder, readme

    about = folder.export(_policy_path(Path(args.policy)), args.output, folder.options(args), _aside(args.json))
    if args.json:
        print(json.dumps({"folder": str(args.output), **about}))
    else:
        r = about["returns"]
        print(
            f"return {r['float']:.2f} before, {r['integer']:.2f} after, over {r['episodes']} episodes "
            f"{readme.difference(r)}"
        )
        if missing := readme.unproven(about):
            print(f"not checked here: {', '.join(missing)} (README.md there says why)")
        print(f"exported to {args.output}; check it again with: distqtrl verify {args.output}")
    return 0


def _verify(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.export import folder, readme, tools, verify

    say, found = _aside(args.json), []
    named = folder.targets(args.target) if args.target is not None else ()
    more = {"netlists": args.implement, "imports": args.import_environment}
    with tools.orderly(args.tool_limit):
        for check in verify.checks(args.folder, args.vectors, args.episodes, named, **more):
            say(readme.line(check))
            found.append(check)
    if args.json:
        print(json.dumps([asdict(check) for check in found]))
    return verify.exit_code(found, named)


def _policy_path(path: Path) -> Path:
    """The policy file of a run directory, or the file itself; raises UserError where there are several."""
    from distqtrl.policy import policy_file

    files = policy_file.files(path) if path.is_dir() else [path]
    if len(files) > 1:
        raise UserError(f"{path} has a policy per agent: give one of {', '.join(file.name for file in files)}")
    return files[0]


def _aside(as_json: bool) -> Callable[[str], None]:
    """Where a command's progress goes: nowhere when its output is for a program."""
    return (lambda text: None) if as_json else (lambda text: print(text, flush=True))


def _report_page(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl.report.html import report

    files = [str(path) for path in report(args.runs, args.output, args.marl_eval)]
    print(json.dumps({"files": files}) if args.json else "\n".join(files))
    return 0


def _slurm(args: argparse.Namespace, flags: Flags) -> int:
    from distqtrl import slurm

    config = resolve(args, flags)
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


def _search_bits(args: argparse.Namespace, flags: Flags, comm: Communicator) -> int:
    """Every rank is a worker of its own; ranks speak with each other before and after, but not while they work."""
    from distqtrl.report.search import summary
    from distqtrl.search import grid, rule, workers

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


def _words(flags: Flags) -> list[str]:
    words = []
    for key, values in flags.items():
        words += [f"--{key}={values[0]}", *values[1:]] if values[0].startswith("-") else [f"--{key}", *values]
    return words


def _doctor(args: argparse.Namespace, comm: Communicator) -> int:
    if args.gradients:
        return _gradients(args.json)
    from distqtrl.record import versions
    from distqtrl.report.doctor import rank_facts

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
                    f"rank {r['rank']} of {comm.size}: host {r['host']} with {r['on_host']}, pid {r['pid']}, "
                    f"cores {r['cores']}, threads {r['threads']}, waits {r['waits']}, {r['mpi']}"
                )
    return 0


def _gradients(as_json: bool) -> int:
    from distqtrl.report import gradients

    found = []
    for row in gradients.rows():
        found.append(row)
        if not as_json and row.status in ("agrees", "differs"):
            unit = "standard errors" if row.sampled else "absolute"
            name = " ".join(part for part in (row.backend, row.device, row.result, row.method) if part)
            print(f"{name}: {row.status}, {row.error:.2g} ({unit}), up to n = {row.qubits}", flush=True)
    print(json.dumps(gradients.as_json(found)) if as_json else f"\n{gradients.table(found)}")
    return int(any(row.status == "differs" for row in found))


# ---- files and words of a run


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
    from distqtrl.environment import permission
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
    one = directory if len(policies) == 1 else policies[0]
    play, export = (shlex.quote(str(path)) for path in (directory, one))
    asked = permission.asked(configuration.load(directory / "config.json").environment.id)
    print(f"  {'play':<12} distqtrl evaluate {play}{asked}")
    print(f"  {'export':<12} distqtrl export {export} -o {shlex.quote(str(directory / 'exported'))}{asked}")
