"""Where the words of commands go: results to standard output, everything for people alone to standard error."""

import os
import sys
from collections.abc import Callable

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


def words(error: UserError, where: str = "") -> str:
    """An error in one line, followed by the traceback where the user's own code raised it."""
    return f"distqtrl: {where}{error}" + (f"\n{error.trace}" if error.trace else "")
