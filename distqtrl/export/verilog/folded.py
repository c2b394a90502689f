"""The program as a folded Verilog core: lanes * columns multiply-accumulates per clock, weights in ROM.

Every clock reads one word of ``columns`` levels and one of lanes * columns weights, for ``lanes`` neurons at a time.
Finished sums drain, ``columns`` per clock, through the units of multiplier, offset, shift and clip that also quantize
the observations, into the words of the next layer. A layer starts as soon as the first word it reads is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from distqtrl.errors import UserError
from distqtrl.quantize.program import Argmax, Ints, Lookup, Matmul, Program, Range, Scale, signed_bits

COLUMNS = 4  # so many products, or fewer, are added up in one clock; of more, parts of this many first
TRIED = (4, 8, 16, 32)  # lanes
PRODUCERS = 15  # layers, and a Gaussian head, that four bits number behind the input


@dataclass(frozen=True)
class Folding:
    """lanes is a multiple of columns; lanes * columns products are made per clock."""

    lanes: int
    columns: int


def usual(program: Program) -> Folding:
    """4 columns, and the fewest of TRIED lanes, up to 32, that come within a tenth of the fewest clocks."""
    tried = [Folding(lanes, COLUMNS) for lanes in TRIED]
    clocks = [schedule(program, folding).clocks for folding in tried]
    return next(folding for folding, used in zip(tried, clocks, strict=True) if used <= 1.1 * min(clocks))


def check(program: Program, folding: Folding) -> None:
    """Raise UserError for more layers than the core can count, more lanes than the widest layer has neurons, and more
    columns than one has inputs.

    What ``usual`` tries is never too many lanes or columns.
    """
    shapes = [op.weights_NK.shape for op in program.ops if isinstance(op, Matmul)]
    most = PRODUCERS - (not isinstance(program.ops[-1], Argmax))
    if len(shapes) > most:
        raise UserError(
            f"--target verilog: the folded core counts at most {most} layers, this network has {len(shapes)}: train a "
            "shorter policy.hidden, or leave verilog out of --target"
        )
    neurons, inputs = (max(sizes) for sizes in zip(*shapes, strict=True))
    lanes = max(TRIED[-1], neurons + -neurons % folding.columns)
    if folding.lanes > lanes or folding.columns > max(COLUMNS, inputs):
        enough = usual(program)
        raise UserError(
            f"--parallel {folding.lanes}x{folding.columns} is more than this network can use, whose widest layers have "
            f"{neurons} neurons and {inputs} inputs: use {enough.lanes}x{enough.columns}, or leave it out"
        )


@dataclass(frozen=True)
class Stage:
    """What goes through the scaling units together: the observations, a layer's sums, or a Gaussian head's levels."""

    scale: Scale
    reads: Range
    weights_NK: Ints | None
    table: Ints | None = None

    @property
    def top(self) -> int:
        """The highest level it writes."""
        return int(self.scale.high if self.table is None else self.table.max())

    @property
    def ends(self) -> tuple[int, int]:
        """What it writes where it clips, below and above."""
        low, high = self.scale.low, self.scale.high
        return (low, high) if self.table is None else (int(self.table[low]), int(self.table[high]))

    @property
    def bits(self) -> int:
        """Those of the levels between, two's complement where one is negative."""
        low, high = self.scale.low, self.scale.high
        return signed_bits(low, high) if low < 0 else high.bit_length()

    @property
    def ragged(self) -> bool:
        """Whether these bits hold more than these levels."""
        low, high = self.scale.low, self.scale.high
        return high - low + 1 < 1 << self.bits


def stages(program: Program) -> list[Stage]:
    """The program's operations, grouped; an Argmax is none."""
    out: list[Stage] = []
    weights_NK = None
    for op, x, _ in program.steps():
        if isinstance(op, Matmul):
            weights_NK = op.weights_NK
        elif isinstance(op, Scale):
            out.append(Stage(reduced(op), x, weights_NK))
            weights_NK = None
        elif isinstance(op, Lookup):
            scale = out[-1].scale
            high = min(scale.high, len(op.table) - 1)  # no sum goes further
            out[-1] = replace(out[-1], scale=replace(scale, high=high), table=op.table[: high + 1])
    return out


def reduced(scale: Scale) -> Scale:
    """The same function with the smallest multipliers: zeros that end all of them are shifted out beforehand.

    >>> scale = Scale(np.array([12, 20]), np.array([7, -7]), 3, -100, 100)
    >>> reduced(scale).multiplier_N, reduced(scale).offset_N, reduced(scale).shift
    (array([3, 5]), array([ 1, -2]), 1)
    """
    bits = int(np.bitwise_or.reduce(scale.multiplier_N))
    zeros = min(scale.shift, (bits & -bits).bit_length() - 1) if bits else scale.shift
    return replace(
        scale,
        multiplier_N=scale.multiplier_N >> zeros,
        offset_N=scale.offset_N >> zeros,
        shift=scale.shift - zeros,
    )


@dataclass(frozen=True)
class Schedule:
    """When what happens: a number per layer."""

    steps: list[int]  # of a tile: words of levels that are read
    periods: list[int]  # of a tile, in clocks
    tiles: list[int]
    drains: list[int]  # words that a tile drains
    words: list[int]  # of every producer, the observations first

    @property
    def clocks(self) -> int:
        """The clocks of all layers, without those that fill the pipeline."""
        return sum(p * t for p, t in zip(self.periods, self.tiles, strict=True))


def schedule(program: Program, folding: Folding) -> Schedule:
    """The schedule of a program in the folded core."""
    shapes = [op.weights_NK.shape for op in program.ops if isinstance(op, Matmul)]
    steps = [-(-k // folding.columns) for _, k in shapes]
    tiles = [-(-n // folding.lanes) for n, _ in shapes]
    drains = [-(-min(n, folding.lanes) // folding.columns) for n, _ in shapes]
    periods = [max(pair) for pair in zip(steps, drains, strict=True)]
    words = [-(-len(program.input_fraction_O) // folding.columns)]
    words += [t * d for t, d in zip(tiles, drains, strict=True)]
    return Schedule(steps=steps, periods=periods, tiles=tiles, drains=drains, words=words)


def verilog(program: Program, folding: Folding, name: str = "policy_folded") -> str:
    """The core's text."""
    every, plan = stages(program), schedule(program, folding)
    gaussian = not isinstance(program.ops[-1], Argmax)
    words = plan.words + plan.words[-1:] * gaussian
    weights_NK = [s.weights_NK for s in every if s.weights_NK is not None]
    shapes = zip(weights_NK, plan.tiles, plan.steps, strict=True)
    weights = np.concatenate([_weight_words(w, tiles, steps, folding) for w, tiles, steps in shapes])
    params = [_params(s.scale, w * folding.columns) for s, w in zip(every, words, strict=True)]
    multipliers, offsets = (np.concatenate(part).reshape(-1, folding.columns) for part in zip(*params, strict=True))
    numbers = _widths(program, every, folding.columns, weights, multipliers, offsets)
    index, entries, tables = _entries(every)
    parts = _parts(folding.columns)
    largest = max(*plan.periods, *plan.tiles, *words, len(weights_NK[-1]), folding.lanes)
    numbers |= {
        "LANES": folding.lanes,
        "COLUMNS": folding.columns,
        "PARTS": parts,
        "SUMMED": 4 + (parts < folding.columns),
        "ACTIONS": len(program.outputs.low_N),
        "LOGITS": len(weights_NK[-1]),
        "LAYERS": len(weights_NK),
        "SB": largest.bit_length() + 1,
        "WA": max(1, (len(weights) - 1).bit_length()),
        "PA": max(1, (len(multipliers) - 1).bit_length()),
        "DEPTH": 1 << max(max(plan.words[:-1]) - 1, 1).bit_length(),
        "WORDS": words[-1],
        "STEPS": len(weights),
        "PARAMS": len(multipliers),
        "TI": index,
        "TA": (len(entries) - 1).bit_length(),
        "LENGTH": len(entries),
        "GAUSSIAN": int(gaussian),
        "RAGGED": int(any(s.ragged for s in every)),
    }
    factors = [f for op in program.ops if isinstance(op, Argmax) for f in op.factors(numbers["LOGITS"])]
    counts = {
        "steps": plan.steps,
        "period": plan.periods,
        "tiles": plan.tiles,
        "drains": [0, *plan.drains],
        "words": words,
    }
    limits = {
        "low_of": [s.scale.low for s in every],
        "high_of": [s.scale.high for s in every],
        "bottom_of": [s.ends[0] for s in every],
        "top_of": [s.ends[1] for s in every],
    }
    texts = {
        "NAME": name,
        "STYLE": '(* rom_style = "block" *) ' if len(entries) > 64 else "",
        "COUNTS": "\n".join(_function(f"{key}_of", numbers["SB"], values) for key, values in counts.items()),
        "LIMITS": "\n".join(_function(key, numbers["VB"], values, signed=True) for key, values in limits.items()),
        "CUTS": _cuts(every),
        "TABLES": _function("table_of", numbers["TA"], tables),
        "HAS_TABLE": _function("has_table", 1, [int(s.table is not None) for s in every]),
        "ENTRIES": _rom("entries", entries, numbers["VB"]),
        "FACTORS": _factors(factors or [(0, 1, 0)], numbers),
        "WEIGHTS": _rom("weights", weights, numbers["WB"]),
        "MULTIPLIERS": _rom("multipliers", multipliers, numbers["MB"]),
        "OFFSETS": _rom("offsets", offsets, numbers["FB"]),
    }
    text = resources.files("distqtrl.export.verilog").joinpath("folded.v").read_text()
    for key, value in (texts | numbers).items():
        text = text.replace(f"@{key}@", str(value))
    return text


def _parts(columns: int) -> int:
    """How many sums the sum over columns is made of; the columns themselves, where they are few."""
    return columns // COLUMNS if columns > COLUMNS and columns % COLUMNS == 0 else columns


def _widths(
    program: Program, every: list[Stage], columns: int, weights: Ints, multipliers: Ints, offsets: Ints
) -> dict[str, int]:
    """Bits of everything, as small as the ranges allow."""
    layers = [stage for stage in every if stage.weights_NK is not None]
    scaled = [r for s in every for r in (s.scale.product(s.reads), s.scale.shifted(s.reads))]
    out = {
        "XB": program.inputs.bits,
        "WB": max(2, Range(weights, weights).bits),
        "AB": max(1, *(s.top.bit_length() for s in every[: len(layers)])),
        "LB": max(1, layers[-1].top.bit_length()),
        "MB": Range(multipliers, multipliers).bits,
        "FB": Range(offsets, offsets).bits,
        "YB": program.outputs.bits,
    }
    written = [
        end for s in every for end in (s.scale.low, s.scale.high, *(() if s.table is None else s.table.tolist()))
    ]
    out["VB"] = max(out["YB"], signed_bits(min(written), max(written)))
    out["PB"] = max(out["VB"], max(r.bits for r in (*scaled, Range(offsets, offsets))) + 1)
    out["NB"] = out["AB"] + out["WB"] + max(1, (columns - 1).bit_length())
    out["CB"] = max(*(s.reads.bits for s in layers), out["NB"] + 1)
    out["OB"] = max(out["XB"], out["CB"], out["LB"] + 1)
    return out


def _weight_words(weights_NK: Ints, tiles: int, steps: int, folding: Folding) -> Ints:
    """(tiles * steps, lanes * columns): what every clock reads, lane by lane."""
    whole = np.zeros((tiles * folding.lanes, steps * folding.columns), np.int64)
    whole[: weights_NK.shape[0], : weights_NK.shape[1]] = weights_NK
    cut = whole.reshape(tiles, folding.lanes, steps, folding.columns).transpose(0, 2, 1, 3)
    return cut.reshape(tiles * steps, -1)


def _params(scale: Scale, length: int) -> tuple[Ints, Ints]:
    """Multipliers and offsets with zeros behind them."""
    out = np.zeros((2, length), np.int64)
    out[:, : len(scale.multiplier_N)] = scale.multiplier_N, scale.offset_N
    return out[0], out[1]


def _rom(name: str, words: Ints, bits: int) -> str:
    """Initial contents; the first number of a word is in its lowest bits."""
    mask = (1 << bits) - 1
    width = words.shape[1] * bits
    lines = []
    for address, word in enumerate(words.tolist()):
        value = sum((number & mask) << (i * bits) for i, number in enumerate(word))
        lines.append(f"        {name}[{address}] = {width}'h{value:x};")
    return "\n".join(lines)


def _function(name: str, width: object, values: Sequence[int], signed: bool = False) -> str:
    """A constant of every layer or producer."""
    sign, mark = (" signed", "s") if signed else ("", "")
    literal = [f"{'-' * (v < 0)}{width}'{mark}d{abs(v)}" for v in values]
    cases = [f"            {i}: {name} = {v};" for i, v in enumerate(literal[:-1])]
    cases += [f"            default: {name} = {literal[-1]};"]
    head = f"    function{sign} [{width}-1:0] {name}(input [3:0] i);\n        case (i)\n"
    return head + "\n".join(cases) + "\n        endcase\n    endfunction"


def _cuts(every: list[Stage]) -> str:
    """The level w of every producer's sum v, and whether v is below or above what the bits of its levels hold."""
    cases = []
    for number, stage in enumerate(every):
        shift, signed = stage.scale.shift, stage.scale.low < 0
        rest = f"(v >>> {shift + stage.bits - signed})"  # bits that are all like the sign, or the level is clipped
        label = "default" if number == len(every) - 1 else number
        below = f"v[PB-1]{f' & ~&{rest}' if signed else ''}"
        cases.append(f"{label}: begin w = v >>> {shift}; below = {below}; above = ~v[PB-1] & |{rest}; end")
    return "\n".join(f"                {case}" for case in cases)


def _factors(factors: list[tuple[int, int, int]], numbers: dict[str, int]) -> str:
    """While so many logits are left: whether the next one is a factor's first, and the number of the one after it."""
    sb, yb = numbers["SB"], numbers["YB"]
    left = [numbers["LOGITS"] - first for first, _, _ in factors]
    begins = " | ".join(f"left == {sb}'d{number}" for number in left)
    after = [0, *(number + 1 for number in left[1:])]
    cases = "\n".join(
        f"            {sb}'d{number}: following = {'-' * (start < 0)}{yb}'sd{abs(start)};"
        for number, (_, _, start) in zip(after, factors, strict=True)
    )
    return (
        f"    function begins(input [{sb}-1:0] left);\n        begins = {begins};\n    endfunction\n\n"
        f"    function [{yb}-1:0] following(input [{sb}-1:0] left, input [{yb}-1:0] index);\n        case (left)\n"
        f"{cases}\n            default: following = index + 1'b1;\n        endcase\n    endfunction"
    )


def _entries(every: list[Stage]) -> tuple[int, Ints, list[int]]:
    """Bits of an index, the entries of all tables, each as long as the longest, and where every producer's begin.

    They go into a memory: of a choice among 256 constants Yosys makes ten times the lookup tables that hold them.
    """
    tables = [stage.table for stage in every if stage.table is not None] or [np.zeros(2, np.int64)]
    bits = max(1, *((len(table) - 1).bit_length() for table in tables))
    entries = np.zeros((len(tables), 1 << bits), np.int64)
    for row, table in zip(entries, tables, strict=True):
        row[: len(table)] = table
    before = np.cumsum([0, *(stage.table is not None for stage in every)])[: len(every)]
    return bits, entries.reshape(-1, 1), [int(n % len(tables)) << bits for n in before]
