"""What the decoder says is transformers' own; factors, noise and formats do what they are said to, and leave again."""

import numpy as np
import pytest
import torch
from decoders import FAMILIES, write
from transformers import AutoModelForCausalLM

from distqtrl.errors import UserError
from distqtrl.language import checkpoint
from distqtrl.language.model import Model
from distqtrl.language.packed import Packed
from distqtrl.quantize import blocks

from .conftest import factors

TOKENS = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7) >= torch.tensor([[0], [2], [5]])


def theirs(directory, tokens_NT, mask_NT, dtype=torch.float32):
    """Log probabilities by transformers alone, each row without its padding."""
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.no_grad():
        rows = [
            network(row[mask][None]).logits[0].log_softmax(-1) for row, mask in zip(tokens_NT, mask_NT, strict=True)
        ]
    return rows


def ours(model, factors_F=None, **kwargs):
    with torch.no_grad():
        logits_NTV = model.logits(TOKENS, MASK, factors_F, **kwargs)
    return [row[mask] for row, mask in zip(logits_NTV.log_softmax(-1), MASK, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_the_library(family, models, directories):
    for a, b in zip(ours(models(family)), theirs(directories[family], TOKENS, MASK), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["none", "nvfp4", "mxfp4", "int4"])
def test_training_starts_exactly_at_the_base(precision, models):
    model = models("qwen2", precision)
    for a, b in zip(ours(model, factors(model, 0)), ours(model), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(ours(model, factors(model, 1)), ours(model), strict=True))


def test_layers_are_a_and_b_of_every_target(models):
    model = models()
    assert model.layers[:4] == [(4 * 64, 64), (64 * 4, 4)] * 2
    assert model.layers[-2:] == [(4 * 192, 192), (64 * 4, 4)]
    assert (len(model.layers), model.num_factors) == (28, sum(size for size, _ in model.layers))


@pytest.mark.parametrize("precision", ["none", "nvfp4"])
def test_the_gradient_is_that_of_weights_with_the_change_in_them(precision, models):
    """dL/dW of the library's layers with merged weights gives dL/dA and dL/dB by the chain rule."""
    model = models("qwen3", precision, torch.float64)
    factors_F = factors(model, 1).requires_grad_()
    told_NTV = model.logits(TOKENS, MASK, factors_F)
    pull_NTV = torch.randn(told_NTV.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (told_NTV * pull_NTV * MASK[..., None]).sum().backward()
    name = model.adapted[0]
    size, outputs = model.layers[0][0], model.linear[name].shape[0]
    with torch.no_grad(), model.acting(factors_F):
        weights = {name: layer.merged() for name, layer in model.linear.items()}
    try:
        for key, layer in model.linear.items():
            layer.held = weights[key].requires_grad_(key == name)
        (model.forward(TOKENS, MASK) * pull_NTV * MASK[..., None]).sum().backward()
    finally:
        for layer in model.linear.values():
            layer.held = None
    a_RI, b_OR = model.factors(factors_F.detach())[name]
    torch.testing.assert_close(factors_F.grad[:size].view(4, -1), b_OR.T @ weights[name].grad)
    torch.testing.assert_close(factors_F.grad[size : size + 4 * outputs].view(-1, 4), weights[name].grad @ a_RI.T)
    assert [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None] == []


@pytest.mark.parametrize("precision", ["nvfp4", "nvfp4-torchao", "mxfp4", "mxfp4-even"])
def test_packed_weights_are_the_format_bit_for_bit(precision, models, directories):
    plain, model = models(), models("qwen2", precision)
    for name, layer in model.linear.items():
        wanted = blocks.rounded(precision, plain.linear[name].weight().numpy())
        assert layer.weight().numpy().view(np.uint32).tolist() == wanted.view(np.uint32).tolist()
    assert model.bits_per_weight <= 4.6
    assert plain.bits_per_weight == 32


def test_every_code_and_scale_is_decoded_alike():
    codes = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    for format, rule in blocks.BLOCK_FORMATS.items():
        scales = np.arange(512 // rule.block * 2, dtype=np.uint8).reshape(2, -1) * 3
        scale = np.float32(0.7) if format.startswith("nvfp4") else None
        encoded = blocks.Encoded(format, (2, 512), codes, scales, scale)
        made = Packed(encoded)
        np.testing.assert_array_equal(made().numpy(), blocks.decode(encoded))
        assert made.encoded().scales_NY.tolist() == scales.tolist()


def test_formats_without_blocks_round_every_layer(models):
    for name, layer in models("qwen2", "int4").linear.items():
        wanted = blocks.rounded("int4", models().linear[name].weight().numpy())
        np.testing.assert_array_equal(layer.weight().numpy(), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_reaches_every_norm_of_a_block_and_the_last(family, models):
    model = models(family)
    noise = model.noisy(0.01, np.random.default_rng(0))
    assert (noise.reached, len(noise.scales)) == (5, 5)
    before = ours(model)
    noisy = ours(model, norm_noise=noise)
    assert max((a - b).abs().max() for a, b in zip(before, noisy, strict=True)) > 1e-3
    for a, b in zip(before, ours(model), strict=True):  # it has left again
        assert torch.equal(a, b)
    deviations = [noise.scales[name] - model.network.get_submodule(name).weight for name in model.norms]
    assert torch.cat(deviations).std().item() == pytest.approx(0.01, rel=0.1)
    assert model.noisy(0.0, np.random.default_rng(0)).reached == 0


def test_noise_leaves_when_the_forward_pass_fails(models):
    model = models()
    before = ours(model)
    with pytest.raises(RuntimeError), model.acting(factors(model, 1), model.noisy(1.0, np.random.default_rng(0)), True):
        raise RuntimeError
    for a, b in zip(before, ours(model), strict=True):
        assert torch.equal(a, b)


def test_noise_without_a_norm_is_refused(models, directories):
    model = Model(checkpoint.opened(directories["llama"]), "none", 1, ("proj",))
    model.norms = []
    with pytest.raises(UserError, match=r"reached 0 of 0 RMSNorms.*without RMSNorm"):
        model.noisy(0.1, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"reached 4 of 5|reached 0 of 5"):
        models().noisy(1e-12, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ("proj", "c_attn")}, r"'c_attn': there are down_proj, gate_proj, .*, v_proj"),
        ({"targets": ()}, "names no layer"),
        ({"precision": "nvfp5"}, "unknown weight format 'nvfp5'"),
    ],
)
def test_what_does_not_fit_is_refused(settings, said, directories):
    given = {"precision": "none", "rank": 2, "targets": ("proj",)} | settings
    with pytest.raises(UserError, match=said):
        Model(checkpoint.opened(directories["qwen2"]), **given)


def test_inputs_that_are_no_multiple_of_the_block_are_refused(tmp_path):
    found = checkpoint.opened(write(tmp_path / "narrow", width=24))
    with pytest.raises(UserError, match=r"q_proj has 24 inputs, no multiple of the block's 16: choose a format"):
        Model(found, "nvfp4", 2, ("proj",))
