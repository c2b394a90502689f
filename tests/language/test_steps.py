"""A step in few operations says what the library's modules say, and is taken only where it does."""

import numpy as np
import pytest
import torch
from decoders import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from distqtrl.language import checkpoint
from distqtrl.language.model import Model
from distqtrl.language.steps import ByLibrary, Few, steps

from .conftest import factors

PROMPTS = torch.randint(3, 15, (3, 5), generator=torch.Generator().manual_seed(0))
MORE = torch.randint(3, 15, (4, 3), generator=torch.Generator().manual_seed(1))
PADDED = torch.arange(5) >= torch.tensor([[0], [3], [1]])


def said(model, kind, mask_NT):
    """Logits of four tokens one after the other, the third and fourth of them of two rows alone."""
    cache = DynamicCache(config=model.network.config)
    model.forward(PROMPTS, mask_NT, cache=cache)
    made = steps(model, cache, mask_NT, room=4) if kind is None else kind(model, cache)
    found = []
    for t, token_N in enumerate(MORE):
        if t == 2:
            made.keep(torch.tensor([0, 2]))
            mask_NT = mask_NT[[0, 2]]
        mask_NT = torch.cat([mask_NT, mask_NT.new_ones(len(mask_NT), 1)], dim=1)
        found += made.logits(token_N[[0, 2]] if t >= 2 else token_N, mask_NT)
    return type(made), torch.stack(found)


@torch.no_grad()
def compared(model, mask_NT):
    noise = model.noisy(0.1, np.random.default_rng(0))
    with model.acting(factors(model, 1), noise, held=True):
        kind, few = said(model, None, mask_NT)
        _, wanted = said(model, ByLibrary, mask_NT)
    assert kind is Few
    torch.testing.assert_close(few, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("mask_NT", [PADDED, torch.ones_like(PADDED)], ids=["padded", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_few_operations_say_the_same(family, mask_NT, models):
    compared(models(family, "nvfp4"), mask_NT)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_heads_a_head_of_its_own_and_other_angles(family, directories, tmp_path):
    changes = {"num_key_value_heads": 2, "tie_word_embeddings": False, "rms_norm_eps": 1e-3, "hidden_act": "gelu"}
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16}
    config = AutoConfig.from_pretrained(directories[family], **changes, rope_parameters=rope)
    if family != "qwen2":
        config.attention_bias = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in network.named_parameters():
            parameter.data += torch.randn_like(parameter) * (0.3 if "norm" in name or "bias" in name else 0.1)
    network.save_pretrained(tmp_path)
    for path in directories[family].glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = Model(checkpoint.opened(tmp_path), "none", 2, ("proj",))
    model.start(factors(model, 0))
    compared(model, PADDED)


def test_all_other_decoders_go_through_the_library(models):
    def kind(model, **acting):
        with torch.no_grad(), model.acting(factors(model, 1), **acting):
            return said(model, None, PADDED)[0]

    assert kind(models("qwen2"), held=True) is Few
    assert kind(models("qwen2")) is ByLibrary
    assert kind(models("qwen2", "none", torch.float64), held=True) is ByLibrary
    config = models("qwen2").network.config
    layers, config.layer_types = config.layer_types, ["sliding_attention"] * 2
    try:
        with torch.no_grad(), models("qwen2").acting(factors(models("qwen2"), 1), held=True):
            assert isinstance(steps(models("qwen2"), None, PADDED, 1), ByLibrary)
    finally:
        config.layer_types = layers
