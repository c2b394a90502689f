"""What an environment's own code raised: one line that says so, and the frames of that code alone."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from distqtrl.errors import Foreign

FRAMES = 8
LETTERS = 300  # of an exception's text
_warned = set[str]()


def failure(error: BaseException, what: str) -> Foreign | None:
    """The exception to raise instead of this one; None where our own code failed, which is a bug.

    Any exception may be an environment's: those of Rust are no Exception. Raises the interrupt that is none of theirs.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    found = traceback.TracebackException.from_exception(error)
    frames, (ours, *between) = list(found.stack), _folders()
    first = next((i for i, frame in enumerate(frames) if not frame.filename.startswith((ours, *between))), None)
    if first is not None:
        frames = frames[first:]
    elif error.__cause__ is not None:  # Gymnasium's words about what an environment raised
        return failure(error.__cause__, what)
    elif frames and frames[-1].filename.startswith(ours):
        return None
    else:  # Gymnasium's own environments, and what it says of arguments
        frames = [frame for frame in frames[-1:] if frame.name != "make" and not frame.filename.startswith("<")]
    lines = traceback.format_list(frames)
    if len(lines) > FRAMES:
        lines = [*lines[: FRAMES // 2], "  ...\n", *lines[-FRAMES // 2 :]]
    return Foreign(f"{what}: {said(error, found)}", "".join(lines).rstrip())


def close(environment: Callable[[], object], name: str) -> None:
    """Close an environment; where its own code fails, say so once: its last words cannot undo what was done."""
    try:
        environment()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        words = f"distqtrl: warning: {name} did not close: {said(error)}"
        if words not in _warned:
            _warned.add(words)
            print(words, file=sys.stderr, flush=True)


def said(error: BaseException, found: traceback.TracebackException | None = None) -> str:
    """Type and text of an exception, in one line of bounded length, even where its text cannot be had."""
    found = found or traceback.TracebackException.from_exception(error)
    text = " ".join(str(found).split())
    text = text if len(text) <= LETTERS else f"{text[:LETTERS]}..."
    cause = f" (from {type(error.__cause__).__name__})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{cause}"


def _folders() -> tuple[str, ...]:
    """Where the code lies that stands between an environment and who called it, ours first."""
    loaded = [sys.modules.get(name) for name in ("gymnasium", "pettingzoo")]
    files = [importlib.__file__, *(module.__file__ for module in loaded if module is not None)]
    folders = [str(Path(file).parent) + os.sep for file in files if file is not None]
    return (str(Path(__file__).parents[1]) + os.sep, *folders, "<frozen importlib")
