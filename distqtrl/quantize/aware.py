"""Training with quantization: forward is the integer program bit for bit, backward is straight-through.

Levels of inputs and outputs lie symmetrically around 0, those of ReLU from 0; their scales are learned by gradient
after a warm-up (LSQ, arXiv 1902.08153; arXiv 2511.07046), those of weights are the greatest absolute weight. The
integers are those of float32 weights, as a policy file keeps them, whatever the precision of the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distqtrl.config.stages import Quantize
from distqtrl.errors import Diverged, UserError
from distqtrl.quantize import calibrate, integers
from distqtrl.quantize.calibrate import CLIPPED, QuantizedLayer, QuantizedNetwork
from distqtrl.quantize.formats import CHANNEL, Array, Grid, resolved
from distqtrl.quantize.program import Scale, converted

INPUT, HIDDEN = 3.0, 1.0  # scales before anything was seen; an output starts like an input
MOMENTUM = 0.1  # of the warm-up's moving average
LEAST = 1e-8  # a scale below has collapsed
SILENT = 1e-4  # what a scale that saw only zeros warms up to; a channel gets at least a 16th of its tensor's
Layers = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trained:
    """What a policy file keeps of a quantizer: settings and learned scales."""

    settings: Quantize
    scales_S: Array


@dataclass(frozen=True)
class Levels:
    """Level q of a vector, 0 to top, means (q - zero) * step; step = scale / unit where a scale is learned.

    ``name`` and ``place`` say which scale; place is empty where the range is fixed to -1 .. 1.
    """

    name: str
    bits: int
    zero: float
    unit: float
    place: slice

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def learned(self) -> bool:
        """Whether there are scales of this vector to be learned."""
        return self.place.stop > self.place.start


@dataclass(frozen=True)
class Layer:
    """A layer's integers as float32 (N, K) and what they mean; ``reads`` and ``writes`` as in QuantizedLayer."""

    ints_NK: Tensor
    step_N: Array
    bias_N: Array
    writes: Grid
    reads: Grid | None
    scale: Scale


@dataclass
class Tape:
    """What a forward pass leaves for the backward pass; entry 0 is the input, entry i what layer i writes."""

    levels: list[Levels]
    tanh: bool
    learning: bool
    beyond_S: npt.NDArray[np.bool_]  # scales that are held back by the clamp of the observations
    steps: list[Tensor] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # integers (N, K) and step_N of layer i at i - 1


class Quantizer(nn.Module):
    """The learned scales of a network of these widths (inputs, hidden, outputs), and the network as integers.

    activation: relu or tanh; kind: what the last outputs are (calibrate.LOGITS, CLIPPED, SQUASHED).
    """

    def __init__(self, settings: Quantize, widths: tuple[int, ...], activation: str, kind: str) -> None:
        super().__init__()
        self.settings, self.widths, self.activation, self.kind = settings, widths, activation, kind
        self.core_bits = core_bits(settings, widths)
        self.levels: list[Levels] = []
        initial: list[float] = []
        for i, width in enumerate(widths):
            first, last = i == 0, i == len(widths) - 1
            bits = settings.input_bits if first else settings.output_bits if last else self.core_bits[i - 1]
            fixed = kind == CLIPPED if last else activation == "tanh" and not first
            size = 0 if fixed else width if settings.per == CHANNEL and not last else 1
            place = slice(len(initial), len(initial) + size)
            initial += [INPUT if first or last else HIDDEN] * size
            top = (1 << bits) - 1
            if fixed:
                zero, unit = top / 2, top / 2
            elif first or last:
                zero = unit = 2.0 ** (bits - 1) if bits > 1 else 0.5
            else:
                zero, unit = 0.0, float(top)
            name = "input" if first else "output" if last else f"hidden layer {i}"
            self.levels.append(Levels(name, bits, zero, unit, place))
        self.scales_S = nn.Parameter(torch.tensor(initial))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.int64))
        self._statistics_S = np.zeros(len(initial))

    @property
    def warming(self) -> bool:
        """Whether scales still follow what is seen, and have no gradient."""
        return int(self.num_observed) < self.settings.warmup  # type: ignore[arg-type]

    def outputs(
        self, layers: Layers, obs_BO: Tensor, mean_O: Array, scale_O: Array, clamp: float, collect: bool = False
    ) -> Tensor:
        """What the last levels mean, (B, A), for raw observations: logits, means in [-1, 1], or means before tanh.

        collect: while warming up, keep the ``statistics`` of this batch.
        """
        steps = self._steps(clamp)
        tape = Tape(self.levels, self.activation == "tanh", not self.warming, self._beyond(clamp))
        with torch.no_grad():
            out_BA = self._forward(tape, steps, layers, obs_BO, mean_O, scale_O)
            if collect and self.warming:
                self._statistics_S = self._observed(tape, clamp)
        if not torch.is_grad_enabled():
            return out_BA
        scales_S = self.scales_S if tape.learning else self.scales_S.detach()
        straight: Tensor = _StraightThrough.apply(tape, out_BA, scales_S, *(t for layer in layers for t in layer))
        return straight

    def statistics(self) -> Array:
        """What each scale would be by the batch that was collected last (S,): a percentile of absolute values."""
        return self._statistics_S.copy()

    def update_scales(self, statistics_S: Array) -> None:
        """One step of the warm-up, with statistics averaged over ranks; nothing once it is over."""
        if not self.warming:
            return
        seen_S = torch.from_numpy(np.asarray(statistics_S, np.float64)).to(self.scales_S.dtype)
        share = MOMENTUM if int(self.num_observed) else 1.0  # type: ignore[arg-type]
        self.scales_S.data.lerp_(seen_S, share)
        self.num_observed += 1  # type: ignore[operator, assignment]

    def network(self, layers: Layers, mean_O: Array, scale_O: Array, clamp: float) -> QuantizedNetwork:
        """The network as integers and grids, for ``integers.program``."""
        steps, made = self._steps(clamp), []
        for i, (weight, bias) in enumerate(layers, 1):
            layer = self._layer(i, weight, bias, steps)
            ints_NK = layer.ints_NK.numpy().astype(np.int64)
            made.append(QuantizedLayer(ints_NK, layer.step_N, layer.bias_N, layer.writes, layer.reads))
        return QuantizedNetwork(self._input_grid(steps[0], mean_O, scale_O), tuple(made))

    def trained(self) -> Trained:
        """Settings and scales, for a policy file."""
        return Trained(self.settings, self.scales_S.detach().double().numpy().copy())

    @classmethod
    def of(cls, trained: Trained, widths: tuple[int, ...], activation: str, kind: str) -> "Quantizer":
        """The quantizer that ``trained`` describes; raises ValueError for a wrong number of scales."""
        made = cls(trained.settings, widths, activation, kind).double()
        if trained.scales_S.shape != made.scales_S.shape:
            raise ValueError(f"{trained.scales_S.shape} scales, the network needs {tuple(made.scales_S.shape)}")
        made.scales_S.data.copy_(torch.from_numpy(trained.scales_S))
        return made

    def _steps(self, clamp: float) -> list[Array]:
        """Every vector's step, (1,) or (K,), in float64; raises UserError where a scale has collapsed."""
        scales_S = self.scales_S.detach().double().numpy()
        good_S = np.isfinite(scales_S) & (scales_S >= LEAST)
        out = []
        for levels in self.levels:
            if not good_S[levels.place].all():
                worst = scales_S[levels.place][~good_S[levels.place]][0]
                raise Diverged(
                    f"quantize: the scale of {levels.name} is {worst:g}: lower the learning rate of the scales, use "
                    "more bits, or lengthen quantize.warmup"
                )
            scale = np.minimum(scales_S[levels.place], clamp if levels.name == "input" else np.inf)
            out.append((scale if levels.learned else np.ones(1)) / levels.unit)
        return out

    def _beyond(self, clamp: float) -> npt.NDArray[np.bool_]:
        """Which scales are held back by the clamp of the observations (S,)."""
        beyond_S: npt.NDArray[np.bool_] = np.zeros(len(self.scales_S), np.bool_)
        place = self.levels[0].place
        beyond_S[place] = self.scales_S.detach().double().numpy()[place] > clamp
        return beyond_S

    def _input_grid(self, step: Array, mean_O: Array, scale_O: Array) -> Grid:
        """The grid of the raw observations."""
        levels = self.levels[0]
        step_O = resolved(levels.top * step / scale_O, mean_O) / levels.top
        return Grid(levels.bits, mean_O - levels.zero * step_O, step_O)

    def _layer(self, i: int, weight_NK: Tensor, bias_N: Tensor, steps: list[Array]) -> Layer:
        """Layer i, counted from 1."""
        num, before, after = self.widths[i], self.levels[i - 1], self.levels[i]
        ints_NK, unit_N = weight_levels(weight_NK.detach().float(), steps[i - 1], self.core_bits[i - 1], self.settings)
        step_N = np.broadcast_to(unit_N, num).copy()
        offset_N = bias_N.detach().float().double().numpy()
        if before.zero:
            offset_N = offset_N - step_N * before.zero * ints_NK.sum(1, dtype=torch.float64).numpy()
        step = np.broadcast_to(steps[i], num)
        reads, writes = None, Grid(after.bits, -after.zero * step, step)
        if self.activation == "tanh" and i < len(self.levels) - 1:
            writes, reads = calibrate.tanh_grids(num, after.bits)
        try:
            scale = integers.level_scale(step_N, offset_N, reads or writes)
        except UserError as error:
            raise Diverged(
                f"quantize: from {before.name} (scale {(steps[i - 1] * before.unit).max():g}) to {after.name} (scale "
                f"{(steps[i] * after.unit).min():g}): {error}"
            ) from None
        return Layer(ints_NK, step_N, offset_N, writes, reads, scale)

    def _forward(
        self, tape: Tape, steps: list[Array], layers: Layers, obs_BO: Tensor, mean_O: Array, scale_O: Array
    ) -> Tensor:
        dtype, obs = layers[0][0].dtype, obs_BO.detach().double().numpy()
        fraction_O, scale = integers.input_scale(self._input_grid(steps[0], mean_O, scale_O))
        tape.steps = [torch.from_numpy(step).to(dtype) for step in steps]
        q_BK = torch.from_numpy(scale(converted(obs, fraction_O, integers.INPUT_BITS))).to(dtype)
        tape.q.append(q_BK)
        tape.z.append(torch.from_numpy((obs - mean_O) * scale_O).to(dtype))
        for i, (weight, bias) in enumerate(layers, 1):
            layer = self._layer(i, weight, bias, steps)
            sums_BN = _product(q_BK, layer.ints_NK, self.levels[i - 1].top, self.core_bits[i - 1])
            q_BK = _scaled(layer.scale, sums_BN)
            if layer.reads is not None:
                q_BK = torch.from_numpy(integers.tanh_table(layer.reads, layer.writes))[q_BK.long()]
            q_BK = q_BK.to(dtype)
            step_N, bias_N = (torch.from_numpy(x_N).to(dtype) for x_N in (layer.step_N, layer.bias_N))
            tape.q.append(q_BK)
            tape.z.append(torch.addcmul(bias_N, sums_BN.to(dtype), step_N))
            tape.layers.append((layer.ints_NK.to(dtype), step_N))
        grid = layer.writes
        return torch.from_numpy(grid.low_N + q_BK.double().numpy() * grid.step_N).to(dtype)

    def _observed(self, tape: Tape, clamp: float) -> Array:
        """What each scale of this batch would be (S,)."""
        out_S = np.zeros(len(self.scales_S))
        if not len(tape.z[0]):
            return out_S  # a minibatch of other ranks' samples
        for i, (levels, z_BK) in enumerate(zip(self.levels, tape.z, strict=True)):
            if levels.learned:
                signed = i in (0, len(self.levels) - 1)
                x_BK = z_BK.abs().clamp(max=clamp if i == 0 else np.inf) if signed else z_BK.clamp(min=0)
                least = max(SILENT, _percentile(x_BK.reshape(-1, 1), self.settings.percentile)[0] / 16)
                columns = x_BK if levels.place.stop - levels.place.start > 1 else x_BK.reshape(-1, 1)
                out_S[levels.place] = np.maximum(_percentile(columns, self.settings.percentile), least)
        return out_S


class _StraightThrough(torch.autograd.Function):
    """Hands out what was computed, and the gradients of what it approximates."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, out_BA: Tensor, scales_S: Tensor, *weights: Tensor) -> Tensor:
        ctx.tape, ctx.scales_dtype = tape, scales_S.dtype
        return out_BA

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        gradient_S, weights = _gradients(ctx.tape, g[0])
        return (None, None, gradient_S.to(ctx.scales_dtype) if ctx.tape.learning else None, *weights)


def _gradients(tape: Tape, g: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the scales, and of weight and bias of every layer, given that of what the last levels mean, g.

    A quantizer's value is step * clamp(z / step + zero, 0, top) plus what rounding adds, which counts as constant in z
    and as proportional to step.
    """
    out_S, weights = g.new_zeros(len(tape.beyond_S)), list[Tensor]()
    for i in reversed(range(len(tape.levels))):
        levels, step, q_BN, z_BN = tape.levels[i], tape.steps[i], tape.q[i], tape.z[i]
        if tape.tanh and 0 < i < len(tape.levels) - 1:
            g = g * (1 - torch.tanh(z_BN) ** 2)
        else:
            r_BN, rest_BN = z_BN / step, q_BN - levels.zero if levels.zero else q_BN
            inside_BN = r_BN.clamp(-levels.zero, levels.top - levels.zero) == r_BN
            inner = torch.where(inside_BN, g, 0.0)
            if levels.learned and tape.learning:
                sums = (g * rest_BN - inner * r_BN).sum(0) if len(step) > 1 else _dot(g, rest_BN) - _dot(inner, r_BN)
                out_S[levels.place] = sums / levels.unit
            g = inner
        if i == 0:
            break
        before, step, (ints_NK, step_N) = tape.levels[i - 1], tape.steps[i - 1], tape.layers[i - 1]
        x_BK = tape.q[i - 1] - before.zero if before.zero else tape.q[i - 1]
        weights[:0] = [(g.T @ x_BK) * step, g.sum(0)]
        if i > 1 or tape.learning:
            g = (g * step_N) @ ints_NK / step if len(step) > 1 else (g * (step_N / step)) @ ints_NK
        else:
            break
    beyond_S = torch.from_numpy(tape.beyond_S)
    return torch.where(beyond_S, out_S.clamp(min=0), out_S), weights  # a scale beyond the clamp may only come back


def _dot(a_BN: Tensor, b_BN: Tensor) -> Tensor:
    return torch.dot(a_BN.reshape(-1), b_BN.reshape(-1))


def core_bits(settings: Quantize, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Bits of every layer's weights; raises UserError unless there is one number, or one per layer."""
    num = len(widths) - 1
    given = settings.core_bits
    if len(given) == 1:
        return given * num
    if len(given) != num:
        shapes = ", ".join(f"{k} to {n}" for k, n in pairwise(widths))
        text = " ".join(map(str, given))
        raise UserError(f"quantize.core_bits = {text}: the layers are {shapes}: give one number, or {num}")
    return given


def weight_levels(weight_NK: Tensor, step: Array, bits: int, settings: Quantize) -> tuple[Tensor, Array]:
    """Integers (N, K) as float32, and what one of them times one level of these steps means, (1,) or (N,).

    Rounded half to even; at 1 bit the sign.
    """
    folded_NK, rest = (weight_NK, step) if len(step) == 1 else (weight_NK * torch.from_numpy(step).float(), np.ones(1))
    most = folded_NK.abs().amax(1, keepdim=True) if settings.per == CHANNEL else folded_NK.abs().max().reshape(1, 1)
    top = (1 << (bits - 1)) - 1
    scale = max(top, 1) if settings.narrow or bits == 1 else top + 1
    unit = most / scale
    if bits == 1:
        ints_NK = torch.where(weight_NK < 0, -1.0, 1.0)
    else:
        ints_NK = (folded_NK / torch.where(unit > 0, unit, 1.0)).round_().clamp_(-scale, top)
    return ints_NK, unit[:, 0].double().numpy() * rest


def _product(q_BK: Tensor, ints_NK: Tensor, top: int, bits: int) -> Tensor:
    """Exact sums, in float32 where they stay below 2**24."""
    exact = top * (1 << (bits - 1)) * ints_NK.shape[1] < 1 << 24
    dtype = q_BK.dtype if exact else torch.float64
    return q_BK.to(dtype) @ ints_NK.to(dtype).T


def _scaled(scale: Scale, sums_BN: Tensor) -> Tensor:
    """``scale`` of exact sums, exactly: powers of two do not round, and everything stays below 2**53."""
    factor_N, plus_N = (torch.from_numpy(np.ldexp(x_N, -scale.shift)) for x_N in (scale.multiplier_N, scale.offset_N))
    return torch.addcmul(plus_N, sums_BN.double(), factor_N).floor_().clamp_(scale.low, scale.high)


def _percentile(x_BK: Tensor, percentile: float) -> Array:
    """The percentile of every column: its nearest element."""
    num = len(x_BK)
    rank = min(max(int(percentile / 100 * num + 0.5), 1), num)
    out: Array = x_BK.topk(num - rank + 1, dim=0).values[-1].double().numpy()
    return out
