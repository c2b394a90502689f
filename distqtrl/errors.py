"""What goes wrong in the user's hands, said in one line, and the nearest name that is known."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

SHOWN = 60  # characters of a value


def shortened(value: Any) -> str:
    """A value in a message: one line of no more than SHOWN characters."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        shown = f"a {type(value).__name__}"
    shown = re.sub(r"\s*\n\s*", " ", shown)  # of a table, an array, a module
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of files that are not, are read as lone surrogates.

    >>> encodable("ä"), encodable("\\udcff")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Item = TypeVar("Item")


MANY = 20


class UserError(Exception):
    """Bad input: its text is one line that names the thing, the value and the remedy."""

    exit_code = 2

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace  # where the user's own code raised, to be shown below that line


class Foreign(UserError):
    """Code that is not ours raised an error: the text is one line, ``trace`` the frames of that code."""

    exit_code = 1


class Diverged(UserError):
    """A training cannot go on: its numbers are no longer finite, or integers cannot hold them."""


REMEDIES = {
    errno.EISDIR: "give the name of a file in it",
    errno.ENOTDIR: "give a name in a folder",
    errno.ENOENT: "check that its path exists",
    errno.EEXIST: "give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EFBIG: "allow larger files, see ulimit -f, or write elsewhere",
    errno.EMFILE: "allow more open files, see ulimit -n",
    errno.ELOOP: "its symbolic links lead in a circle: give another name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or write elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "use a place where you may, or change its permissions"),
}


def of_system(error: OSError) -> str:
    """What the operating system refused, of which file, and the remedy, in a line.

    >>> of_system(IsADirectoryError(errno.EISDIR, "Is a directory", "runs"))
    'Is a directory: runs (give the name of a file in it)'
    """
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    told = ": ".join(filter(None, [error.strerror or str(error), name and str(name)]))
    return f"{told} ({REMEDIES[error.errno]})" if error.errno in REMEDIES else told


def interrupted(error: KeyboardInterrupt) -> str:
    """Who interrupted, and what becomes of files, in a line.

    >>> interrupted(KeyboardInterrupt("SIGTERM"))
    'interrupted by SIGTERM; files that were written stay whole'
    """
    return f"interrupted{f' by {error}' if str(error) else ''}; files that were written stay whole"


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy part of a message about an unknown name.

    >>> nearest("cartpol", ["acrobot", "cartpole"])
    "did you mean 'cartpole'?"
    >>> nearest("zzz", ["acrobot", "cartpole"])
    'known: acrobot, cartpole'
    """
    names = sorted(known)
    if not names:
        return "there is none to choose from"
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if len(names) <= MANY else "none of the known names is near; see --help"


def lookup(kind: str, name: str, table: Mapping[str, Item]) -> Item:
    """table[name]; raises UserError that names the nearest entry, for what is no name at all, too."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"unknown {kind} {shortened(name)}: {nearest(str(name), table)}")
    return table[name]
