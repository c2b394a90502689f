"""Kinds of values that stages have, and what all stages do with them."""

import json
import math
import operator
import os
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from distqtrl.files import reading
from distqtrl.files.places import expanded, is_there

MOST_WEIGHTS = 2**27  # between two layers: half a GiB


def whole(value: Any) -> int | None:
    """A whole number of Python or NumPy; none for anything else, such as a boolean or an array."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def finite(value: Any) -> float | None:
    """A finite number of Python or NumPy; none for anything else, such as a boolean, text or an array."""
    if isinstance(value, bool | str | bytes) or getattr(value, "ndim", None):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> Any:
    """A float that is a whole number as an int: 1e6 of TOML, or of a flag."""
    if isinstance(value, str) and "e" in value.lower():
        with suppress(ValueError):
            value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _when(value: Any) -> Any:
    """Truths, which older configurations have, as the words for them."""
    truths = {"true": "start", "false": None}
    word = str(value).lower()
    return truths.get(word, value)


def _named(text: str) -> str:
    if "\0" in text:
        raise ValueError("it has a NUL, which no file is named by: leave it out")
    return text


def from_anywhere(text: str) -> str:
    """A path that leads somewhere from here as one that does from everywhere; any other text, such as a name, stays."""
    found = expanded(text)
    return str(found.resolve()) if is_there(found) else text


def _as_json(given: Any, info: ValidationInfo) -> Any:
    """The table of a whole run as its file holds it, so that whatever reads that gets the same."""
    if not isinstance(given, dict) or not info.context:
        return given
    try:
        return reading.parsed(json.dumps(given, allow_nan=False, default=_known))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be kept as JSON ({error}): give finite numbers, words, lists and tables") from None


def _known(value: Any) -> Any:
    """What JSON does not know as what it knows."""
    found = _plain(value)
    if found is value:
        raise TypeError(f"{type(value).__name__} is not JSON-serializable")
    return found


def _affordable(widths: tuple[int, ...]) -> tuple[int, ...]:
    for a, b in pairwise(widths):
        if a * b > MOST_WEIGHTS:
            raise ValueError(f"layers of {a:,} and {b:,} have more than {MOST_WEIGHTS:,} weights between them")
    return widths


Whole = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[Whole, Field(ge=1, le=10**9)]
Budget = Annotated[Whole, Field(ge=1, le=10**15)]  # exact in floating point
Width = Annotated[Whole, Field(ge=1, le=2**16)]
Widths = Annotated[tuple[Width, ...], Field(max_length=100), AfterValidator(_affordable)]
Few = Annotated[Whole, Field(ge=1, le=4096)]
Shots = Annotated[Whole, Field(ge=1, le=10**7)]
Many = Annotated[Whole, Field(ge=1, le=10**6)]
Wire = Annotated[Whole, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(gt=0)]
BitWidth = Annotated[Whole, Field(ge=1, le=8)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=4096), AfterValidator(_named)]
File = Annotated[Text, AfterValidator(from_anywhere)]
Folder = Annotated[Text, AfterValidator(lambda text: str(expanded(text)) if text.startswith("~") else text)]
Table = Annotated[dict[str, Any], BeforeValidator(_as_json)]
Whiten = Annotated[Literal["start", "every"] | None, BeforeValidator(_when)]


class Stage(BaseModel):
    """Base of the stages' models: frozen, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: Any) -> Any:
        """ "none" stands for nothing where a field may be left empty (TOML has no word for it).

        What a program has in their place, such as numbers of NumPy and paths, is taken for Python's own.
        """
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields.items()
        empty = {name for name, field in fields if type(None) in get_args(field.annotation)}
        lists = {name for name, field in fields if get_origin(field.annotation) is tuple}
        values = {name: None if name in empty and _is_none(value) else value for name, value in values.items()}
        values = {name: _plain(value) for name, value in values.items()}
        return {name: _tuple(value) if name in lists else value for name, value in values.items()}


def _is_none(value: Any) -> bool:
    """Whether it is the word for nothing, of TOML, JSON or Python."""
    return isinstance(value, str) and value.lower() in ("none", "null")


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and torch as Python's, paths as text."""
    if isinstance(value, list | tuple | range):
        return [_plain(x) for x in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _tuple(value: Any) -> Any:
    """A list as a tuple: files have lists where fields are tuples."""
    return tuple(_tuple(x) for x in value) if isinstance(value, list) else value
