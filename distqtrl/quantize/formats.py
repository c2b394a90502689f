"""Bits and grids: how many levels a tensor has, and what they mean.

Activations are unsigned: level q of a grid means low + q * step, so that any range uses all levels and one bit is a
format like any other. Weights are signed and symmetric, q * step with |q| < 2**(bits - 1); one bit means -1 or 1.
"""

import re
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from distqtrl.config.values import whole
from distqtrl.errors import UserError, shortened

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
RESOLVED = 32  # an observation's grid spans at least this part of its distance from 0
CLIPS = np.linspace(0.3, 1, 36)  # shares of the greatest weight or activation that are tried as the range's end
CHANNEL = "channel"  # a scale for every neuron, in place of one for a tensor


@dataclass(frozen=True)
class Bits:
    """Bits (1 to 8) of weights and hidden activations (core), observations (input) and what the head reads (output)."""

    core: int = 4
    input: int = 8
    output: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number = whole(value)
            if number is None or not 1 <= number <= 8:
                raise UserError(f"--bits {name}={shortened(value)}: must be a whole number from 1 to 8")
            object.__setattr__(self, name, number)


def bits(text: str) -> Bits:
    """The bits of a text such as core=3,input=6,output=8; raises UserError.

    >>> bits("core=3,input=6")
    Bits(core=3, input=6, output=8)
    """
    names = [field.name for field in fields(Bits)]
    values = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in names or re.fullmatch(r"\s*[0-9]{1,9}\s*", value) is None:
            raise UserError(f"--bits {part!r}: write {','.join(f'{n}=8' for n in names)}, or some of these")
        if name in values:
            raise UserError(f"--bits {text}: says {name} twice: say it once")
        values[name] = int(value)
    return Bits(**values)


@dataclass(frozen=True)
class Grid:
    """Levels 0 to 2**bits - 1 of N values; step_N is 0 where a value is constant."""

    bits: int
    low_N: Array
    step_N: Array

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def divisor_N(self) -> Array:
        """The steps, infinite where a value is constant, so that it has level 0."""
        return np.where(self.step_N > 0, self.step_N, np.inf)

    def levels(self, x_BN: Array) -> Ints:
        """The nearest levels."""
        return np.floor((x_BN - self.low_N) / self.divisor_N + 0.5).clip(0, self.top).astype(np.int64)

    def values(self, q_BN: Ints) -> Array:
        """What levels mean."""
        return self.low_N + q_BN * self.step_N


def resolved(span_O: Array, middle_O: Array) -> Array:
    """The spans of observations' grids, as wide as all observations' 16 bits and multipliers of 15 can tell apart.

    An observation that hardly moves far from 0 (a constant mass) would otherwise take their bits from all others.
    """
    return np.where(span_O > 0, np.maximum(span_O, np.abs(middle_O) / RESOLVED), 0.0)


def spanning(low_N: Array, high_N: Array, bits: int) -> Grid:
    """The grid whose ends are low and high."""
    return Grid(bits, low_N, (high_N - low_N) / ((1 << bits) - 1))


def positive(x_BN: Array, bits: int, per: str) -> Grid:
    """The grid from 0 that quantizes these values with the least squared error, per tensor or per channel."""
    top_N = x_BN.max(0) if per == CHANNEL else np.full(x_BN.shape[1], x_BN.max())
    top_N = np.maximum(top_N, max(x_BN.max() / 16, 1e-6))  # what was silent in the recording may still speak
    tried = [spanning(np.zeros_like(top_N), clip * top_N, bits) for clip in CLIPS]
    error_CN = np.array([((grid.values(grid.levels(x_BN)) - x_BN) ** 2).mean(0) for grid in tried])
    return Grid(
        bits, np.zeros_like(top_N), np.array([g.step_N for g in tried])[_best(error_CN, per), np.arange(len(top_N))]
    )


def weights(weight_NK: Array, importance_K: Array, bits: int, per: str) -> tuple[Ints, Array]:
    """Integer weights and their steps (N,) with the least squared error of what they sum, weighted by importance."""
    top = max((1 << (bits - 1)) - 1, 1)
    most_N = np.abs(weight_NK).max(1) if per == CHANNEL else np.full(len(weight_NK), np.abs(weight_NK).max())
    steps_CN = np.outer(CLIPS, np.maximum(most_N, 1e-12)) / top

    def nearest(step_N: Array) -> Array:
        scaled_NK = weight_NK / step_N[:, None]
        return np.where(scaled_NK < 0, -1.0, 1.0) if bits == 1 else np.round(scaled_NK).clip(-top, top)

    error_CN = np.array([(((nearest(s_N) * s_N[:, None] - weight_NK) ** 2) * importance_K).sum(1) for s_N in steps_CN])
    step_N = steps_CN[_best(error_CN, per), np.arange(len(weight_NK))]
    return nearest(step_N).astype(np.int64), step_N


def _best(error_CN: Array, per: str) -> Ints:
    """The candidate of every channel, or the one that is best for all."""
    chosen_N: Ints = error_CN.argmin(0)
    return chosen_N if per == CHANNEL else np.full_like(chosen_N, error_CN.sum(1).argmin())
