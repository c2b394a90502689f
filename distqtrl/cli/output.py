"""Where the words of commands go: results to standard output, everything for people alone to standard error."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from distqtrl.errors import UserError


def say(text: str) -> None:
    """A line for people on standard error, in one write, so that lines of different ranks do not mix."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        os.write(2, (text + "\n").encode(errors="backslashreplace"))
    except (OSError, ValueError):
        pass


def aside(as_json: bool) -> Callable[[str], None]:
    """Where a command's progress goes: to standard output, or nowhere when a program reads that."""
    return (lambda text: None) if as_json else (lambda text: print(text, flush=True))


_read: list[TextIO] = []  # standard output, while a program reads it


@contextmanager
def for_a_program(as_json: bool) -> Iterator[None]:
    """Only print_json writes to standard output; what others print, such as environments, goes to standard error."""
    if not as_json:
        yield
        return
    _read.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _read.pop()


def print_json(value: Any) -> None:
    """The one JSON object of a command."""
    print(json.dumps(value), file=_read[-1])


def tell(as_json: bool, value: Any, text: str) -> None:
    """A command's result: the value for a program, or the text for people."""
    if as_json:
        print_json(value)
    else:
        print(text)


def words(error: UserError, where: str = "") -> str:
    """An error in one line, followed by the traceback where the user's own code raised it."""
    return f"distqtrl: {where}{error}" + (f"\n{error.trace}" if error.trace else "")
