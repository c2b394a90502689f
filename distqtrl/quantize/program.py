"""The integer program: what an exported policy computes, and its NumPy interpreter, which defines what is correct.

A program is a straight line of operations on vectors of integers, from raw fixed-point observations to the action.
Its only rounding is the floor of an arithmetic right shift in ``Scale``. Every intermediate's range is computed from
the weights, exactly, so a program that is accepted cannot overflow.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from distqtrl.errors import UserError
from distqtrl.files import reading
from distqtrl.files.schema import Record

Ints = npt.NDArray[np.int64]
FORMAT = "distqtrl program 1"
WORD = 62  # bits that an intermediate may need, so that int64 cannot overflow


def signed_bits(low: int, high: int) -> int:
    """Bits of a two's complement number between these, always including its sign."""
    return max((~min(low, -1)).bit_length(), max(high, 0).bit_length()) + 1


@dataclass(frozen=True)
class Range:
    """What every element of a vector lies between, both ends included: low_N, high_N."""

    low_N: Ints
    high_N: Ints

    @property
    def bits(self) -> int:
        """Bits of a two's complement number that can hold every element."""
        return signed_bits(int(self.low_N.min()), int(self.high_N.max()))

    @property
    def signed(self) -> bool:
        """Whether an element may be negative."""
        return bool((self.low_N < 0).any())


@dataclass(frozen=True, eq=False)
class Matmul:
    """y_i = sum_j weights_NK[i, j] * x_j."""

    weights_NK: Ints

    @cached_property
    def _floating_KN(self) -> npt.NDArray[np.floating]:
        """The weights as floats, whose fast product is exact."""
        return self.weights_NK.T.astype(np.float32 if self.exact_in_float32 else np.float64)

    @property
    def exact_in_float32(self) -> bool:
        """Whether sums of products stay below 2**24; of those in float64 see ``takes``."""
        return int(np.abs(self.weights_NK).sum(1).max(initial=0)) * 255 < 1 << 24

    def __call__(self, x_BK: Ints) -> Ints:
        y_BN: Ints = (x_BK.astype(self._floating_KN.dtype) @ self._floating_KN).astype(np.int64)
        return y_BN

    def takes(self, x: Range) -> bool:
        """Whether levels are 0 to 255, weights -128 to 127, sums 32 bits: every target has an instruction for that."""
        fit = x.low_N.min() >= 0 and x.high_N.max() <= 255 and np.abs(self.weights_NK * 2 + 1).max() <= 255
        return bool(fit) and len(x.low_N) < 1 << 15

    def range(self, x: Range) -> Range:
        """The range of what is written where the range of what is read is x, exactly; so for every operation."""
        up: Ints = self.weights_NK.clip(0)
        down: Ints = self.weights_NK.clip(max=0)
        return Range(up @ x.low_N + down @ x.high_N, up @ x.high_N + down @ x.low_N)


@dataclass(frozen=True, eq=False)
class Scale:
    """y_i = clip((x_i * multiplier_N[i] + offset_N[i]) >> shift, low, high): the shift is arithmetic, so it floors."""

    multiplier_N: Ints
    offset_N: Ints
    shift: int
    low: int
    high: int

    def __call__(self, x_BN: Ints) -> Ints:
        y_BN: Ints = ((x_BN * self.multiplier_N + self.offset_N) >> self.shift).clip(self.low, self.high)
        return y_BN

    def of(self, i: int, x_B: Ints) -> Ints:
        """y_i of x_i."""
        y_B: Ints = ((x_B * self.multiplier_N[i] + self.offset_N[i]) >> self.shift).clip(self.low, self.high)
        return y_B

    def product(self, x: Range) -> Range:
        """The range of x_i * multiplier_N[i]."""
        a_N, b_N = x.low_N * self.multiplier_N, x.high_N * self.multiplier_N
        return Range(np.minimum(a_N, b_N), np.maximum(a_N, b_N))

    def shifted(self, x: Range) -> Range:
        """The range of what is shifted, x_i * multiplier_N[i] + offset_N[i]."""
        product = self.product(x)
        return Range(product.low_N + self.offset_N, product.high_N + self.offset_N)

    def range(self, x: Range) -> Range:
        shifted = self.shifted(x)
        ends = ((end_N >> self.shift).clip(self.low, self.high) for end_N in (shifted.low_N, shifted.high_N))
        return Range(*ends)


@dataclass(frozen=True, eq=False)
class Lookup:
    """y_i = table[x_i]."""

    table: Ints

    def __call__(self, x_BN: Ints) -> Ints:
        return self.table[x_BN]

    def range(self, x: Range) -> Range:
        if x.low_N.min() < 0 or x.high_N.max() >= len(self.table):
            raise ValueError(f"a table of {len(self.table)} entries cannot look up {x.low_N.min()} to {x.high_N.max()}")
        num = len(x.low_N)
        return Range(np.full(num, self.table.min()), np.full(num, self.table.max()))


@dataclass(frozen=True)
class Argmax:
    """y_f = start_f + the first position of the greatest among the numbers of factor f: sizes[f] of them, in a row.

    Without sizes there is one factor, of all numbers; with them the starts are as many.
    """

    start: int | tuple[int, ...] = 0
    sizes: tuple[int, ...] = ()

    def factors(self, num: int) -> list[tuple[int, int, int]]:
        """(first position, size, start) of every factor of ``num`` numbers; raises ValueError where they do not fit.

        >>> Argmax((0, 5), (3, 2)).factors(5)
        [(0, 3, 0), (3, 2, 5)]
        """
        sizes = self.sizes or (num,)
        starts = self.start if isinstance(self.start, tuple) else (self.start,)
        if len(starts) != len(sizes) or isinstance(self.start, tuple) != bool(self.sizes):
            raise ValueError(f"{len(starts)} starts of {len(sizes)} factors")
        if sum(sizes) != num or min(sizes) < 1:
            raise ValueError(f"factors of {sizes} do not add up to {num} numbers")
        return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, starts, strict=True))

    def __call__(self, x_BN: Ints) -> Ints:
        factors = self.factors(x_BN.shape[-1])
        return np.stack([x_BN[..., first : first + num].argmax(-1) + start for first, num, start in factors], axis=-1)

    def range(self, x: Range) -> Range:
        low, high = zip(*((start, start + num - 1) for _, num, start in self.factors(len(x.low_N))), strict=True)
        return Range(np.array(low), np.array(high))


def within(op: "Op", x: Range) -> tuple[Range, ...]:
    """The ranges of what an operation computes on its way."""
    return (op.product(x), op.shifted(x)) if isinstance(op, Scale) else ()


Op = Matmul | Scale | Lookup | Argmax
OPS: dict[str, type[Op]] = {"matmul": Matmul, "scale": Scale, "lookup": Lookup, "argmax": Argmax}


@dataclass(frozen=True)
class Program:
    """Observation j enters as floor(obs_j * 2**input_fraction_O[j] + 1/2), saturated to ``input_bits`` signed bits;
    action i leaves as an integer that means action_i = y_i * 2**-output_fraction."""

    input_fraction_O: tuple[int, ...]
    input_bits: int
    ops: tuple[Op, ...]
    output_fraction: int = 0

    def __post_init__(self) -> None:
        for number, (op, x, y) in enumerate(self.steps()):
            if isinstance(op, Matmul) and not op.takes(x):
                raise UserError(f"operation {number} of the program: levels and weights of a layer must fit a byte")
            wide = max(range.bits for range in (y, *within(op, x)))
            if wide > WORD:
                raise UserError(f"operation {number} of the program needs {wide} bits, {WORD} are the limit: use fewer")

    @property
    def inputs(self) -> Range:
        """The range of the observations as integers."""
        top = 1 << (self.input_bits - 1)
        return Range(np.full(len(self.input_fraction_O), -top), np.full(len(self.input_fraction_O), top - 1))

    def steps(self) -> Iterator[tuple[Op, Range, Range]]:
        """Every operation with the range of what it reads and of what it writes."""
        x = self.inputs
        for op in self.ops:
            y = op.range(x)
            yield op, x, y
            x = y

    @property
    def outputs(self) -> Range:
        """The range of the action's integers."""
        return list(self.steps())[-1][2]

    def convert(self, obs_BO: np.ndarray) -> Ints:
        """Observations as the program's integers; what is not a number becomes the lowest one."""
        return converted(obs_BO, self.input_fraction_O, self.input_bits)

    def run(self, x_BO: Ints) -> Ints:
        """Actions of integer observations, (B, A): the definition of correct."""
        return self.trace(x_BO)[-1]

    def trace(self, x_BO: Ints) -> list[Ints]:
        """What every operation writes."""
        out = []
        for op in self.ops:
            x_BO = op(x_BO)
            out.append(x_BO)
        return out

    def act(self, obs_BO: np.ndarray) -> np.ndarray:
        """Actions in the environment's units: int64 (B,) of a choice, int64 (B, F) of factors, else float32 (B, A)."""
        y_BA = self.run(self.convert(obs_BO))
        if isinstance(self.ops[-1], Argmax):
            return y_BA if self.ops[-1].sizes else y_BA[..., 0]
        return np.ldexp(y_BA, -self.output_fraction).astype(np.float32)


def converted(obs_BO: np.ndarray, fraction_O: tuple[int, ...], bits: int) -> Ints:
    """Observations as integers (see ``Program.convert``); raises UserError for observations of another width."""
    if np.shape(obs_BO)[-1] != len(fraction_O):
        raise UserError(
            f"the program reads {len(fraction_O)} observations, not {np.shape(obs_BO)[-1]}: export it again"
        )
    x_BO = np.floor(np.asarray(obs_BO, np.float64) * np.exp2(fraction_O) + 0.5)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return np.nan_to_num(x_BO, nan=low, posinf=high, neginf=low).clip(low, high).astype(np.int64)


def dumps(program: Program) -> str:
    """The program as JSON, one operation per line."""
    head = {"format": FORMAT, **{f.name: getattr(program, f.name) for f in fields(program) if f.name != "ops"}}
    lines = [json.dumps({"op": _name(op), **_plain(op)}) for op in program.ops]
    return json.dumps(head)[:-1] + ', "ops": [\n' + ",\n".join(lines) + "\n]}\n"


def loads(text: str, origin: str = "the program") -> Program:
    """The program of a JSON text; raises UserError when it is not one. origin: what a message calls it."""
    try:
        reading.parsed(text)
        told = Written.model_validate_json(text)
        return Program(told.input_fraction_O, told.input_bits, _fitting(told), told.output_fraction)
    except ValidationError as error:
        reason = reading.reason(error)
    except (ValueError, UserError) as error:
        reason = str(error)
    raise UserError(f"cannot read {origin} ({reason}): export the policy again")


First = Annotated[int, Field(ge=-(2**30), le=2**30)]
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
List = Field(min_length=1)


class WrittenMatmul(Record):
    """A Matmul as JSON."""

    op: Literal["matmul"]
    weights_NK: Annotated[tuple[Annotated[tuple[Annotated[int, Field(ge=-128, le=127)], ...], List], ...], List]

    def made(self, width: int) -> tuple[Op, int]:
        """The operation on ``width`` numbers, and how many it writes; raises ValueError where it does not fit them."""
        _check_width("weights_NK", [len(row) for row in self.weights_NK], width)
        return Matmul(np.array(self.weights_NK, np.int64)), len(self.weights_NK)


class WrittenScale(Record):
    """A Scale as JSON: products of 32 bits by 32, and offsets, stay below 2**63."""

    op: Literal["scale"]
    multiplier_N: Annotated[tuple[Int32, ...], List]
    offset_N: Annotated[tuple[Annotated[int, Field(ge=-(2**61), le=2**61)], ...], List]
    shift: int = Field(ge=0, le=WORD)
    low: Int32
    high: Int32

    def made(self, width: int) -> tuple[Op, int]:
        """The operation on ``width`` numbers, and how many it writes; raises ValueError where it does not fit them."""
        _check_width("multiplier_N", [len(self.multiplier_N)], width)
        _check_width("offset_N", [len(self.offset_N)], width)
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        multiplier_N, offset_N = (np.array(values, np.int64) for values in (self.multiplier_N, self.offset_N))
        return Scale(multiplier_N, offset_N, self.shift, self.low, self.high), width


class WrittenLookup(Record):
    """A Lookup as JSON."""

    op: Literal["lookup"]
    table: tuple[Int32, ...] = Field(min_length=1, max_length=1 << 16)

    def made(self, width: int) -> tuple[Op, int]:
        """The operation on ``width`` numbers, and how many it writes; raises ValueError where it does not fit them."""
        return Lookup(np.array(self.table, np.int64)), width


class WrittenArgmax(Record):
    """An Argmax as JSON."""

    op: Literal["argmax"]
    start: First | tuple[First, ...]
    sizes: tuple[Annotated[int, Field(ge=1, lt=2**31)], ...] = Field((), max_length=1000)

    def made(self, width: int) -> tuple[Op, int]:
        """The operation on ``width`` numbers, and how many it writes; raises ValueError where it does not fit them."""
        op = Argmax(self.start, self.sizes)
        return op, len(op.factors(width))


class Written(Record):
    """program.json."""

    format: Literal["distqtrl program 1"]
    input_fraction_O: tuple[Annotated[int, Field(ge=-16, le=30)], ...] = Field(min_length=1)
    input_bits: int = Field(ge=1, le=16)
    output_fraction: int = Field(ge=-128, le=64)
    ops: tuple[
        Annotated[WrittenMatmul | WrittenScale | WrittenLookup | WrittenArgmax, Field(discriminator="op")], ...
    ] = Field(min_length=1, max_length=1000)


def _fitting(told: Written) -> tuple[Op, ...]:
    """The operations; raises ValueError where one does not fit what the one before it writes."""
    width, ops = len(told.input_fraction_O), list[Op]()
    for number, op in enumerate(told.ops):
        if isinstance(op, WrittenArgmax) and number < len(told.ops) - 1:
            raise ValueError(f"ops.{number}: an argmax is the last operation")
        try:
            made, width = op.made(width)
        except ValueError as error:
            raise ValueError(f"ops.{number}.{error}") from None
        ops.append(made)
    if isinstance(told.ops[-1], WrittenArgmax) and told.output_fraction:
        raise ValueError(f"output_fraction = {told.output_fraction}: an argmax has none")
    return tuple(ops)


def _check_width(name: str, lengths: list[int], width: int) -> None:
    for length in lengths:
        if length != width:
            raise ValueError(f"{name} has {length} entries for {width} numbers")


def digest(program: Program) -> str:
    """SHA-256 of the program's text."""
    return hashlib.sha256(dumps(program).encode()).hexdigest()


def _name(op: Op) -> str:
    return next(name for name, kind in OPS.items() if isinstance(op, kind))


def _plain(op: Op) -> dict[str, Any]:
    """What JSON keeps of an operation; no sizes where there is one factor, as before there could be several."""
    kept = {key: value for key, value in asdict(op).items() if key != "sizes" or value}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in kept.items()}
