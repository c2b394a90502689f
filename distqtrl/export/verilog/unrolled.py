"""The program as an unrolled Verilog core: one action per clock, every weight wired.

Layers are graphs of shared adders. A scaling to few levels is a binary search among thresholds, one comparison per bit
of the level, written as gates; one to many levels is a multiplication. Registers are put after the observations' levels
and where a path would be longer than ``depth`` operations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from distqtrl.export.verilog import adders
from distqtrl.quantize.program import Argmax, Ints, Lookup, Matmul, Op, Program, Range, Scale, signed_bits

CONSTANTS = {"1'b0": "&", "1'b1": "|"}  # and what the majority of one and two other bits is
COMPARED = 15  # levels, up to which thresholds are smaller than a multiplier

MOST_DIGITS = 8000  # of a layer: 64 x 64 weights of 4 bits have about 6,000


@dataclass(frozen=True)
class Wire:
    """A number in the core: its name, range, and the stage and depth of operations at which it is ready."""

    name: str
    low: int
    high: int
    stage: int
    depth: int
    sign: int = 1  # what is meant is sign * ((number + offset) << shift)
    shift: int = 0
    offset: int = 0

    @property
    def bits(self) -> int:
        return signed_bits(self.low, self.high)


def refusal(program: Program) -> str:
    """Why the program is too large for this core; empty where it is not."""
    most = max((adders.digits(op.weights_NK) for op in program.ops if isinstance(op, Matmul)), default=0)
    if most <= MOST_DIGITS:
        return ""
    return f"a layer's weights have {most:,} signed digits, and {MOST_DIGITS:,} are the most that are wired"


class Core:
    """Text under construction; numbers are signed wires."""

    def __init__(self, depth: int, chains: int) -> None:
        self.depth = depth
        self.chains = chains
        self.lines: list[str] = []
        self.clocked: list[str] = []
        self.delayed: dict[tuple[str, int], str] = {}
        self.count = 0

    def wire(self, low: int, high: int, text: str | Callable[..., str], *reads: Wire, cost: int = 1) -> Wire:
        """A new number computed from others; {0}, {1}, ... in the text stand for them, or it is given their names."""
        stage = max((x.stage for x in reads), default=0)
        depth = max((x.depth for x in reads if x.stage == stage), default=0) + cost
        if depth > self.depth and depth > cost:
            stage, depth = stage + 1, cost
        made = Wire(f"n{self.count}", low, high, stage, depth)
        self.count += 1
        names = [self.at(x, stage) for x in reads]
        value = text.format(*names) if isinstance(text, str) else text(*names)
        self.lines.append(f"    wire signed [{made.bits - 1}:0] {made.name} = {value};")
        return made

    def register(self, x: Wire) -> Wire:
        """The number a stage later, whatever its depth."""
        return Wire(self.at(x, x.stage + 1), x.low, x.high, x.stage + 1, 0)

    def at(self, x: Wire, stage: int) -> str:
        """The number's name in a later stage."""
        if stage == x.stage:
            return x.name
        key = (x.name, stage)
        if key not in self.delayed:
            before, name = self.at(x, stage - 1), f"{x.name}_{stage}"
            self.lines.append(f"    reg signed [{x.bits - 1}:0] {name};")
            value = before if x.low < 0 else f"{{1'b0, {_bits(before, x.bits, 0, x.bits - 1)}}}"
            self.clocked.append(f"{name} <= {value};")
            self.delayed[key] = name
        return self.delayed[key]


def verilog(program: Program, depth: int = 2, name: str = "policy_unrolled", chains: int = 0) -> str:
    """The core's text.

    A comparison that chooses from no more thresholds than ``chains`` subtracts each of them instead of choosing one:
    fewer operations in a row, and fewer tables where a carry needs none of its own, as Yosys counts the 7 series.
    """
    core = Core(depth, chains)
    bits = program.inputs.bits
    x = [
        Wire(f"x{i}", int(low), int(high), 0, 0)
        for i, (low, high) in enumerate(zip(program.inputs.low_N, program.inputs.high_N, strict=True))
    ]
    for i in range(len(x)):
        core.lines.append(f"    wire signed [{bits - 1}:0] x{i} = in_data[{i * bits} +: {bits}];")
    for at, (op, _, y) in enumerate(program.steps()):
        following, later = (*program.ops[at + 1 :], None, None)[:2]
        if isinstance(op, Matmul):
            x = _matmul(core, op, x, following)
        elif isinstance(op, Scale) and not (at and isinstance(program.ops[at - 1], Lookup)):
            x = [_scaled(core, op, i, wire, y, _table(following, later, i)) for i, wire in enumerate(x)]
            if at == 0:  # a clamp at 0 is then these registers' reset
                x = [core.register(wire) for wire in x]
        elif isinstance(op, Argmax):
            x = [_argmax(core, start, x[first : first + num]) for first, num, start in op.factors(len(x))]
    last = max(wire.stage for wire in x) + 1
    width = program.outputs.bits
    ends = [core.at(wire, last) for wire in x]
    outputs = [_bits(end, wire.bits, 0, width) for end, wire in zip(ends, x, strict=True)]
    facts = {
        "NAME": name,
        "INPUTS": f"{len(program.input_fraction_O) * bits}",
        "OUTPUTS": f"{len(x) * width}",
        "STAGES": str(last),
        "LINES": "\n".join(core.lines),
        "CLOCKED": "\n".join(f"            {line}" for line in core.clocked),
        "ACTION": ", ".join(reversed(outputs)),
    }
    text = TEXT
    for key, value in facts.items():
        text = text.replace(f"@{key}@", value)
    return text


def _table(following: Op | None, later: Op | None, i: int) -> Ints | None:
    """What the i-th number's levels are looked up in, if a table follows; a scaling after that is of its entries."""
    if not isinstance(following, Lookup):
        return None
    return later(following.table[:, np.newaxis])[:, i] if isinstance(later, Scale) else following.table


def _matmul(core: Core, op: Matmul, x: list[Wire], following: Op | None) -> list[Wire]:
    """Every row's sum; where a scaling follows, its sign, shift and offset move into that."""
    found, sums = adders.graph(op.weights_NK)
    wires = list(x)
    for add in found:
        wires.append(_added(core, add, wires[add.a], wires[add.b]))
    return [_row(core, wires, total, isinstance(following, Scale)) for total in sums]


def _added(core: Core, add: adders.Adder, a: Wire, b: Wire) -> Wire:
    """One addition. What is subtracted is inverted first, -b = ~b + 1, and where b has no bits stays 0: numbers are
    never negative, so that no sign is extended, and the rest of the difference is known beforehand, an offset."""
    ones = (1 << b.high.bit_length()) - 1 if add.sign < 0 else 0
    low_b, high_b = sorted((ones + add.sign * b.low, ones + add.sign * b.high))
    low, high = (a.low << add.a_shift) + (low_b << add.b_shift), (a.high << add.a_shift) + (high_b << add.b_shift)
    shift = max(add.a_shift, add.b_shift)  # the bits below it are one number's only
    width = max(high.bit_length(), shift + 1)

    def text(left: str, right: str) -> str:
        def part(first: int, num: int) -> list[str]:
            return [
                _unsigned(left, a, first - add.a_shift, num),
                _unsigned(right, b, first - add.b_shift, num, "~" if add.sign < 0 else ""),
            ]

        parts = [" + ".join(part(shift, width - shift))]
        if shift:
            parts.append(part(0, shift)[add.b_shift < add.a_shift])
        return f"{{1'b0, {', '.join(parts)}}}"

    offset = (a.offset << add.a_shift) + (add.sign * b.offset - ones << add.b_shift)
    return replace(core.wire(low, high, text, a, b), offset=offset)


def _unsigned(name: str, x: Wire, first: int, num: int, inverse: str = "") -> str:
    """So many bits of a number that is never negative, from the first on, maybe inverted; 0 where it has none."""
    there = min(max(x.bits - 1 - first, 0), num)
    zeros = [f"{num - there}'b0"] if there < num else []
    part = [f"{inverse}{name}[{first + there - 1}:{first}]"] if there else []
    return f"{{{', '.join(zeros + part)}}}"


def _bits(name: str, bits: int, first: int, width: int) -> str:
    """So many bits of a signed number of so many bits, from the first on; its sign fills up."""
    top = f"{name}[{bits - 1}]"
    there = min(max(bits - first, 0), width)
    if not there:
        return f"{{{width}{{{top}}}}}"
    part = f"{name}[{first + there - 1}:{first}]"
    return part if there == width else f"{{{{{width - there}{{{top}}}}}, {part}}}"


def _row(core: Core, wires: list[Wire], total: adders.Sum, lazy: bool) -> Wire:
    """sign * ((number + offset) << shift): as it is, for a scaling to apply, or computed."""
    if total.variable < 0:
        return core.wire(0, 0, _literal(0), cost=0)
    wire = wires[total.variable]
    if lazy or (total.sign > 0 and not total.shift and not wire.offset):
        return replace(wire, sign=total.sign, shift=total.shift)
    low, high = sorted(total.sign * ((end + wire.offset) << total.shift) for end in (wire.low, wire.high))
    value = f"({{0}} + {_literal(wire.offset)})" if wire.offset else "{0}"
    return core.wire(low, high, f"{'-' * (total.sign < 0)}{_shift(value, total.shift)}", wire)


def _scaled(core: Core, op: Scale, i: int, x: Wire, y: Range, table: Ints | None) -> Wire:
    """One number scaled, and looked up where a table follows."""
    levels = np.arange(y.low_N[i], y.high_N[i] + 1)
    values = levels if table is None else table[levels]
    low, high = int(values.min()), int(values.max())
    factor, plus = int(op.multiplier_N[i]), int(op.offset_N[i])
    if low == high:
        return core.wire(low, high, _literal(low), cost=0)
    if high - low <= COMPARED and factor > 0 and low >= 0 and (np.diff(values) >= 0).all():
        first = [int(levels[values >= k][0]) for k in range(low + 1, high + 1)]
        return _compared(core, x, [-((plus - (k << op.shift)) // factor) for k in first], low, high)
    factor *= x.sign << x.shift
    level = _multiplied(core, op, factor, plus + factor * x.offset, x)
    # clip and table are mapped apart: together Yosys makes three times the tables of them
    return level if table is None else _looked_up(core, table, core.register(level))


def _multiplied(core: Core, op: Scale, factor: int, plus: int, x: Wire) -> Wire:
    """A number times a factor and plus another, shifted and clipped; with registers before and after the multiplier
    and after the addition."""
    if factor != 1:
        low, high = sorted((x.low * factor, x.high * factor))
        x = core.register(core.wire(low, high, f"{{0}} * {_literal(factor)}", core.register(x), cost=core.depth))
    if plus:
        low, high = x.low + plus, x.high + plus
        x = core.register(core.wire(low, high, f"{{0}} + {_literal(plus)}", x, cost=core.depth))
    whole = core.wire(x.low >> op.shift, x.high >> op.shift, f"{{0}} >>> {op.shift}", x, cost=0)
    low, high = (min(max(end, op.low), op.high) for end in (whole.low, whole.high))
    text = "{0}"
    if whole.high > op.high:
        text = f"{{0}} > {_literal(op.high)} ? {_literal(op.high)} : {text}"
    if whole.low < op.low:
        text = f"{{0}} < {_literal(op.low)} ? {_literal(op.low)} : {text}"
    return core.wire(low, high, text, whole) if text != "{0}" else whole


def _compared(core: Core, x: Wire, at: list[int], low: int, high: int) -> Wire:
    """low + how many of these ascending thresholds x reaches: a binary search, highest bit first."""
    bits = high.bit_length()
    if x.sign > 0:
        at, always, never = [-(-threshold >> x.shift) - x.offset for threshold in at], x.low, x.high + 1
    else:  # -(v << shift) >= t where not v >= 1 + floor(-t / 2**shift)
        at, always, never = [(-threshold >> x.shift) + 1 - x.offset for threshold in at], x.high + 1, x.low
    at = [always] * low + at + [never] * ((1 << bits) - 1 - high)
    found: list[Wire] = []
    for step in (1 << bit for bit in reversed(range(bits))):
        thresholds = [min(max(threshold, x.low), x.high + 1) for threshold in at[step - 1 :: 2 * step]]
        found.append(_step(core, x, thresholds, found))
    digits = [f"{{{i}}}" for i in range(bits)]
    return core.wire(low, high, f"{{{{1'b0, {', '.join(digits)}}}}}", *found, cost=0)


def _step(core: Core, x: Wire, thresholds: list[int], found: list[Wire]) -> Wire:
    """Whether what x stands for reaches the threshold that the bits found so far choose."""
    inverse = "~" * (x.sign < 0)
    if len(thresholds) > core.chains:
        return core.wire(-1, 0, lambda name, *bits: inverse + _reaches(name, x, thresholds, bits), x, *found)
    reached = [_subtracted(core, x, threshold) for threshold in thresholds]
    num = len(reached)
    return core.wire(-1, 0, lambda *names: inverse + _chosen(names[:num], names[num:]), *reached, *found, cost=0)


def _subtracted(core: Core, x: Wire, threshold: int) -> Wire:
    """x >= threshold as the sign of their difference: one chain of carries."""
    if not x.low < threshold <= x.high:
        return core.wire(-1, 0, f"1'b{int(threshold == x.low)}", cost=0)
    zeros = (threshold & -threshold).bit_length() - 1 if threshold else x.bits - 1  # lowest bits, left as they are
    low, high = (end - threshold >> zeros for end in (x.low, x.high))
    width = signed_bits(low, high)
    minus = f"{width}'d{(-threshold >> zeros) & ((1 << width) - 1)}"
    apart = core.wire(low, high, lambda name: f"{_bits(name, x.bits, zeros, width)} + {minus}", x)
    return core.wire(-1, 0, f"~{{0}}[{width - 1}]", apart, cost=0)


def _reaches(name: str, x: Wire, thresholds: list[int], decided: tuple[str, ...]) -> str:
    """x >= the threshold that was decided for, bit by bit, lowest first."""
    if set(thresholds) in ({x.low}, {x.high + 1}):
        return f"1'b{int(thresholds[0] == x.low)}"
    width = max(x.bits, signed_bits(x.low, max(thresholds)))
    text = "1'b1"
    for bit in range(width):
        top = bit == width - 1  # the sign counts the other way round
        zero = _chosen(tuple(f"1'b{~threshold >> bit & 1 ^ top}" for threshold in thresholds), decided)
        text = _majority(f"{'~' * top}{name}[{min(bit, x.bits - 1)}]", zero, text)
    return text


def _majority(a: str, b: str, c: str) -> str:
    """The majority of three bits, the second of which may be a constant."""
    if b == c:
        return b
    if b in CONSTANTS:
        return f"({a} {CONSTANTS[b]} {c})"
    return f"({a} ^ {b} ? {c} : {a})"


def _chosen(texts: tuple[str, ...], bits: tuple[str, ...]) -> str:
    """The text at the index whose digits are these bits, the highest first."""
    if len(set(texts)) == 1:
        return texts[0]
    half = len(texts) // 2
    return f"({bits[0]} ? {_chosen(texts[half:], bits[1:])} : {_chosen(texts[:half], bits[1:])})"


def _looked_up(core: Core, table: Ints, x: Wire) -> Wire:
    """A table as choices on the index's bits."""

    def choice(values: list[int], bit: int) -> str:
        if len(set(values)) == 1:
            return _literal(values[0])
        half = 1 << bit
        return f"({{0}}[{bit}] ? {choice(values[half:], bit - 1)} : {choice(values[:half], bit - 1)})"

    bits = max(1, x.high.bit_length())
    values = [int(table[min(i, len(table) - 1)]) for i in range(1 << bits)]
    return core.wire(min(values), max(values), choice(values, bits - 1), x)


def _argmax(core: Core, start: int, x: list[Wire]) -> Wire:
    """A tournament, whose players are counted from start on; the first of equals wins."""
    last = start + len(x) - 1
    players = [(wire, core.wire(start + i, start + i, _literal(start + i), cost=0)) for i, wire in enumerate(x)]
    while len(players) > 1:
        following = []
        for (a, i), (b, j) in zip(players[::2], players[1::2], strict=False):
            later = core.wire(-1, 0, "{0} < {1}", a, b)
            best = core.wire(min(a.low, b.low), max(a.high, b.high), "{0}[0] ? {2} : {1}", later, a, b, cost=0)
            following.append((best, core.wire(start, last, "{0}[0] ? {2} : {1}", later, i, j, cost=0)))
        players = following + players[len(following) * 2 :]
    return players[0][1]


def _shift(name: str, shift: int) -> str:
    return f"({name} <<< {shift})" if shift else name


def _literal(value: int) -> str:
    return f"{'-' * (value < 0)}{abs(value).bit_length() + 1}'sd{abs(value)}"


TEXT = """\
// A policy as integers, exported by distqtrl: unrolled, one action per clock, @STAGES@ clocks later. See README.md.
/* verilator lint_off UNUSEDSIGNAL */
/* verilator lint_off WIDTHEXPAND */
/* verilator lint_off WIDTHTRUNC */
module @NAME@ (
    input wire clk,
    input wire rst,
    input wire in_valid,
    output wire in_ready,
    input wire [@INPUTS@-1:0] in_data,
    output wire out_valid,
    input wire out_ready,
    output wire [@OUTPUTS@-1:0] out_data
);
    reg [@STAGES@:1] valid;
    wire enable = out_ready | ~out_valid;
    assign in_ready = enable;
    assign out_valid = valid[@STAGES@];
    assign out_data = {@ACTION@};
    wire [@STAGES@:0] shifted = {valid, in_valid};
    always @(posedge clk)
        if (rst) valid <= 0;
        else if (enable) valid <= shifted[@STAGES@-1:0];

@LINES@

    always @(posedge clk)
        if (enable) begin
@CLOCKED@
        end
endmodule
"""
