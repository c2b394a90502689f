"""Files that others may have written: regular, of a bounded size, well formed; and what is wrong with them, in a line.

Everything here raises ValueError whose text is the reason; who reads adds the file and the remedy.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from distqtrl.errors import SHOWN, encodable, shortened

MOST_BYTES = 1 << 28  # of a text
MOST_OF_A_LINE = 1 << 24  # bytes
DEPTH = 50  # of lists and tables in each other
DIGITS = 300  # of an integer, so that floating point can hold it
_LONG = re.compile(rf"\d{{{DIGITS}}}")
_STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]')


def regular(path: Path) -> None:
    """Raise ValueError unless path is a regular file: a pipe may wait for ever, and a device never end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(error.strerror) from None
    except ValueError:  # a name that no file can have
        raise ValueError("no file can have that name") from None
    if stat.S_ISDIR(mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(mode):
        raise ValueError("it is not a regular file")


def content(path: Path) -> bytes:
    """The bytes of a regular file of at most MOST_BYTES; raises ValueError."""
    regular(path)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror) from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
    return data


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a regular file of any size, without what ends them; raises ValueError, for a line that is too long
    as well."""
    regular(path)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            while line := file.readline(MOST_OF_A_LINE + 1):
                if len(line) > MOST_OF_A_LINE:
                    raise ValueError(f"it has a line longer than {MOST_OF_A_LINE:,} bytes")
                yield line.rstrip(b"\r\n")
    except OSError as error:
        raise ValueError(error.strerror) from None


def text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; raises ValueError."""
    try:
        return content(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None


def parsed(text: str, infinite: bool = False) -> Any:
    """The value of a JSON text; raises ValueError where it is not JSON, names a key twice, or is nested beyond DEPTH.

    infinite: NaN and Infinity count as numbers, which JSON does not know and Python writes.
    """
    _check_depth(text)
    try:
        found = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=None if infinite else _no_number,
            parse_float=_finite,
            parse_int=_integer if _LONG.search(text) else None,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if "\\u" in text and not encodable(json.dumps(found, ensure_ascii=False)):
        raise ValueError("a text in it is not valid Unicode")
    return found


def toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text; raises ValueError where it is not TOML."""
    if text.count("[") + text.count("{") > 10_000:
        raise ValueError("it holds too many lists and tables")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None
    except ValueError as error:
        raise ValueError(f"it is not TOML: {shortened(str(error))}") from None


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEPTH:
        return
    depth = 0
    for token in _STRINGS_AND_BRACKETS.finditer(text):
        first = token[0][0]
        depth += (first in "[{") - (first in "]}")
        if depth > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {shortened(twice)}")
    return out


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def _integer(word: str) -> int:
    if len(word) > DIGITS:
        raise ValueError(f"{shortened(word)} is too large a number")
    return int(word)


def _finite(word: str) -> float:
    value = float(word)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{shortened(word)} is too large a number")
    return value


def reason(error: ValidationError) -> str:
    """The first thing that a model refuses: key path, value, and what it should be."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")[: 4 * SHOWN]
    key = ".".join(part if len(part) <= SHOWN else shortened(part) for part in map(str, first["loc"]))
    if first["type"] in ("extra_forbidden", "missing"):
        word = {"extra_forbidden": "unknown key", "missing": "lacks the key"}[first["type"]]
        return f"{word} '{key}'"
    return f"{key} = {shortened(first['input'])}: {message}" if key else message
