"""Standard output and error as a place that may be full, closed, or of few characters: never a reason to stop.

What a reader does with its end of a pipe says nothing about the work that was done.
"""

import errno
import io
import os
import sys
from typing import Any, TextIO


class Lossy(io.FileIO):
    """A descriptor that loses what it cannot write; ``error`` says why."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


def prepare() -> None:
    """Replace sys.stdout and sys.stderr; descriptors that are closed lead nowhere from now on."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: no file of ours may become the output
    sys.stdout, sys.stderr = _text(1, sys.stdout, "replace"), _text(2, sys.stderr, "backslashreplace")


def _text(number: int, before: TextIO | None, errors: str) -> io.TextIOWrapper:
    if before is not None:
        before.flush()
    raw = Lossy(number, "w", closefd=False)
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=number == 2 or raw.isatty())


def lost() -> str:
    """Why output is incomplete, flushed; empty where it is not, or where its reader has left on purpose."""
    try:
        sys.stdout.flush()
        raw = getattr(sys.stdout.buffer, "raw", None)
    except (OSError, AttributeError, ValueError):
        return ""
    error = raw.error if isinstance(raw, Lossy) else None
    return "" if error is None or error.errno == errno.EPIPE else f"standard output: {error.strerror}"
