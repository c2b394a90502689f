"""The product in C is the one with decoded weights, for any number of rows, and its absence is no error."""

import subprocess

import numpy as np
import pytest
import torch
from needs import need

from distqtrl.language import kernel
from distqtrl.language.packed import FrozenLinear, Packed
from distqtrl.quantize import blocks


@pytest.fixture(scope="module", params=["native", "-mavx2 -mfma", ""])
def compiled(request, tmp_path_factory):
    """Each of the three ways in which the source multiplies."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    if request.param != "native":
        patch.setattr(kernel, "FLAGS", ("-std=c99", "-O3", *request.param.split(), "-shared", "-fPIC"))
    kernel.library.cache_clear()
    if kernel.library() is None:
        need(f"no C compiler takes the flags {request.param!r}")
    yield
    patch.undo()
    kernel.library.cache_clear()


def layer(outputs, inputs, scale=0.02):
    weight = np.random.default_rng(0).standard_normal((outputs, inputs)) * scale
    weight[0, :16] *= 1e-4  # subnormal scales
    weight[1] = 0
    return FrozenLinear(blocks.encode(weight, "nvfp4"), torch.arange(outputs) / 10, torch.float32)


@pytest.mark.parametrize("inputs", [32, 1056])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 9, 17])
def test_products_are_those_of_decoded_weights(rows, inputs, compiled):
    made = layer(5, inputs)
    x = torch.randn(rows, 1, inputs, generator=torch.Generator().manual_seed(rows))
    with torch.no_grad():
        found = made(x)
        assert made.packed.product(x) is not None
    wanted = torch.nn.functional.linear(x.double(), made.weight().double(), made.bias.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_every_code_and_scale_is_multiplied(compiled):
    """One input at a time gives the weights themselves back, but for the last bit of a product."""
    codes = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    scales = np.arange(64, dtype=np.uint8).reshape(2, 32) * 2  # below 127, E4M3's NaN
    encoded = blocks.Encoded("nvfp4", (2, 512), codes, scales, np.float32(0.7))
    made = FrozenLinear(encoded, None, torch.float32)
    with torch.no_grad():
        found = torch.cat([made(part) for part in torch.eye(512).split(kernel.ROWS)])
    np.testing.assert_allclose(found.T, blocks.decode(encoded), rtol=1e-6, atol=0)


@pytest.mark.parametrize("format", blocks.BLOCK_FORMATS)
def test_weights_are_decoded_bit_for_bit(format, compiled):
    codes = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    scales = np.arange(512 // blocks.BLOCK_FORMATS[format].block * 2, dtype=np.uint8).reshape(2, -1) * 3
    encoded = blocks.Encoded(format, (2, 512), codes, scales, np.float32(0.7) if "nvfp4" in format else None)
    wanted = blocks.decode(encoded)
    np.testing.assert_array_equal(Packed(encoded)().numpy().view(np.uint32), wanted.view(np.uint32))


def test_gradients_and_many_rows_take_decoded_weights(compiled):
    made = layer(5, 64)
    x = torch.randn(kernel.ROWS + 1, 64)
    assert made.packed.product(x) is None
    assert made.packed.product(x[:1].double()) is None
    one = x[:1].clone().requires_grad_()
    made(one).sum().backward()
    assert torch.equal(one.grad, torch.ones(1, 5) @ made.weight())


def test_without_a_compiler_torch_multiplies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for broken in ("no-such-compiler", "false", "'"):
        monkeypatch.setenv("CC", broken)
        kernel.library.cache_clear()
        made = layer(5, 64)
        x = torch.ones(1, 64)
        with torch.no_grad():
            assert torch.equal(made(x), torch.nn.functional.linear(x, made.weight()) + made.bias)
        np.testing.assert_array_equal(made.weight().numpy(), blocks.decode(made.packed.encoded()))
    kernel.library.cache_clear()
    assert list(tmp_path.rglob("*.so")) == []


def test_the_library_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel.library.cache_clear()
    if kernel.library() is None:
        need("no C compiler")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    kernel.library.cache_clear()
    assert kernel.library() is not None
    kernel.library.cache_clear()
    assert len(list((tmp_path / "distqtrl").iterdir())) == 1
