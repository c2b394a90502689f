"""One check of a target: what it is asked, how it compares, and its verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.export.tools import Unchecked
from distqtrl.quantize.program import Ints, Program

EQUAL, BUILT, DIFFERENT, NOT_CHECKED = "equal", "built", "DIFFERENT", "not checked"
PART = 65_536  # vectors that are compared at once


class Different(Exception):
    """A target computed something else than the interpreter; says the first difference."""


@dataclass(frozen=True)
class Check:
    """The verdict about one target."""

    target: str
    status: str  # EQUAL, BUILT (but not run), DIFFERENT, NOT_CHECKED
    vectors: int = 0  # that were compared
    detail: str = ""  # what there is to say
    figures: Mapping[str, float] = field(default_factory=dict)  # what was counted on the way


@dataclass(frozen=True)
class Question:
    """What a comparison is asked."""

    place: Path  # a folder that holds the comparison's files and nothing else
    program: Program
    x_BO: Ints  # observations
    y_BA: Ints  # and the actions that the interpreter gives them
    seen_BO: Ints  # recorded observations
    facts: Mapping[str, Any]  # what the manifest says about the target


@dataclass(frozen=True)
class Comparison:
    """How a target is compared with the interpreter."""

    files: tuple[str, ...]  # of the folder, that are needed
    run: Callable[[str, Question], Check]  # given the check's name; raises Different and Unchecked
    proves: tuple[str, ...] = ()  # the files that are proven where it finds them equal


def checked(name: str, comparison: Comparison, question: Question) -> Check:
    """The verdict of one comparison. Only what was computed and differs is different; all else is not checked."""
    try:
        return comparison.run(name, question)
    except Different as error:
        return Check(name, DIFFERENT, detail=first_line(error))
    except Unchecked as error:
        return Check(name, NOT_CHECKED, detail=first_line(error))
    except Exception as error:  # a tool can fail in any way
        return Check(name, NOT_CHECKED, detail=f"{type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of an exception, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def parts(x: np.ndarray, most: int = PART) -> list[np.ndarray]:
    """Vectors in order, in parts of at most ``most``."""
    return np.array_split(x, -(-len(x) // most))


def equal(y_BA: np.ndarray, expected_BA: Ints) -> None:
    """Raise Different, with the first difference, where two arrays of actions are not equal."""
    wrong = (y_BA != expected_BA).any(-1)
    if wrong.any():
        first = int(wrong.argmax())
        raise Different(
            f"{wrong.sum():,} of {len(wrong):,} vectors; number {first}: {y_BA[first].tolist()}, "
            f"not {expected_BA[first].tolist()}"
        )
