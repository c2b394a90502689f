"""A layer in C: sums of products of packed weights and levels, in loops that every compiler vectorizes.

Weights are unsigned fields u of 1, 2, 4 or 8 bits in words of 16, w = gain * u - zero, so that a layer needs
gain * sum(u x) - zero * sum(x). Field k of row j belongs to input k * J + j. There are three loops:

* few outputs: the words of an output lie one behind the other, and the inner loop runs over them;
* many: a row holds a word of every output, and the inner loop runs over outputs, without a sum across a vector;
* many, of few bits: the halves of a word belong to outputs i and i + half, so that one multiplication makes two
  products. Those of as many inputs as are proven to stay below 256 add up there; then both halves go to their sums.

Sums are unsigned and wrap around, in 16 bits where the result is proven to fit.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distqtrl.quantize.program import Ints, Matmul, Range

VECTOR = 8  # up to so many outputs are few; their words, and else the outputs, are padded to a multiple
TERMS = 16  # products, at most, that are written out in one line


@dataclass(frozen=True)
class Layer:
    """A layer that reads x, as C."""

    op: Matmul
    x: Range
    number: int  # of the operation

    @cached_property
    def packing(self) -> tuple[int, int, int]:
        """(bits of a field, gain, zero): weights are gain * field - zero."""
        if np.isin(self.op.weights_NK, (-1, 1)).all():
            return 1, 2, 1
        zero = max(0, -int(self.op.weights_NK.min()))
        top = int(self.op.weights_NK.max()) + zero
        return next(bits for bits in (1, 2, 4, 8) if top < 1 << bits), 1, zero

    @cached_property
    def field_NK(self) -> Ints:
        """The fields."""
        _, gain, zero = self.packing
        return (self.op.weights_NK + zero) // gain

    @property
    def few(self) -> bool:
        """Whether the outputs are few."""
        return len(self.field_NK) <= VECTOR

    @cached_property
    def together(self) -> int:
        """Rows whose products add up inside a word of pairs; 0: there are no pairs."""
        fields = 8 // self.packing[0]
        most_K = np.sort((self.field_NK * self.x.high_N).max(0))[::-1]
        num = int((most_K.cumsum() < 256).sum())
        if self.few or num < 2 or num < fields:
            return 0
        rows = -(-len(most_K) // fields)
        most = min(num // fields, TERMS // fields, rows)
        return -(-rows // -(-rows // most))

    @property
    def fields(self) -> int:
        """Fields of one output in a word."""
        return (8 if self.together else 16) // self.packing[0]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """How many outputs there are, and how many words of each, padding included; a word of pairs counts for both."""
        num, inputs = self.field_NK.shape
        words = -(-inputs // self.fields)
        if self.few:
            return num, rounded(words, VECTOR)
        return rounded(num, 2 * VECTOR if self.together else VECTOR), rounded(words, self.together or 1)

    @property
    def room(self) -> int:
        """How many inputs are read, padding included."""
        return self.shape[1] * self.fields

    def words(self) -> Ints:
        """What is stored, in its order."""
        outputs, words = self.shape
        whole = np.zeros((outputs, self.room), np.int64)
        whole[: self.field_NK.shape[0], : self.field_NK.shape[1]] = self.field_NK
        shifts = np.arange(self.fields) * self.packing[0]
        words_NJ = (whole.reshape(outputs, self.fields, words) << shifts[:, None]).sum(1)
        if self.together:
            low, high = np.split(words_NJ, 2)
            words_NJ = low | high << 8
        return (words_NJ if self.few else words_NJ.T).ravel()

    def statements(self, result: str) -> list[str]:
        """The body of a function that reads the levels x and writes y, numbers of the type ``result``."""
        _, gain, zero = self.packing
        size = 16 if self.op.range(self.x).bits <= 16 else 32
        word, num = f"uint{size}_t", len(self.field_NK)
        made = f"({result})(int{size}_t)({word})({gain} * %s - {zero} * all);"
        lines = [f"{word} all = 0;", f"for (int j = 0; j < {len(self.x.low_N)}; j++) all = ({word})(all + x[j]);"]
        if self.few:
            return [
                *lines,
                f"for (int i = 0; i < {num}; i++) {{",
                *self._along(word),
                f"    y[i] = {made % 'sum'}",
                "}",
            ]
        outputs = self.shape[0]
        lines += [f"{word} sum[{outputs}];", f"for (int i = 0; i < {outputs}; i++) sum[i] = 0;"]
        lines += self._across(word)
        return [*lines, f"for (int i = 0; i < {num}; i++) y[i] = {made % 'sum[i]'}"]

    def _along(self, word: str) -> list[str]:
        """The sum of output i over its words."""
        words = self.shape[1]
        terms = [f"x[j{_plus(k * words)}] * {field}" for k, field in enumerate(self._from("w[j]"))]
        return [
            f"    const uint16_t *POLICY_RESTRICT w = weights{self.number} + i * {words};",
            f"    {word} sum = 0;",
            f"    for (int j = 0; j < {words}; j++)",
            f"        sum = ({word})(sum + {_sum(terms)});",
        ]

    def _across(self, word: str) -> list[str]:
        """The sums of all outputs, row after row."""
        outputs, words = self.shape
        rows, width = max(1, self.together), outputs // 2 if self.together else outputs
        places = [k * words + r for r in range(rows) for k in range(self.fields)]
        fields = [field for r in range(rows) for field in self._from(f"w[i{_plus(r * width)}]")]
        names = ", ".join(f"x{n} = x[j{_plus(place)}]" for n, place in enumerate(places))
        total = _sum([f"x{n} * {field}" for n, field in enumerate(fields)])
        added = [f"    for (int i = 0; i < {width}; i++)", f"        sum[i] = ({word})(sum[i] + {total});"]
        if self.together:
            added = [
                f"    for (int i = 0; i < {width}; i++) {{",
                f"        const uint16_t pair = (uint16_t)({total});",
                f"        sum[i] = ({word})(sum[i] + (pair & 255));",
                f"        sum[i + {width}] = ({word})(sum[i + {width}] + (pair >> 8));",
                "    }",
            ]
        return [
            f"for (int j = 0; j < {words}; j += {rows}) {{",
            f"    const uint16_t *POLICY_RESTRICT w = weights{self.number} + j * {width};",
            f"    const {'uint16_t' if self.together else word} {names};",
            *added,
            "}",
        ]

    def _from(self, word: str) -> list[str]:
        """The fields of a word, of both halves at once where there are pairs."""
        bits = self.packing[0]
        mask = ((1 << bits) - 1) * (0x101 if self.together else 1)
        fields = [f"(({word} >> {k * bits}) & {mask})" for k in range(self.fields)]
        fields[0] = f"({word} & {mask})"
        if not self.together:
            fields[-1] = f"({word} >> {16 - bits})"
        return fields


def rounded(num: int, multiple: int) -> int:
    """The next multiple, num itself included.

    >>> rounded(17, 8), rounded(16, 8)
    (24, 16)
    """
    return -(-num // multiple) * multiple


def _plus(number: int) -> str:
    return f" + {number}" if number else ""


def _sum(terms: list[str]) -> str:
    """Four of them to a line."""
    lines = [" + ".join(terms[i : i + 4]) for i in range(0, len(terms), 4)]
    return "\n            + ".join(lines)
