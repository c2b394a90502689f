"""Parse, call, print: train, evaluate, describe, export, verify, report, doctor, slurm, search-bits.

Every error ends here. Bad input is one line and exit code 2; on one rank only, that rank prints it and ends
the job; a bug prints the rank's traceback and ends the job. No rank is left waiting.

Ranks connect only for what they do together (``_shared``). Whatever else a launcher starts more than once is done by
the first of its processes, and needs no MPI: also inside a SLURM allocation, which looks like a launcher.
"""

import argparse
import io
import sys
import threading
import traceback
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from distqtrl.allreduce.agreement import Refused, agreed, check_equal
from distqtrl.allreduce.communicator import Communicator, Serial
from distqtrl.allreduce.connect import announced, connect
from distqtrl.cli.arguments import Flags, resolve
from distqtrl.cli.describe import _describe
from distqtrl.cli.doctor import _doctor
from distqtrl.cli.evaluate import _evaluate
from distqtrl.cli.export import _export
from distqtrl.cli.parser import parse
from distqtrl.cli.report import _report_page
from distqtrl.cli.search_bits import _search_bits
from distqtrl.cli.slurm import _slurm
from distqtrl.cli.terminal import say as _say
from distqtrl.cli.train import _train
from distqtrl.cli.verify import _verify
from distqtrl.config import stages as configuration
from distqtrl.errors import UserError

if TYPE_CHECKING:
    pass

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


# ---- files and words of a run
