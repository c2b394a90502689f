"""A quantized policy -> the integer program: real factors become dyadic ones, multiplier / 2**shift."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from distqtrl.config import UserError
from distqtrl.export.program import Argmax, Ints, Lookup, Matmul, Op, Program, Scale
from distqtrl.policy import network
from distqtrl.policy.distribution import Categorical, Gaussian, Head
from distqtrl.policy.normalizer import CLAMP
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize.calibrate import Network, QuantizedNetwork
from distqtrl.quantize.formats import Array, Grid

INPUT_BITS = 16  # of an observation
MULTIPLIER_BITS = 15
ACTION_BITS = 16


def floating(policy: Policy) -> Network:
    """What the quantizer reads of a policy."""
    n = policy.normalizer
    layers = [(w.double().numpy(), b.double().numpy()) for w, b in network.unpack(policy.architecture, policy.w_M)]
    scale_O, clamp = (n.scale_O, CLAMP) if n.count else (np.ones_like(n.mean_O), np.inf)
    bounded = isinstance(policy.head, Gaussian)
    return Network(tuple(layers), policy.architecture.activation, n.mean_O, scale_O, clamp, bounded)


def program(quantized: QuantizedNetwork, head: Head) -> Program:
    """The integer program of a quantized network and a head; raises UserError where one cannot be made."""
    fraction_O = _fractions(quantized.inputs)
    ops: list[Op] = [_levels(np.exp2(-fraction_O), np.zeros(len(fraction_O)), quantized.inputs)]
    for layer in quantized.layers:
        ops.append(Matmul(layer.weights_NK))
        ops.append(_levels(layer.step_N, layer.bias_N, layer.reads or layer.writes))
        if layer.reads is not None:
            ops.append(Lookup(_table(layer.reads, layer.writes)))
    fraction = 0
    if isinstance(head, Categorical):
        ops.append(Argmax(head.start))
    else:
        scale, fraction = _action(head, quantized.layers[-1].writes.top)
        ops.append(scale)
    return Program(tuple(fraction_O.tolist()), INPUT_BITS, tuple(ops), fraction)


def pruned(program: Program) -> Program:
    """The same function without hidden neurons that always say the same, or that nothing reads."""
    ops = list(program.ops)
    layers = [i for i, op in enumerate(ops) if isinstance(op, Matmul)]
    for first, second in reversed(list(pairwise(layers))):  # from the head, so that what it does not read goes first
        reads = list(replace(program, ops=tuple(ops)).steps())[second][1]
        following, scale = ops[second], ops[second + 1]
        assert isinstance(following, Matmul)
        assert isinstance(scale, Scale)
        constant_N = reads.low_N == reads.high_N
        keep_N = ~constant_N & following.weights_NK.any(0)
        if keep_N.all():
            continue
        keep_N[0] |= not keep_N.any()  # a layer of none is none
        always = following.weights_NK @ np.where(keep_N | ~constant_N, 0, reads.low_N)
        ops[second] = Matmul(following.weights_NK[:, keep_N])
        ops[second + 1] = replace(scale, offset_N=scale.offset_N + scale.multiplier_N * always)
        for i in range(first, second):
            ops[i] = _kept(ops[i], keep_N)
    return replace(program, ops=tuple(ops))


def _kept(op: Op, keep_N: np.ndarray) -> Op:
    """An operation on these of its outputs only."""
    if isinstance(op, Matmul):
        return Matmul(op.weights_NK[keep_N])
    if isinstance(op, Scale):
        return replace(op, multiplier_N=op.multiplier_N[keep_N], offset_N=op.offset_N[keep_N])
    return op


def dyadic(factor_N: Array, offset_N: Array) -> tuple[Ints, Ints, int]:
    """Integers (multiplier, offset, shift) with x * factor + offset close to (x * multiplier + offset) / 2**shift.

    >>> dyadic(np.array([0.3]), np.array([0.5]))
    (array([19661]), array([32768]), 16)
    """
    most = np.abs(factor_N).max(initial=0.0)
    shift = MULTIPLIER_BITS - int(np.ceil(np.log2(most))) if most > 0 else 0
    if not 0 <= shift <= 46:
        raise UserError(f"a factor of {most:g} between two grids cannot be written as multiplier / 2**shift")
    scaled = [np.rint(np.ldexp(x_N, shift)) for x_N in (factor_N, offset_N)]
    return scaled[0].astype(np.int64), scaled[1].astype(np.int64), shift


def _levels(step_N: Array, bias_N: Array, grid: Grid) -> Scale:
    """The level of step * x + bias, rounded to the nearest."""
    divisor_N = grid.divisor_N
    multiplier_N, offset_N, shift = dyadic(step_N / divisor_N, (bias_N - grid.low_N) / divisor_N + 0.5)
    return Scale(multiplier_N, offset_N, shift, 0, grid.top)


def _fractions(grid: Grid) -> Ints:
    """How many bits of every observation lie behind the point, so that the grid and a step more fit INPUT_BITS."""
    ends = np.abs([grid.low_N - grid.step_N, grid.low_N + (grid.top + 1) * grid.step_N]).max(0)
    most = (1 << (INPUT_BITS - 1)) - 1
    fractions: Ints = np.floor(np.log2(most / np.maximum(ends, 1e-30))).clip(-16, 30).astype(np.int64)
    return fractions


def _table(reads: Grid, writes: Grid) -> Ints:
    """Levels of tanh; every channel has the same grids."""
    indices = np.arange(reads.top + 1)[:, np.newaxis]
    return writes.levels(np.tanh(reads.values(indices)))[:, 0]


def _action(head: Gaussian, top: int) -> tuple[Scale, int]:
    """Level 0 means low and the top level high; rounded inwards, so that no action leaves the environment's bounds."""
    low_A, high_A = np.array(head.low), np.array(head.high)
    end = 1 << (ACTION_BITS - 1)
    fraction = int(np.floor(np.log2((end - 1) / max(np.abs(low_A).max(), np.abs(high_A).max(), 2.0**-15))))
    low_A, high_A = np.ceil(np.ldexp(low_A, fraction)), np.floor(np.ldexp(high_A, fraction))
    shift = MULTIPLIER_BITS
    multiplier_A = np.floor(np.ldexp(high_A - low_A, shift) / top)
    offset_A = np.ldexp(low_A, shift) + (1 << (shift - 1))
    offset_A = np.minimum(offset_A, np.ldexp(high_A + 1, shift) - 1 - top * multiplier_A)
    return Scale(multiplier_A.astype(np.int64), offset_A.astype(np.int64), shift, -end, end - 1), fraction
