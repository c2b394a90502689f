"""A quantized network and a head -> the integer program."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.policy.distribution import Bounded, Categorical, Factored, Gaussian, Head, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.quantize import integers
from distqtrl.quantize.aware import Quantizer, Trained
from distqtrl.quantize.calibrate import CLIPPED, LOGITS, SQUASHED, QuantizedNetwork
from distqtrl.quantize.formats import Grid
from distqtrl.quantize.integers import MULTIPLIER_BITS
from distqtrl.quantize.program import Argmax, Ints, Lookup, Matmul, Op, Program, Scale

ACTION_BITS = 16
TANH_END = (1 << (ACTION_BITS - 2)) - 1  # what a head's table calls 1; its entries are this much and more, so positive
OUTPUTS: dict[type[Head], str] = {
    Categorical: LOGITS,
    Factored: LOGITS,
    Gaussian: CLIPPED,
    SquashedGaussian: SQUASHED,
}


def quantizer(source: Quantize | Trained, architecture: Architecture, head: Head) -> Quantizer:
    """The quantizer of a network and a head: with fresh scales (Quantize), or as it was trained.

    Raises UserError for actions whose ranges differ by so much that integers do not hold both.
    """
    if isinstance(head, Bounded):
        _ends(head)
    facts = architecture.widths, architecture.activation, OUTPUTS[type(head)]
    return Quantizer(source, *facts) if isinstance(source, Quantize) else Quantizer.of(source, *facts)


def check(head: Head) -> None:
    """Raise UserError for a head that no integer program is made of."""
    if head.masked:
        raise UserError(
            "this policy needs its environment's action_mask, which an exported program does not read: use it as a "
            "policy file, or train it on an environment that observes no action_mask"
        )


def program(quantized: QuantizedNetwork, head: Head) -> Program:
    """The integer program of a quantized network and a head; raises UserError where one cannot be made."""
    check(head)
    body, grid = integers.program(quantized), quantized.layers[-1].writes
    if isinstance(head, Categorical):
        return replace(body, ops=(*body.ops, Argmax(head.start)))
    if isinstance(head, Factored):
        return replace(body, ops=(*body.ops, Argmax(head.starts, head.sizes)))
    if isinstance(head, SquashedGaussian):
        scale, fraction = _action(head, 2 * TANH_END)
        return replace(body, ops=(*body.ops, Lookup(_tanh_table(grid)), scale), output_fraction=fraction)
    scale, fraction = _action(head, grid.top)
    return replace(body, ops=(*body.ops, scale), output_fraction=fraction)


def pruned(program: Program) -> Program:
    """The same function without hidden neurons whose output is constant, or that nothing reads."""
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


def _tanh_table(grid: Grid) -> Ints:
    """tanh of every level, 0 for -1 and 2 * TANH_END for 1; all outputs have one grid."""
    levels = np.arange(grid.top + 1)[:, np.newaxis]
    tanh_L = np.tanh(grid.values(levels)[:, 0])
    return np.rint(tanh_L * TANH_END).astype(np.int64) + TANH_END


def _action(head: Bounded, top: int) -> tuple[Scale, int]:
    """Level 0 means low and the top level high; rounded inwards, so that no action leaves the environment's bounds."""
    low_A, high_A, fraction = _ends(head)
    end, shift = 1 << (ACTION_BITS - 1), MULTIPLIER_BITS
    multiplier_A = np.floor(np.ldexp(high_A - low_A, shift) / top)
    offset_A = np.ldexp(low_A, shift) + (1 << (shift - 1))
    offset_A = np.minimum(offset_A, np.ldexp(high_A + 1, shift) - 1 - top * multiplier_A)
    return Scale(multiplier_A.astype(np.int64), offset_A.astype(np.int64), shift, -end, end - 1), fraction


def _ends(head: Bounded) -> tuple[np.ndarray, np.ndarray, int]:
    """Bounds (A,) in whole steps of all actions, and how many binary digits of them are behind the point.

    Raises UserError for an action whose range is too narrow beside that of another one.
    """
    low_A, high_A = np.array(head.low), np.array(head.high)
    end = 1 << (ACTION_BITS - 1)
    most = max(np.abs(low_A).max(), np.abs(high_A).max(), 2.0**-15)
    fraction = int(np.frexp((end - 1) / most)[1]) - 1
    inner_A, outer_A = np.ceil(np.ldexp(low_A, fraction)), np.floor(np.ldexp(high_A, fraction))
    narrow_A = outer_A - inner_A < (low_A < high_A)  # not even one step
    if narrow_A.any():
        i = int(narrow_A.argmax())
        raise UserError(
            f"action {i} from {low_A[i]:g} to {high_A[i]:g} is less than a step of integers that hold {most:g}, too: "
            "let the environment take actions in units of their ranges, or use the policy without integers"
        )
    return inner_A, outer_A, fraction
