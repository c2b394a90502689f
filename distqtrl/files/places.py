"""Where a program of the user's says that something is, or shall be."""

import os
import shlex
from pathlib import Path
from typing import Any

from distqtrl.errors import UserError, shortened

Place = str | os.PathLike[str]


def expanded(text: str) -> Path:
    """A path whose ``~`` is the home: a shell leaves that of --run=~/x as it is, and a file has no shell."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a user without a home
        return Path(text)


def quoted(path: Path) -> str:
    """A path as a word of a command that a message tells to run."""
    return shlex.quote(str(path))


def is_there(given: Any) -> bool:
    """Whether something has that name, whatever it is that is given."""
    try:
        return Path(given).exists()
    except (TypeError, OSError, ValueError):
        return False


def path(name: str, given: Any) -> Path:
    """What is given as a path, ``~`` being the home; raises UserError where nothing can have that name."""
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise UserError(f"{name} = {shortened(given)}: give a path, as text or a pathlib.Path")
    found = expanded(text)
    try:
        found.stat()
    except (FileNotFoundError, NotADirectoryError):  # who reads it says more
        pass
    except (OSError, ValueError) as error:  # the latter where no bytes stand for its characters
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise UserError(f"{name} = {shortened(given)}: {reason}: give another path") from None
    return found
