"""Formats of few bits: every code, every tie, worked examples, and what holds for whole tensors."""

import math
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.errors import UserError
from distqtrl.quantize.blocks import (
    BLOCK_FORMATS,
    E2M1,
    E4M3,
    FORMATS,
    decode,
    e8m0_codes,
    e8m0_values,
    encode,
    rounded,
)

MX = ["mxfp4", "mxfp4-ceil", "mxfp4-rceil", "mxfp4-even"]
NV = ["nvfp4", "nvfp4-torchao"]
BYTES = np.arange(256, dtype=np.uint8)
formats = st.sampled_from(list(BLOCK_FORMATS))
seeds = st.integers(0, 2**32 - 1)


def same(a, b):
    """Equal to the bit, but for what a NaN holds."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    both = np.isnan(a) & np.isnan(b)
    return a.shape == b.shape and bool((both | (a.view(np.uint32) == b.view(np.uint32))).all())


def sweep(values, least):
    """Numbers on and around every value and every midpoint, random ones of all magnitudes, zeros, both signs."""
    values = np.unique(np.abs(values[np.isfinite(values)]).astype(np.float32))
    near = np.concatenate([values, (values[1:] + values[:-1]) / 2, [least / 2, least / 4], values * np.float32(1.5)])
    near = near.astype(np.float32)
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            near,
            np.nextafter(near, np.float32(np.inf)),
            np.nextafter(near, np.float32(-np.inf)),
            np.exp(rng.uniform(-100, 88, 50_000)),
            rng.uniform(0, 2 * values.max(), 50_000),
            np.linspace(0, values.max() * 1.1, 100_001),
            [0.0, 1e-45, 1e-40, np.finfo(np.float32).tiny, np.finfo(np.float32).max],
        ]
    ).astype(np.float32)
    return np.concatenate([x, -x])


def test_e2m1_codes_mean_what_the_table_says():
    codes = np.arange(16, dtype=np.uint8)
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert same(E2M1.values(codes), [*magnitudes, *(-np.float32(magnitudes))])
    assert same(E2M1.values(codes), codes.view(ml_dtypes.float4_e2m1fn))
    assert E2M1.codes(E2M1.values(codes)).tolist() == codes.tolist()


def test_all_bytes_of_e4m3():
    assert same(E4M3.values(BYTES), BYTES.view(ml_dtypes.float8_e4m3fn))
    assert same(E4M3.values(BYTES), torch.from_numpy(BYTES).view(torch.float8_e4m3fn).float())
    finite = np.isfinite(E4M3.values(BYTES))
    assert (~finite).nonzero()[0].tolist() == [0x7F, 0xFF]
    assert (E4M3.codes(E4M3.values(BYTES)[finite]) == BYTES[finite]).all()


def test_all_bytes_of_e8m0():
    assert same(e8m0_values(BYTES), BYTES.view(ml_dtypes.float8_e8m0fnu))
    assert same(e8m0_values(BYTES), torch.from_numpy(BYTES).view(torch.float8_e8m0fnu).float())
    powers = e8m0_values(BYTES[:255])
    assert powers[0] == 2.0**-127  # subnormal in float32
    for rounding in ("floor", "ceil", "even"):
        assert (e8m0_codes(powers, rounding) == BYTES[:255]).all()
    assert (torch.from_numpy(powers).to(torch.float8_e8m0fnu).view(torch.uint8).numpy() == BYTES[:255]).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("x", "result"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (5.0000005, 6), (6, 6), (7, 6), (1e9, 6)],
)
def test_ties_of_e2m1(x, result, sign):
    assert same(E2M1.values(E2M1.codes(np.float32([sign * x]))), [np.copysign(np.float32(result), sign)])


def test_e2m1_rounds_as_ml_dtypes_does():
    x = np.concatenate([sweep(E2M1.values(np.arange(16, dtype=np.uint8)), 0.5), np.float32([np.inf, -np.inf])])
    assert (E2M1.codes(x) == x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)).all()  # saturates, infinities too
    assert E2M1.codes(np.float32([0.0, -0.0, np.inf, -np.inf])).tolist() == [0, 8, 7, 15]


def test_e4m3_rounds_as_casts_do():
    """Casts differ beyond 448: ml_dtypes and older torch say NaN from 465 on, we and newer torch saturate."""
    x = sweep(E4M3.values(BYTES), 2**-9)
    clamped = x.clip(-448, 448)
    assert (E4M3.codes(x) == clamped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()
    assert (E4M3.codes(x) == torch.from_numpy(clamped).to(torch.float8_e4m3fn).view(torch.uint8).numpy()).all()
    assert E4M3.codes(np.float32([0.0, -0.0, 449, -1e30, np.inf])).tolist() == [0, 0x80, 0x7E, 0xFE, 0x7E]
    assert np.isnan(np.float32(500).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_e8m0_rounds_to_powers_of_two():
    rng = np.random.default_rng(1)
    powers = np.float32(2) ** np.arange(-126, 127, dtype=np.float32)
    x = np.concatenate([powers * np.float32(s) for s in (1, 1.25, 1.5, 1.7499999, 1.75, 1.7500001)])
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.exp(rng.uniform(-87, 88, 1000)).astype(np.float32)])
    exact = [math.frexp(float(v)) for v in x]  # v = m * 2**e, 0.5 <= m < 1
    floor = np.array([e - 1 + 127 for _, e in exact])
    ups = {"floor": 0, "ceil": np.array([m > 0.5 for m, _ in exact]), "even": np.array([m >= 0.875 for m, _ in exact])}
    for rounding, up in ups.items():
        assert (e8m0_codes(x, rounding) == (floor + up).clip(0, 254)).all()
        assert (e8m0_codes(x, rounding, lowered=2) == (floor + up - 2).clip(0, 254)).all()
    tiny = np.float32([0, 1e-45, 2**-128, 1.5 * 2**-127])
    assert [e8m0_codes(tiny, r).tolist() for r in ("floor", "ceil")] == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert e8m0_codes(np.float32([3.4e38]), "ceil").tolist() == [254]  # 2**128 is no E8M0 number


def test_two_codes_a_byte_the_first_in_the_low_nibble():
    weight_NK = np.zeros((2, 32), np.float32)
    weight_NK[0, :4] = [6, -3, 0.5, -0.0]
    weight_NK[1, 30:] = [4, -6]
    encoded = encode(weight_NK, "mxfp4")
    assert encoded.codes.shape == (2, 16)
    assert encoded.codes[0].tolist() == [0xD7, 0x81] + [0] * 14
    assert encoded.codes[1].tolist() == [0] * 15 + [0xF6]
    assert encoded.codes.dtype == encoded.scales_NY.dtype == np.uint8


# Amax is 6 * 448, so that the tensor's scale is 1. Block 1 reaches 6.3: its scale 1.05 is rounded to 1 before anything
# is divided by it. So 3.55 is 4; divided by 1.05 it would be nearer to 3.
NV_WEIGHTS = np.float32(
    [[2688, -1344, 224, 112, 560, 700] + [0] * 10 + [6.3, -3.55, 2.5, 0.25, 0.26, -0.74, 0.76, 5, 5.5, 1.25] + [0] * 6]
)
NV_MEANS = [[2688, -1344, 224, 0, 448, 672] + [0] * 10 + [6, -4, 2, 0, 0.5, -0.5, 1, 4, 6, 1] + [0] * 6]


def test_nvfp4_by_hand():
    encoded = encode(NV_WEIGHTS, "nvfp4")
    assert encoded.tensor_scale == 1
    assert encoded.scales_NY.tolist() == [[0x7E, 0x38]]
    assert decode(encoded).tolist() == NV_MEANS
    assert encoded.codes[0, 8:13].tolist() == [0xE7, 0x04, 0x91, 0x62, 0x27]
    assert decode(encode(NV_WEIGHTS, "nvfp4-torchao")).tolist() == NV_MEANS
    unrounded = E2M1.values(E2M1.codes(NV_WEIGHTS[0, 17:18] / np.float32(1.05)))
    assert unrounded.tolist() == [-3]


def test_directions_of_the_tensor_scale():
    weight_NK = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    greatest = np.abs(weight_NK).max()
    for share in np.linspace(0.5, 1, 20, dtype=np.float32):  # compressed-tensors' own expression, reciprocal and all
        expected = 448.0 * 6.0 / torch.tensor(share * greatest)
        assert encode(share * weight_NK, "nvfp4").tensor_scale == expected.item()
    assert encode(weight_NK, "nvfp4-torchao").tensor_scale == greatest / np.float32(2688)
    for name in NV:  # the block with the greatest weight has the greatest E4M3 scale
        scales = E4M3.values(encode(weight_NK, name).scales_NY)
        assert scales.max() == 448
        assert scales.flat[np.abs(weight_NK).argmax() // 16] == 448


def test_rules_differ_where_a_block_is_small():
    """A block scale of 2**-8 is subnormal: compressed-tensors keeps it, torchao has 2**-6 at least."""
    weight_NK = np.zeros((1, 48), np.float32)
    weight_NK[0, 0] = 2688
    weight_NK[0, 16:18] = [6 * 2**-8, 3 * 2**-8]
    weight_NK[0, 32] = 6 * 2**-11  # half of what E4M3 can hold: a tie, to 0, which is replaced
    ours, torchao = encode(weight_NK, "nvfp4"), encode(weight_NK, "nvfp4-torchao")
    assert ours.scales_NY.tolist() == [[0x7E, 0x02, 0x20]]
    assert torchao.scales_NY.tolist() == [[0x7E, 0x08, 0x08]]
    assert decode(ours)[0, [16, 17, 32]].tolist() == [6 * 2**-8, 3 * 2**-8, 0]
    assert decode(torchao)[0, [16, 17, 32]].tolist() == [6 * 2**-8, 4 * 2**-8, 0]


MX_CASES = [  # greatest of the block; byte and meaning of it in the modes floor, ceil, rceil, even
    (3, (126, 3), (127, 3), (126, 3), (126, 3)),
    (4, (127, 4), (127, 4), (127, 4), (127, 4)),
    (5, (127, 4), (128, 4), (127, 4), (127, 4)),
    (6, (127, 6), (128, 6), (127, 6), (127, 6)),
    (6.5, (127, 6), (128, 6), (128, 6), (127, 6)),
    (7, (127, 6), (128, 8), (128, 8), (128, 8)),
    (7.9, (127, 6), (128, 8), (128, 8), (128, 8)),
    (8, (128, 8), (128, 8), (128, 8), (128, 8)),
]


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("case", MX_CASES)
def test_mxfp4_by_hand(case, mode):
    weight_NK = np.zeros((1, 64), np.float32)
    weight_NK[0, 37] = -case[0]
    byte, meaning = case[1 + mode]
    encoded = encode(weight_NK, MX[mode])
    assert encoded.scales_NY.tolist() == [[0, byte]]
    assert encoded.tensor_scale is None
    assert decode(encoded)[0, 37] == -meaning
    assert np.count_nonzero(decode(encoded)) == 1


def test_the_product_with_a_sixth_is_the_quotient_by_six():
    """For rceil torchao multiplies by the float32 of 1/6: exponents are those of the quotient around every border."""
    x = np.float32(6) * np.float32(2) ** np.arange(-120, 120, dtype=np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    assert (e8m0_codes(x * np.float32(1 / 6), "ceil") == [127 + math.ceil(math.log2(v / 6)) for v in x.tolist()]).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("magnitude", [0, 1e-45, 1e-42, 1e-38, 1e-36, 1e-35, 1e-34, 1e-33, 1e-20, 1, 1e20, 1e38])
def test_no_magnitude_makes_nan(name, magnitude):
    weight_NK = (np.random.default_rng(0).uniform(-1, 1, (4, 64)) * magnitude).astype(np.float32)
    weight_NK[:, :32] = 0  # blocks of zeros
    weight_NK[3] = 0
    meant_NK = decode(encode(weight_NK, name))
    greatest = np.abs(weight_NK).max()
    assert np.isfinite(meant_NK).all()
    assert not meant_NK[weight_NK == 0].any()
    # NVFP4 has no tensor scale for less than 1e-35, and zeroes it; what is subnormal in MXFP4's scale is coarse
    if magnitude >= (1e-33 if name in NV else 1e-36):
        assert np.abs(meant_NK - weight_NK).max() <= greatest / 3


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    assert not rounded(name, np.zeros((3, 64), np.float32)).any()


@settings(deadline=None, max_examples=60)
@given(formats, seeds, st.integers(1, 40), st.integers(-8, 8))
def test_a_second_time_changes_nothing(name, seed, num_inputs, exponent):
    rng = np.random.default_rng(seed)
    weight_NK = (rng.normal(size=(3, num_inputs)) * np.exp(rng.uniform(-2, 2, (3, 1))) * 10.0**exponent).astype(
        np.float32
    )
    first, once = encode(weight_NK, name, pad=True), rounded(name, weight_NK, pad=True)
    twice = rounded(name, once, pad=True)
    if name in MX:
        assert same(once, twice)
    elif (E4M3.values(first.scales_NY) >= 2**-6).all():  # else a scale is subnormal, with less than three bits
        assert np.abs(once - twice).max() <= 4 * np.spacing(np.abs(once).max())
    assert same(np.abs(once), np.abs(rounded(name, -weight_NK, pad=True)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(MX), seeds, st.integers(-60, 60))
def test_mxfp4_errs_within_its_steps_and_knows_no_size(name, seed, exponent):
    rng = np.random.default_rng(seed)
    weight_NK = rng.normal(size=(3, 64)).astype(np.float32)
    encoded = encode(weight_NK, name)
    units = np.abs(decode(encoded) - weight_NK).reshape(3, 2, 32) / e8m0_values(encoded.scales_NY)[..., None]
    assert units.max() <= {"mxfp4": 2, "mxfp4-ceil": 0.5, "mxfp4-rceil": 1, "mxfp4-even": 1}[name]
    greatest = np.abs(weight_NK).reshape(3, 2, 32).max(-1) / e8m0_values(encoded.scales_NY)
    low, high = {"mxfp4": (4, 8), "mxfp4-ceil": (2, 4), "mxfp4-rceil": (3, 6), "mxfp4-even": (3.5, 7)}[name]
    assert low <= greatest.min()
    assert greatest.max() <= high
    assert same(rounded(name, np.ldexp(weight_NK, exponent)), np.ldexp(rounded(name, weight_NK), exponent))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NV), seeds)
def test_nvfp4_errs_within_its_steps(name, seed):
    weight_NK = np.random.default_rng(seed).normal(size=(4, 64)).astype(np.float32)
    encoded = encode(weight_NK, name)
    direct = 1 / encoded.tensor_scale if name == "nvfp4" else encoded.tensor_scale
    scale_NY1 = (E4M3.values(encoded.scales_NY) * direct)[..., None]
    blocks = weight_NK.reshape(4, 4, 16)
    # a scale errs by 1/16, so that the greatest weight is up to 6.4 of its units, and saturates
    assert (np.abs(decode(encoded).reshape(4, 4, 16) - blocks) / scale_NY1).max() <= 1.001
    assert (np.abs(blocks) / scale_NY1).max() <= 6.401


@settings(deadline=None, max_examples=40)
@given(formats, seeds, st.integers(1, 70))
def test_padding_leaves_the_weights_alone(name, seed, num_inputs):
    weight_NK = np.random.default_rng(seed).normal(size=(3, num_inputs)).astype(np.float32)
    block = BLOCK_FORMATS[name].block
    padded_NK = np.pad(weight_NK, ((0, 0), (0, -num_inputs % block)))
    encoded = encode(weight_NK, name, pad=True)
    assert encoded.shape == (3, num_inputs)
    assert encoded.codes.shape == (3, padded_NK.shape[1] // 2)
    assert encoded.scales_NY.shape == (3, padded_NK.shape[1] // block)
    assert same(decode(encoded), decode(encode(padded_NK, name))[:, :num_inputs])


def test_layers_that_do_not_divide_are_refused():
    with pytest.raises(
        UserError, match=r"a layer with 17 inputs does not divide into blocks of 16; allow padding to 32"
    ):
        encode(np.ones((2, 17)), "nvfp4")
    with pytest.raises(UserError, match=r"17 inputs .* blocks of 32"):
        rounded("mxfp4", np.ones((2, 17)))
    assert rounded("mxfp4", np.ones((2, 17)), pad=True).tolist() == [[1] * 17] * 2


def test_blocks_do_not_cross_rows():
    weight_NK = np.ones((2, 17), np.float32)
    weight_NK[0] = 1000
    assert rounded("mxfp4", weight_NK, pad=True)[1].tolist() == [1] * 17


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(name, bad):
    weight_NK = np.ones((2, 32), np.float32)
    weight_NK[1, 3] = bad
    with pytest.raises(UserError, match=f"{name}.*not finite"):
        rounded(name, weight_NK)


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(UserError, match=r"float16.*cannot hold 70000"):
        rounded("float16", np.full((1, 32), 7e4))
    for name in ("bfloat16", "mxfp4-ceil"):
        with pytest.raises(UserError, match="cannot hold"):
            rounded(name, np.full((1, 32), np.finfo(np.float32).max))
    with pytest.raises(UserError, match="not finite"):
        rounded("mxfp4", np.full((1, 32), 1e300))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("fp4", "did you mean 'nvfp4'?"),
        ("int1", "did you mean 'int8'?"),
        ("int9", "did you mean 'int8'?"),
        ("", "known: bfloat16, float16, int2"),
        ("NVFP4", "known: bfloat16, float16, int2"),
    ],
)
def test_unknown_names(name, remedy):
    with pytest.raises(UserError, match=re.escape(f"unknown weight format '{name}': {remedy}")):
        rounded(name, np.ones((1, 32)))
    with pytest.raises(UserError, match=r"no blocks: choose one of nvfp4"):
        encode(np.ones((1, 32)), name)


@pytest.mark.parametrize("shape", [(32,), (0, 32), (2, 0), (1, 2, 32)])
def test_shapes(shape):
    with pytest.raises(ValueError, match="not \\(N, K\\)"):
        rounded("mxfp4", np.ones(shape))


@settings(deadline=None)
@given(st.integers(2, 8), seeds, st.integers(-40, 30))
def test_integers_are_symmetric_narrow_and_nearest(bits, seed, exponent):
    rng = np.random.default_rng(seed)
    weight_NK = (rng.normal(size=(4, 17)) * 10.0 ** rng.integers(-3, 3, (4, 1)) * 10.0**exponent).astype(np.float32)
    weight_NK[2] = 0
    name, top = f"int{bits}", (1 << (bits - 1)) - 1
    meant_NK = rounded(name, weight_NK)
    step_N1 = np.abs(weight_NK).max(1, keepdims=True).astype(np.float64) / top
    assert (np.abs(meant_NK - weight_NK) <= step_N1 * 0.50001 + 1e-43).all()
    assert same(np.abs(meant_NK), np.abs(rounded(name, -weight_NK)))
    assert all(len(np.unique(row)) <= 2 * top + 1 for row in meant_NK)
    assert np.abs(meant_NK).max() <= np.abs(weight_NK).max() * 1.000001 + 1e-43


def test_integers_by_hand():
    assert rounded("int2", np.array([[4.0, 1.9, 2.1, -2.1]])).tolist() == [[4, 0, 4, -4]]
    assert rounded("int4", np.array([[7, 0.5, 1.5, -2.5, 3.4], [14, 1, 3, -5, 6.8]])).tolist() == [
        [7, 0, 2, -2, 3],
        [14, 0, 4, -4, 6],
    ]
    assert rounded("int8", np.array([[-127, 126.4, 0.6]])).tolist() == [[-127, 126, 1]]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_casts_are_torchs(name):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=10_000), np.exp(rng.uniform(-100, 11, 10_000))]).astype(np.float32)
    ties = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << 16 | 0x8000).view(np.float32)  # between bfloat16 numbers
    x = np.concatenate([x, ties, -ties, np.float32([0.0, -0.0, 65504, 65519])])
    assert same(rounded(name, x[None])[0], torch.from_numpy(x).to(getattr(torch, name)).float())


def test_weights_are_not_written_to():
    weight_NK = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    before = weight_NK.copy()
    for name in FORMATS:
        meant_NK = rounded(name, weight_NK)
        assert meant_NK.dtype == np.float32
        assert meant_NK.shape == weight_NK.shape
        assert same(rounded(name, np.asfortranarray(weight_NK.astype(np.float64))), meant_NK)
    assert same(before, weight_NK)
