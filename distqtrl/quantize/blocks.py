"""What weights mean in formats of few bits: NVFP4, MXFP4, narrow integers per output channel, bfloat16, float16.

NVFP4 and MXFP4 give every element four bits (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign) and every block of inputs a
scale of its own; NVFP4 has a scale of the whole tensor besides. The formats of QeRL (arXiv 2510.11696):

==============  =====  =============  ====================================================================
format          block  scale          rule
==============  =====  =============  ====================================================================
nvfp4           16     E4M3 and FP32  compressed-tensors, which QeRL uses: a block scale of 0 becomes 0.125
nvfp4-torchao   16     E4M3 and FP32  torchao: multiplies by reciprocals, block scales of 2**-6 or more
mxfp4           32     E8M0           2**(floor(log2 greatest) - 2): OCP MX 1.0, torchao's default
mxfp4-ceil      32     E8M0           2**(ceil(log2 greatest) - 2)
mxfp4-rceil     32     E8M0           2**ceil(log2(greatest / 6))
mxfp4-even      32     E8M0           as mxfp4, but significands of 1.75 or more go to the next power
==============  =====  =============  ====================================================================

All arithmetic is float32, rounded half to even and saturating, and a scale is rounded before elements are divided by
it. Letters: N outputs, K inputs, Y blocks of a row, Z elements of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from distqtrl.errors import UserError, lookup

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
BIAS = 127  # of E8M0 and of float32
LEAST_NORMAL = np.float32(2**-6)  # of E4M3
INSTEAD_OF_0 = np.float32(0.125)  # compressed-tensors' block scale where it would divide by 0
# frexp's mantissas, in [0.5, 1), from which on a number is rounded up to a power of two
ROUNDED_UP = {"floor": np.float32(1), "even": np.float32(0.875), "ceil": np.nextafter(np.float32(0.5), np.float32(1))}


@dataclass(frozen=True)
class Minifloat:
    """A sign, an exponent and a mantissa in one byte; least is the exponent of the smallest normal number."""

    bits: int
    mantissa: int
    least: int
    greatest: float

    def codes(self, x: Floats) -> Bytes:
        """The nearest numbers' codes, ties to the even code, saturating (infinities too); x has no NaN.

        >>> E2M1.codes(np.float32([0.25, 0.75, -2.5, 5, 5.1, np.inf])).tolist()
        [0, 2, 12, 6, 7, 7]
        """
        magnitude = np.minimum(np.abs(x), np.float32(self.greatest))
        # frexp says 0 = 0 * 2**0, which is no number's exponent
        exponent = np.where(magnitude > 0, np.maximum(np.frexp(magnitude)[1] - 1, self.least), self.least)
        steps = np.rint(np.ldexp(magnitude, self.mantissa - exponent)).astype(np.int64)
        # A normal number has 2**mantissa + fraction steps: the one too many is the exponent field's.
        code = ((exponent - self.least) << self.mantissa) + steps + (np.signbit(x).astype(np.int64) << (self.bits - 1))
        return code.astype(np.uint8)

    def values(self, codes: Bytes) -> Floats:
        """What codes mean; NaN beyond the greatest number.

        >>> E4M3.values(np.uint8([0x01, 0x38, 0xFE, 0x7F])).tolist()
        [0.001953125, 1.0, -448.0, nan]
        """
        sign, magnitude = codes >> (self.bits - 1), (codes & ((1 << (self.bits - 1)) - 1)).astype(np.int64)
        field, fraction = magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1)
        steps = (fraction + np.where(field > 0, 1 << self.mantissa, 0)).astype(np.float32)
        value = np.ldexp(steps, np.maximum(field - 1, 0) + self.least - self.mantissa)
        value = np.where(value > self.greatest, np.float32(np.nan), value)
        return np.where(sign > 0, -value, value)


E2M1 = Minifloat(bits=4, mantissa=1, least=0, greatest=6)
E4M3 = Minifloat(bits=8, mantissa=3, least=-6, greatest=448)  # "fn": no infinity, NaN is all ones


def e8m0_codes(x: Floats, rounding: str, lowered: int = 0) -> Bytes:
    """Bytes of powers of two 2**(byte - 127) near x / 2**lowered, x >= 0; 0 has no power and gets the least one.

    ``rounding`` is floor, ceil, or even: up from significands of 1.75.

    >>> [e8m0_codes(np.float32([1, 3, 3.5]), rounding).tolist() for rounding in ("floor", "even", "ceil")]
    [[127, 128, 128], [127, 128, 129], [127, 129, 129]]
    """
    mantissa, exponent = np.frexp(x)
    code = exponent - 1 + (mantissa >= ROUNDED_UP[rounding]) - lowered + BIAS
    return np.where(x > 0, code.clip(0, 254), 0).astype(np.uint8)


def e8m0_values(codes: Bytes) -> Floats:
    """2**(byte - 127), and NaN for 255."""
    value = np.ldexp(np.float32(1), np.minimum(codes, 254).astype(np.int64) - BIAS)
    return np.where(codes == 255, np.float32(np.nan), value)


@dataclass(frozen=True)
class Encoded:
    """A weight matrix in a block format.

    codes is (N, Y * block / 2): two elements a byte, the first in the low nibble, rows filled up with zeros to whole
    blocks; scales_NY are bytes of E4M3 or E8M0. tensor_scale is what elements and block scales are divided by
    (nvfp4) or multiplied by (nvfp4-torchao); MXFP4 has none.
    """

    format: str
    shape: tuple[int, int]
    codes: Bytes
    scales_NY: Bytes
    tensor_scale: np.float32 | None


Scaled = tuple[Bytes, np.float32 | None, Floats]  # scales_NY, the tensor's scale, blocks_NYZ in units of their scales


@dataclass(frozen=True)
class BlockFormat:
    """The size of a block, how blocks are scaled, and what the scales mean."""

    block: int
    scaled: Callable[[Floats, Floats], Scaled]  # of blocks_NYZ and their greatest magnitudes_NY
    scales: Callable[[Encoded], Floats]


def _compressed_tensors(blocks_NYZ: Floats, greatest_NY: Floats) -> Scaled:
    # a number over a tensor is a product with the reciprocal in torch, which rounds twice
    tensor_scale = np.float32(E4M3.greatest * E2M1.greatest) * (1 / greatest_NY.max())
    if not np.isfinite(tensor_scale):  # as compressed-tensors does for a tensor of zeros, or next to zero
        tensor_scale = np.float32(1)
    scale_NY = E4M3.values(E4M3.codes(tensor_scale * (greatest_NY / np.float32(E2M1.greatest))))
    scales_NY = E4M3.codes(np.where(scale_NY == 0, INSTEAD_OF_0, scale_NY))
    return scales_NY, tensor_scale, blocks_NYZ / (E4M3.values(scales_NY) / tensor_scale)[..., None]


def _torchao(blocks_NYZ: Floats, greatest_NY: Floats) -> Scaled:
    tensor_scale = greatest_NY.max() / np.float32(E4M3.greatest * E2M1.greatest)
    if not np.isfinite(1 / tensor_scale / LEAST_NORMAL):  # torchao makes NaN of zeros, and next to zero
        tensor_scale = np.float32(1)
    scale_NY = (greatest_NY / np.float32(E2M1.greatest)) / tensor_scale
    scales_NY = E4M3.codes(np.maximum(scale_NY, LEAST_NORMAL))
    return scales_NY, tensor_scale, blocks_NYZ * ((1 / tensor_scale) / E4M3.values(scales_NY))[..., None]


def _microscaling(blocks_NYZ: Floats, greatest_NY: Floats, mode: str) -> Scaled:
    if mode == "rceil":  # a product with the float32 of 1/6, as in torchao
        scales_NY = e8m0_codes(greatest_NY * np.float32(1 / E2M1.greatest), "ceil")
    else:
        scales_NY = e8m0_codes(greatest_NY, mode, lowered=2)  # 4 = 2**2 is E2M1's greatest power of two
    return scales_NY, None, np.ldexp(blocks_NYZ, BIAS - scales_NY.astype(np.int64)[..., None])


def _divided(encoded: Encoded) -> Floats:
    assert encoded.tensor_scale is not None
    return E4M3.values(encoded.scales_NY) / encoded.tensor_scale


def _multiplied(encoded: Encoded) -> Floats:
    assert encoded.tensor_scale is not None
    return encoded.tensor_scale * E4M3.values(encoded.scales_NY)


def _powers(encoded: Encoded) -> Floats:
    return e8m0_values(encoded.scales_NY)


BLOCK_FORMATS = {
    "nvfp4": BlockFormat(16, _compressed_tensors, _divided),
    "nvfp4-torchao": BlockFormat(16, _torchao, _multiplied),
    "mxfp4": BlockFormat(32, partial(_microscaling, mode="floor"), _powers),
    "mxfp4-ceil": BlockFormat(32, partial(_microscaling, mode="ceil"), _powers),
    "mxfp4-rceil": BlockFormat(32, partial(_microscaling, mode="rceil"), _powers),
    "mxfp4-even": BlockFormat(32, partial(_microscaling, mode="even"), _powers),
}


def encode(weight_NK: npt.NDArray[Any], format: str, pad: bool = False) -> Encoded:
    """Weights in a block format; with ``pad``, zeros fill up the last block of every row.

    Raises UserError for a format without blocks, weights that are not finite, and a K that is not a multiple of the
    block unless ``pad``.

    >>> encoded = encode(np.float32([[6, -3] + [0] * 29 + [0.5]]), "mxfp4")
    >>> encoded.codes[0, 0] == 0xD7, encoded.codes[0, -1] == 0x10, encoded.scales_NY.tolist()
    (np.True_, np.True_, [[127]])
    """
    if format not in BLOCK_FORMATS:
        raise UserError(f"weight format {format!r} has no blocks: choose one of {', '.join(BLOCK_FORMATS)}")
    weight_NK, rule = _checked(weight_NK, format), BLOCK_FORMATS[format]
    num_outputs, num_inputs = weight_NK.shape
    missing = -num_inputs % rule.block
    if missing and not pad:
        raise UserError(
            f"weight format {format!r}: a layer with {num_inputs} inputs does not divide into blocks of {rule.block}; "
            f"allow padding to {num_inputs + missing} (rollout.pad or adapter.pad true), or "
            f"choose a format without blocks, such as int4"
        )
    blocks_NYZ = np.pad(weight_NK, ((0, 0), (0, missing))).reshape(num_outputs, -1, rule.block)
    with np.errstate(over="ignore", divide="ignore"):  # infinities are looked for, or saturate
        scales_NY, tensor_scale, scaled_NYZ = rule.scaled(blocks_NYZ, np.abs(blocks_NYZ).max(-1))
    codes = E2M1.codes(scaled_NYZ).reshape(num_outputs, -1)
    packed = codes[:, ::2] | (codes[:, 1::2] << np.uint8(4))
    return Encoded(format, (num_outputs, num_inputs), packed, scales_NY, tensor_scale)


def decode(encoded: Encoded) -> Floats:
    """What the weights mean, (N, K), without padding; infinite where scale times element exceeds float32."""
    codes = np.stack([encoded.codes & 15, encoded.codes >> 4], axis=-1)
    blocks_NYZ = E2M1.values(codes).reshape(*encoded.scales_NY.shape, BLOCK_FORMATS[encoded.format].block)
    with np.errstate(over="ignore"):
        scale_NY = BLOCK_FORMATS[encoded.format].scales(encoded)
        weight = (blocks_NYZ * scale_NY[..., None]).reshape(len(blocks_NYZ), -1)
    return weight[:, : encoded.shape[1]]


def rounded(name: str, weight_NK: npt.NDArray[Any], pad: bool = False) -> Floats:
    """What float32 weights mean after they were put in a format: one of FORMATS.

    Integers are symmetric and narrow, |q| < 2**(bits - 1), with the greatest magnitude of every output as the range's
    end. ``pad`` is encode's. Raises UserError for an unknown name, for encode's reasons, and where a weight exceeds
    what the format holds.

    >>> rounded("int3", np.float32([[3, 1.4, -0.6], [0, 0, 0]])).tolist()
    [[3.0, 1.0, -1.0], [0.0, 0.0, 0.0]]
    """
    meaning = lookup("weight format", name, FORMATS)
    weight_NK = _checked(weight_NK, name)
    with np.errstate(over="ignore"):
        meant_NK = meaning(weight_NK, pad)
    if not np.isfinite(meant_NK).all():
        raise UserError(
            f"weight format {name!r} cannot hold {np.abs(weight_NK).max()}, the greatest of the weights: "
            "scale them down or choose a format with a wider range, such as bfloat16"
        )
    return meant_NK


def _blocks(weight_NK: Floats, pad: bool, name: str) -> Floats:
    return decode(encode(weight_NK, name, pad))


def _integers(weight_NK: Floats, pad: bool, bits: int) -> Floats:
    top = np.float32((1 << (bits - 1)) - 1)
    step_N1 = np.abs(weight_NK).max(1, keepdims=True) / top
    levels_NK = np.rint(weight_NK / np.where(step_N1 > 0, step_N1, np.float32(np.inf))).clip(-top, top)
    return np.asarray(levels_NK * step_N1)


def _float16(weight_NK: Floats, pad: bool) -> Floats:
    return weight_NK.astype(np.float16).astype(np.float32)


def _bfloat16(weight_NK: Floats, pad: bool) -> Floats:
    """float32 whose lower half is rounded away, half to even; beyond the greatest, the carry makes an infinity."""
    bits_NK = weight_NK.view(np.uint32)
    return ((bits_NK + 0x7FFF + (bits_NK >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _checked(weight_NK: npt.NDArray[Any], name: str) -> Floats:
    """The weights in float32; raises ValueError unless (N, K) with at least one weight, UserError unless finite."""
    if weight_NK.ndim != 2 or not weight_NK.size:
        raise ValueError(f"weights have shape {weight_NK.shape}, not (N, K)")
    with np.errstate(over="ignore"):
        weight_NK = np.ascontiguousarray(weight_NK, np.float32)
    if not np.isfinite(weight_NK).all():
        bad = weight_NK[~np.isfinite(weight_NK)]
        raise UserError(
            f"weight format {name!r}: a weight is {bad[0]}, {bad.size} are not finite; lower the learning rate"
        )
    return weight_NK


# What finite weights_NK mean in a format, and whether rows may be filled up to whole blocks. To add a format, write
# its function, and enter it here.
FORMATS: dict[str, Callable[[Floats, bool], Floats]] = {
    **{name: partial(_blocks, name=name) for name in BLOCK_FORMATS},
    **{f"int{bits}": partial(_integers, bits=bits) for bits in range(2, 9)},
    "bfloat16": _bfloat16,
    "float16": _float16,
}
