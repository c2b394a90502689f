"""The verdict of one check, and what it is asked about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distqtrl.quantize.program import Ints, Program

EQUAL, BUILT, DIFFERENT, NOT_CHECKED = "equal", "built", "DIFFERENT", "not checked"


PART = 65_536  # vectors that are taken at once


class Different(Exception):
    """A target computed something else than the interpreter; says the first difference."""


@dataclass(frozen=True)
class Check:
    """What one target did (equal, built but not run, DIFFERENT, not checked), over how many vectors, what there is to
    say, and what was counted on the way."""

    target: str
    status: str
    vectors: int = 0
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A place that holds a target's files and nothing else, the program, observations (B, O) with its actions (B, A),
    the recorded observations, and how many of them a core takes per beat."""

    place: Path
    program: Program
    x_BO: Ints
    y_BA: Ints
    seen_BO: Ints
    per_beat: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """Files of the folder that are needed, and what compares them; raises Different and Unchecked."""

    files: tuple[str, ...]
    run: Callable[[str, Question], Check]


def parts(x: np.ndarray, most: int = PART) -> list[np.ndarray]:
    """Vectors in order, in parts of no more than so many."""
    return np.array_split(x, -(-len(x) // most))


def equal(y_BA: np.ndarray, expected_BA: Ints) -> None:
    """Raises Different, with the first difference."""
    wrong = (y_BA != expected_BA).any(-1)
    if wrong.any():
        first = int(wrong.argmax())
        raise Different(
            f"{wrong.sum():,} of {len(wrong):,} vectors; number {first}: {y_BA[first].tolist()}, "
            f"not {expected_BA[first].tolist()}"
        )
