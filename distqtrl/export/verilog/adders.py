"""Shared additions: a constant matrix times a vector as a graph of two-input adders.

Weights become signed digits; the pair of terms that occurs most often becomes one new term, again and again (common
subexpression elimination, Hartley 1996); what is left of every row is added shallowest terms first.
"""

import heapq
from collections import Counter
from dataclasses import dataclass

from distqtrl.quantize.program import Ints

Term = tuple[int, int]  # variable, left shift
Pair = tuple[int, int, int, int]  # variables a and b, shift of b over a (negative: of a), sign of b relative to a


@dataclass(frozen=True)
class Adder:
    """(a << a_shift) + sign * (b << b_shift); variables count the inputs first, then the adders."""

    a: int
    a_shift: int
    b: int
    b_shift: int
    sign: int


@dataclass(frozen=True)
class Sum:
    """A row's result: sign * (variable << shift); variable -1 is zero."""

    variable: int
    shift: int
    sign: int


def graph(weights_NK: Ints) -> tuple[list[Adder], list[Sum]]:
    """Adders in an order in which they can be computed, and every row's result.

    Takes minutes for 6,000 digits, and a time that grows with more than the square of their number.
    """
    rows = [_terms(row) for row in weights_NK.tolist()]
    adders: list[Adder] = []
    depth = [0] * weights_NK.shape[1]
    inputs = weights_NK.shape[1]
    counts: Counter[Pair] = Counter()
    for row in rows:
        counts.update(_pairs(row))
    while counts:
        pair, most = max(
            counts.items(), key=lambda item: (item[1], -max(depth[item[0][0]], depth[item[0][1]]), item[0])
        )
        if most < 2:
            break
        a, b, shift, sign = pair
        new = inputs + len(adders)
        adders.append(Adder(a, max(-shift, 0), b, max(shift, 0), sign))
        depth.append(1 + max(depth[a], depth[b]))
        for row in rows:
            before = None
            while (found := _found(row, pair)) is not None:
                before = before or _pairs(row)
                (x, y), value = found, row[found[0]]
                base = min(x[1], y[1])
                del row[x], row[y]
                row[(new, base)] = value
            if before is not None:
                counts.subtract(before)
                counts.update(_pairs(row))
        counts = +counts
    return adders, [_summed(row, adders, depth, inputs) for row in rows]


def digits(weights_NK: Ints) -> int:
    """How many signed digits the weights have that are not 0."""
    return sum(len(_terms(row)) for row in weights_NK.tolist())


def _terms(row: list[int]) -> dict[Term, int]:
    """A row in canonical signed digits: variable and shift -> 1 or -1."""
    out: dict[Term, int] = {}
    for variable, weight in enumerate(row):
        shift = 0
        while weight:
            if weight & 1:
                digit = 2 - (weight & 3)
                out[variable, shift] = digit
                weight -= digit
            weight >>= 1
            shift += 1
    return out


def _pair(x: Term, y: Term, row: dict[Term, int]) -> Pair:
    return x[0], y[0], y[1] - x[1], row[x] * row[y]


def _pairs(row: dict[Term, int]) -> Counter[Pair]:
    """How often every pair of terms can be taken out of a row at once."""
    terms, out = sorted(row), Counter[Pair]()
    used: dict[Pair, set[Term]] = {}
    for i, x in enumerate(terms):
        for y in terms[i + 1 :]:
            pair = _pair(x, y, row)
            taken = used.setdefault(pair, set())
            if x not in taken and y not in taken:
                taken |= {x, y}
                out[pair] += 1
    return out


def _found(row: dict[Term, int], pair: Pair) -> tuple[Term, Term] | None:
    """Where the pair stands in a row."""
    a, b, shift, sign = pair
    for x in sorted(row):
        if x[0] == a and (y := (b, x[1] + shift)) in row and y != x and row[x] * row[y] == sign and x < y:
            return x, y
    return None


def _summed(row: dict[Term, int], adders: list[Adder], depth: list[int], inputs: int) -> Sum:
    """Add what is left of a row, shallowest first; appends to adders and depth."""
    heap = [(depth[v], v, s, sign) for (v, s), sign in row.items()]
    if not heap:
        return Sum(-1, 0, 1)
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, a, a_shift, a_sign), (_, b, b_shift, b_sign) = heapq.heappop(heap), heapq.heappop(heap)
        base = min(a_shift, b_shift)
        adders.append(Adder(a, a_shift - base, b, b_shift - base, a_sign * b_sign))
        depth.append(1 + max(depth[a], depth[b]))
        heapq.heappush(heap, (depth[-1], inputs + len(adders) - 1, base, a_sign))
    return Sum(heap[0][1], heap[0][2], heap[0][3])
