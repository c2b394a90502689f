"""Parse, run, explain: every command starts here and every error ends here.

Bad input is one line and exit code 2; where one rank alone finds it, that rank prints it and ends the job; a bug
prints the rank's traceback and ends the job. No rank is left waiting.

Ranks connect only for what they do together (``_together``). Whatever else a launcher starts more than once is done by
the first of its processes, and needs no MPI: also inside a SLURM allocation, which looks like a launcher.
"""

import argparse
import io
import os
import sys
import threading
import traceback
from contextlib import redirect_stdout

from distqtrl.allreduce.agreement import Refused, agreed, check_equal
from distqtrl.allreduce.communicator import Communicator, Serial
from distqtrl.allreduce.connect import announced, connect
from distqtrl.cli.arguments import Flags, resolve
from distqtrl.cli.commands import COMMANDS
from distqtrl.cli.output import for_a_program, say, words
from distqtrl.cli.parser import parse
from distqtrl.config import stages as configuration
from distqtrl.errors import UserError, interrupted, of_system

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
        except UserError as error:  # raised below, together with the other ranks where there are any
            request = error
        except SystemExit as leaving:  # --help and --version
            return int(leaving.code or 0)
        if _together(argv, request):
            comm = connect(_limit_s(request))
        elif not first:
            return 2 if isinstance(request, UserError) else 0
        code = dispatch(request, comm)
        comm.finish(code)
        return code
    except Refused as error:
        if comm.rank == 0:
            say(words(error))
        return error.exit_code
    except BaseException as error:
        code = explain(error, comm)
        if comm.size > 1:
            comm.abort(code)
        return code


def dispatch(request: Request | UserError, comm: Communicator) -> int:
    """Run the command that was asked for; returns its exit code. Raises Refused where ranks were asked differently."""

    def parsed() -> Request:
        if isinstance(request, UserError):
            raise request
        return request

    args, flags = agreed(comm, parsed)
    check_equal(comm, repr(sorted(vars(args).items())).encode(), "command lines", "start every rank alike")
    command = COMMANDS[args.command]
    with for_a_program(args.json):
        if command.SHARED:
            return command.run(args, flags, comm)
        return agreed(comm, lambda: command.run(args, flags, comm))


def explain(error: BaseException, comm: Communicator) -> int:
    """Say what went wrong on this rank; returns the exit code."""
    where = f"rank {comm.rank}: " if comm.size > 1 else ""
    if isinstance(error, UserError):
        if comm.size > 1 or announced("rank", without=0) == 0:
            say(words(error, where))
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        say(f"distqtrl: {where}{of_system(error)}; nothing half-written was kept")
        return 1
    if isinstance(error, KeyboardInterrupt):
        say(f"distqtrl: {where}{interrupted(error)}")
        return getattr(error, "exit_code", 130)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        cause = " ".join(str(error).split())[:200]
        say(f"distqtrl: {where}not enough memory ({cause}): give this process more, or ask for something smaller")
        return 1
    if (package := _of_import(error)) is not None:
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        known = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(f"{package.upper()}_")]
        remedy = f"unset {', '.join(known)}, or " if known else ""
        say(f"distqtrl: {where}{package} does not load ({cause}): {remedy}install distqtrl again")
        return 1
    trace = "".join(traceback.format_exception(error))
    say("\n".join(f"[rank {comm.rank}] {line}" for line in trace.splitlines()))
    say(f"distqtrl: {where}{type(error).__name__}: {error} (a bug; traceback above)")
    return 1


def _of_import(error: BaseException) -> str | None:
    """The package of somebody else whose import raised this."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code.co_name == "<module>" and package not in ("distqtrl", "__main__"):
            return str(package)
    return None


def _quiet_disk_errors(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands its OSError on to the main thread, which reports it: once is enough."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _together(argv: list[str], request: Request | UserError) -> bool:
    """Whether all ranks of a job take part, or only say together that they cannot."""
    if isinstance(request, UserError):
        return any(argv[:1] == [name] and command.SHARED for name, command in COMMANDS.items())
    args, _ = request
    alone = "alone" in args and getattr(args, args.alone)
    return COMMANDS[args.command].SHARED and not alone


def _limit_s(request: Request | UserError) -> float | None:
    """allreduce.timeout_s as far as it is known before ranks have spoken with each other."""
    try:
        if not isinstance(request, UserError) and "config" in request[0]:
            return resolve(*request).allreduce.timeout_s
    except (UserError, OSError):  # raised again later, by all ranks together
        pass
    return configuration.Allreduce().timeout_s
