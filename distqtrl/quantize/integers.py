"""A quantized network -> integer operations: real factors become dyadic ones, multiplier / 2**shift.

Export and training both take their integers from here, so that they cannot differ.
"""

from collections.abc import Callable

import numpy as np

from distqtrl.errors import UserError
from distqtrl.quantize.calibrate import QuantizedNetwork
from distqtrl.quantize.formats import Array, Grid
from distqtrl.quantize.program import Ints, Lookup, Matmul, Op, Program, Scale

INPUT_BITS = 16  # of an observation
MULTIPLIER_BITS = 15
SHIFT = 46  # the greatest: a product of 31 and 15 bits
OFFSET_BITS = 50  # so that float64 computes x * multiplier + offset exactly


def dyadic(factor_N: Array, offset_N: Array) -> tuple[Ints, Ints, int]:
    """Integers (multiplier, offset, shift) with x * factor + offset close to (x * multiplier + offset) / 2**shift.

    >>> dyadic(np.array([0.3]), np.array([0.5]))
    (array([19661]), array([32768]), 16)
    """
    most, far = (float(np.abs(x_N).max(initial=0.0)) for x_N in (factor_N, offset_N))
    if np.isfinite([most, far]).all():
        shift = min(MULTIPLIER_BITS - _exponent(most), SHIFT, OFFSET_BITS - _exponent(far))
        if shift >= 0:
            scaled = [np.rint(np.ldexp(x_N, shift)).astype(np.int64) for x_N in (factor_N, offset_N)]
            return scaled[0], scaled[1], shift
    raise UserError(
        f"a factor of {most:g} and an offset of {far:g} between two grids cannot be written as multiplier / 2**shift: "
        "the policy's weights or observations are too large, train it again on normalised ones or at a smaller rate"
    )


def _exponent(x: float) -> int:
    """The least e with x <= 2**e, exactly; 0 of 0."""
    mantissa, exponent = np.frexp(x)
    return int(exponent) - int(mantissa == 0.5)


def level_scale(step_N: Array, bias_N: Array, grid: Grid) -> Scale:
    """The level of step * x + bias, rounded to the nearest."""
    divisor_N = grid.divisor_N
    multiplier_N, offset_N, shift = dyadic(step_N / divisor_N, (bias_N - grid.low_N) / divisor_N + 0.5)
    return Scale(multiplier_N, offset_N, shift, 0, grid.top)


def input_scale(grid: Grid) -> tuple[tuple[int, ...], Scale]:
    """How many bits of every observation lie behind the point, so that the grid and a step more fit INPUT_BITS; and
    the level of an observation that is converted so."""
    ends = np.abs([grid.low_N - grid.step_N, grid.low_N + (grid.top + 1) * grid.step_N]).max(0)
    _, exponent_O = np.frexp(((1 << (INPUT_BITS - 1)) - 1) / np.maximum(ends, 1e-30))
    fraction_O = (exponent_O - 1).clip(-16, 30).astype(np.int64)
    scale = level_scale(np.ldexp(1.0, -fraction_O), np.zeros(len(fraction_O)), grid)
    return tuple(fraction_O.tolist()), scale


def tanh_table(reads: Grid, writes: Grid) -> Ints:
    """Levels of tanh; every channel has the same grids."""
    indices = np.arange(reads.top + 1)[:, np.newaxis]
    return writes.levels(np.tanh(reads.values(indices)))[:, 0]


def program(quantized: QuantizedNetwork) -> Program:
    """From the observation to the levels of the last layer; raises UserError where it cannot be made."""
    fraction_O, scale = input_scale(quantized.inputs)
    ops: list[Op] = [scale]
    for layer in quantized.layers:
        ops.append(Matmul(layer.weights_NK))
        ops.append(level_scale(layer.step_N, layer.bias_N, layer.reads or layer.writes))
        if layer.reads is not None:
            ops.append(Lookup(tanh_table(layer.reads, layer.writes)))
    return Program(fraction_O, INPUT_BITS, tuple(ops))


def acting(quantized: QuantizedNetwork) -> Callable[[np.ndarray], Array]:
    """Raw obs_BO -> (B, num_outputs), what the last layer's levels mean: for actions that are drawn, not greedy."""
    body, grid = program(quantized), quantized.layers[-1].writes
    return lambda obs_BO: grid.values(body.run(body.convert(obs_BO)))
