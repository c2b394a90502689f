"""What a check says, and the process of its own in which it finds that out: nothing that hangs may hold the others."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from distqtrl.errors import UserError

Status = Literal["ok", "warning", "failed", "not checked"]
GRACE_S = 3.0  # from SIGTERM to SIGKILL: a launcher ends its ranks meanwhile


@dataclass(frozen=True)
class Verdict:
    """How it is, what was found (for "not checked": why), and what to do where that is not well."""

    status: Status
    found: str
    remedy: str = ""


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict("ok", found)


def warning(found: str, remedy: str) -> Verdict:
    """Trainings work, and something about it is slower or less safe than it could be."""
    return Verdict("warning", found, remedy)


def failed(found: str, remedy: str = "") -> Verdict:
    """Trainings would not work, or could be lost."""
    return Verdict("failed", found, remedy)


def not_checked(why: str) -> Verdict:
    """Nothing is known about it."""
    return Verdict("not checked", why)


class Unanswered(Exception):
    """A check gave no answer; its text says why."""


def limited(action: Callable[[], Any], limit_s: float) -> Any:
    """action(), whose result JSON can hold, in a process of its own, which is ended with all its children at the limit.

    Raises Unanswered when there is no answer by then, or the action raised.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(action, writing)
    os.close(writing)
    answer = b""
    try:
        deadline = time.monotonic() + limit_s
        while not answer.endswith(b"\n"):
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([reading], [], [], left_s)[0]:
                raise Unanswered(f"no answer in {limit_s:.0f} s")
            part = os.read(reading, 1 << 16)
            if not part:
                raise Unanswered("the process of the check was ended")
            answer += part
    finally:
        os.close(reading)
        _end(child, answered=answer.endswith(b"\n"))
    told = json.loads(answer)
    if "error" in told:
        raise Unanswered(told["error"])
    return told["result"]


def _answer(action: Callable[[], Any], writing: int) -> NoReturn:
    """Write what the action returns, or why it does not, in one line; then this process is gone."""
    try:
        os.setsid()
        os.dup2(2, 1)  # standard output is the caller's
        told: dict[str, Any] = {"result": action()}
    except UserError as error:
        told = {"error": str(error)}
    except OSError as error:
        told = {"error": ": ".join(filter(None, [error.strerror or str(error), str(error.filename or "")]))}
    except subprocess.TimeoutExpired as error:
        told = {"error": f"{' '.join(map(str, error.cmd))} did not answer in {error.timeout:g} s"}
    except BaseException as error:
        told = {"error": f"{type(error).__name__}: {error} (a bug in the check)"}
    try:
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(told) + "\n")
    finally:
        os._exit(0)


def _end(child: int, answered: bool) -> None:
    """End a process and its group; one that the kernel holds (a filesystem that hangs) is left to it."""
    deadline = time.monotonic() + GRACE_S
    if not answered:
        _signal(child, signal.SIGTERM)
        while time.monotonic() < deadline and not _gone(child):
            time.sleep(0.02)
        time.sleep(0.2)  # for a launcher that now ends its ranks
    _signal(child, signal.SIGKILL)
    while not _gone(child) and time.monotonic() < deadline + 1:
        time.sleep(0.01)


def _signal(child: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, number)


def _gone(child: int) -> bool:
    with suppress(ChildProcessError):
        return os.waitpid(child, os.WNOHANG)[0] == child
    return True
