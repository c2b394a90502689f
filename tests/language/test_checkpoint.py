"""Directories are read from the disk alone or refused in a line, and written so that other libraries load them."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

from distqtrl.errors import UserError
from distqtrl.language import checkpoint
from distqtrl.language.model import Model

from .conftest import factors

TOKENS = torch.tensor([[3, 4, 13, 5, 6, 14, 7]])


def said(network):
    with torch.no_grad():
        return network(TOKENS).logits


def loaded(directory, dtype):
    network, told = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    assert not any(told.values())
    return network


@pytest.fixture
def copy(directories, tmp_path):
    """A directory of its own for every test."""
    return shutil.copytree(directories["qwen2"], tmp_path / "base")


def changed(directory, file, **keys):
    """Replace keys of a JSON file; None takes one away."""
    about = json.loads((directory / file).read_text()) | keys
    (directory / file).write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def grouped(directory, groups):
    quantized = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": groups}
    changed(directory, "config.json", quantization_config=quantized)


def spoilt(directory, value, name="model.norm.weight"):
    """Replace the last byte or number of a tensor."""
    found = load_file(directory / "model.safetensors")
    found[name].view(-1)[-1] = value
    save_file(found, directory / "model.safetensors", {"format": "pt"})


def test_what_is_known_before_weights_are_read(directories):
    found = checkpoint.opened(directories["qwen3"])
    assert (found.context, found.ends, found.pad, found.quantized) == (64, (1,), 0, False)
    assert found.text([*found.tokens("12+3="), 1, 0]) == "12+3="


def test_the_hash_is_of_everything_that_matters(copy):
    before = checkpoint.opened(copy).sha256
    (copy / "README.md").write_text("not a part of it")
    assert checkpoint.opened(copy).sha256 == before
    found = load_file(copy / "model.safetensors")
    found["model.norm.weight"][0] += 1
    save_file(found, copy / "model.safetensors", {"format": "pt"})
    after = checkpoint.opened(copy).sha256
    changed(copy, "tokenizer_config.json", clean_up_tokenization_spaces=True)
    assert len({before, after, checkpoint.opened(copy).sha256}) == 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json: No such file"),
        (lambda d: (d / "config.json").write_text("[1]"), "config.json is no table"),
        (lambda d: (d / "tokenizer.json").unlink(), r"no tokenizer \(tokenizer.json\)"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer is not understood"),
        (lambda d: (d / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"no"), "model.safetensors cannot be read"),
        (
            lambda d: changed(d, "config.json", architectures=["GPT2LMHeadModel"]),
            "it is a GPT2LMHeadModel; known are Qwen2",
        ),
        (
            lambda d: changed(d, "config.json", quantization_config={"quant_method": "awq"}),
            "quantized as awq; nvfp4-pack",
        ),
        (
            lambda d: changed(
                d, "config.json", quantization_config={"quant_method": "compressed-tensors", "format": "mxfp4"}
            ),
            "quantized as compressed-tensors mxfp4",
        ),
        (lambda d: changed(d, "config.json", hidden_size=32), "weights are mismatched|do not fit config.json"),
        (
            lambda d: changed(d, "config.json", num_hidden_layers=3, layer_types=None),
            "12 weights are missing, such as model.layers.2",
        ),
        (
            lambda d: changed(d, "config.json", num_hidden_layers=1, layer_types=None),
            "12 weights are unexpected, such as model.layers.1",
        ),
        (lambda d: changed(d, "config.json", architectures=5), "architectures of config.json is 5, no list"),
        (lambda d: changed(d, "config.json", architectures={"a": 1}), "architectures of config.json is {'a': 1}, no"),
        (lambda d: (d / "generation_config.json").write_text("null"), "generation_config.json is no table"),
        (lambda d: (d / "generation_config.json").write_text("[1, 2]"), "generation_config.json is no table"),
        (lambda d: (d / "model.safetensors.index.json").write_text('"x"'), "index.json is no table"),
        (lambda d: grouped(d, ["x"]), r"config_groups of config.json is \['x'\], no table of tables"),
        (lambda d: grouped(d, {"a": "x"}), "config_groups of config.json is {'a': 'x'}, no table of tables"),
        (lambda d: spoilt(d, torch.nan), "model.norm.weight holds NaN or infinity: give a base of finite weights"),
        (lambda d: spoilt(d, torch.inf), "model.norm.weight holds NaN or infinity: give a base of finite weights"),
    ],
)
def test_what_is_no_base_is_refused(spoil, said, copy):
    spoil(copy)
    with pytest.raises(UserError, match=said) as refused:
        checkpoint.opened(copy).network(torch.float32)
    assert "\n" not in str(refused.value)
    assert str(copy) in str(refused.value)


def test_no_end_token_is_refused(copy):
    changed(copy, "config.json", eos_token_id=None)
    changed(copy, "tokenizer_config.json", eos_token=None)
    for name in ("generation_config.json", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="no end token"):
        checkpoint.opened(copy)


def test_padding_without_an_embedding_is_refused_until_there_is_one(copy):
    """As where a padding token is given to a Llama's tokenizer, and the decoder is forgotten."""
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(copy)
    said = r"padding is token 15 of the tokenizer, and the decoder has tokens 0 to 14 \(vocab_size\): resize it"
    with pytest.raises(UserError, match=said):
        checkpoint.opened(copy)
    network = AutoModelForCausalLM.from_pretrained(copy)
    network.resize_token_embeddings(len(tokenizer))
    network.save_pretrained(copy)
    assert checkpoint.opened(copy).pad == 15


def test_prompts_that_the_decoder_cannot_read_are_refused(copy):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["47"])
    tokenizer.save_pretrained(copy)
    found = checkpoint.opened(copy)
    assert found.tokens("4+") == [7, 13]
    with pytest.raises(UserError, match=r"the prompt '47\+' has token 15 of the tokenizer, and the decoder has"):
        found.tokens("47+")
    assert len(found.tokens("1" * 63)) == 63
    with pytest.raises(UserError, match=r"has 64 tokens, and the context of .* is 64, completion included: shorten it"):
        found.tokens("1" * 64)


def test_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"org/model is not a directory here: nothing is fetched.*hf download org/model"
    ):
        checkpoint.opened("org/model")
    with pytest.raises(UserError, match=r"is not a directory here: give a directory that holds config.json"):
        checkpoint.opened(tmp_path / "missing")


@pytest.mark.parametrize("missing", ["transformers", "tokenizers"])
def test_the_extra_is_named_where_it_is_missing(missing, directories, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"language models need {missing}: pip install 'distqtrl\[llm\]'"):
        checkpoint.opened(directories["qwen2"])


def test_shards_shared_heads_and_a_head_of_its_own(directories, tmp_path):
    """A decoder as large ones are: weights in several files, fewer keys than queries, no tied head, two end tokens."""
    shutil.copytree(directories["qwen2"], tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(tmp_path / "base", num_key_value_heads=2, tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    network.generation_config.eos_token_id = [1, 5]
    network.save_pretrained(tmp_path / "base", max_shard_size="50KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    found = checkpoint.opened(tmp_path / "base")
    assert found.ends == (1, 5)
    model = Model(found, "none", 2, ("k_proj", "down_proj"))
    assert model.layers[:2] == [(2 * 64, 64), (32 * 2, 2)]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(TOKENS, None, None), said(network.float()), atol=1e-5, rtol=0)
    checkpoint.merged(tmp_path / "merged", model, None)
    for name, parameter in loaded(tmp_path / "merged", torch.bfloat16).named_parameters():
        assert torch.equal(parameter, network.bfloat16().get_parameter(name))
    next((tmp_path / "base").glob("*-00002-*")).unlink()
    with pytest.raises(UserError, match="it has no model-00002-of"):
        checkpoint.opened(tmp_path / "base")


@pytest.mark.parametrize("precision", ["none", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_checkpoint_is_ours_rounded_once(precision, dtype, models, tmp_path):
    model = models("qwen2", precision)
    checkpoint.merged(tmp_path / "merged", model, factors(model, 1), dtype)
    network = loaded(tmp_path / "merged", dtype)
    with model.acting(factors(model, 1)):
        for name, layer in model.linear.items():
            assert torch.equal(network.get_submodule(name).weight, layer.merged().to(dtype))
    assert torch.equal(network.lm_head.weight, model.network.lm_head.weight.to(dtype))
    if dtype == torch.float32:
        with torch.no_grad():
            torch.testing.assert_close(said(network), model.logits(TOKENS, None, factors(model, 1)), atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<end>"
    assert list(tmp_path.iterdir()) == [tmp_path / "merged"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_a_packed_base_loads_as_ours_in_bfloat16(family, models, tmp_path):
    """By compressed-tensors, in every layer; and our own reading takes the codes as they are."""
    model = models(family, "nvfp4")
    checkpoint.packed(tmp_path / "packed", model)
    config = CompressedTensorsConfig(dequantize=True)
    with pytest.warns(UserWarning, match="loading attributes"):
        network = AutoModelForCausalLM.from_pretrained(
            tmp_path / "packed", dtype=torch.bfloat16, quantization_config=config
        )
    for name, layer in model.linear.items():
        assert torch.equal(network.get_submodule(name).weight, layer.weight().bfloat16())
    again = checkpoint.opened(tmp_path / "packed")
    assert again.quantized
    for precision in ("none", "nvfp4"):
        ours = Model(again, precision, 2, ("proj",))
        assert ours.bits_per_weight < 4.6
        for name, layer in ours.linear.items():
            assert torch.equal(layer.weight(), model.linear[name].weight())
    with pytest.raises(UserError, match=r"adapter.precision = int4: .*packed is quantized already, in nvfp4"):
        Model(again, "int4", 2, ("proj",))


def test_an_incomplete_packed_layer_is_refused(models, tmp_path):
    checkpoint.packed(tmp_path / "packed", models("qwen2", "nvfp4"))
    found = load_file(tmp_path / "packed" / "model.safetensors")
    del found["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(found, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers.0.mlp.up_proj is packed and incomplete"):
        checkpoint.opened(tmp_path / "packed").network(torch.float32)


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("weight_packed", lambda t: t.flatten(), "up_proj is packed and incomplete .*weight_packed is torch.uint8"),
        ("weight_packed", lambda t: t.int(), "up_proj is packed and incomplete .*weight_packed is torch.int32"),
        ("weight_global_scale", lambda t: 0 * t, "up_proj is packed with scales below 0"),
        ("weight_scale", lambda t: (-t.float()).to(t.dtype), "up_proj is packed with scales below 0"),
    ],
)
def test_damaged_packed_layers_are_refused(models, tmp_path, part, change, says):
    checkpoint.packed(tmp_path / "packed", models("qwen2", "nvfp4"))
    found, name = load_file(tmp_path / "packed" / "model.safetensors"), f"model.layers.0.mlp.up_proj.{part}"
    found[name] = change(found[name])
    save_file(found, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=says):
        checkpoint.opened(tmp_path / "packed").network(torch.float32)


def test_a_packed_head_is_refused(models, tmp_path):
    """Its codes would be left out, and every token as likely."""
    checkpoint.packed(tmp_path / "packed", models("qwen2", "nvfp4"))
    path = tmp_path / "packed" / "model.safetensors"
    found = load_file(path)
    up = "model.layers.0.mlp.up_proj"
    tall = -(-found["model.embed_tokens.weight"].shape[0] // found[f"{up}.weight_packed"].shape[0])
    for part in ("weight_packed", "weight_scale"):
        rows = found[f"{up}.{part}"].repeat(tall, 1)
        found[f"lm_head.{part}"] = rows[: found["model.embed_tokens.weight"].shape[0]].contiguous()
    found["lm_head.weight_global_scale"] = found[f"{up}.weight_global_scale"].clone()
    save_file(found, path, {"format": "pt"})
    about = json.loads((tmp_path / "packed" / "config.json").read_text())
    (tmp_path / "packed" / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match="lm_head is packed, and only the linear layers of its blocks may be"):
        Model(checkpoint.opened(tmp_path / "packed"), "none", 2, ("proj",))


@pytest.mark.parametrize("key", ["return_dict", "attn_implementation"])
def test_how_a_program_runs_it_is_not_the_bases(models, tmp_path, key):
    checkpoint.packed(tmp_path / "packed", models("qwen2", "nvfp4"))
    about = json.loads((tmp_path / "packed" / "config.json").read_text())
    (tmp_path / "packed" / "config.json").write_text(json.dumps(about | {key: False}))
    model = Model(checkpoint.opened(tmp_path / "packed"), "none", 2, ("proj",))
    assert model.logits(TOKENS, None, None).isfinite().all()


def test_packed_scales_that_are_no_numbers_are_refused(models, tmp_path):
    checkpoint.packed(tmp_path / "packed", models("qwen2", "nvfp4"))
    for part in ("weight_scale", "weight_global_scale"):
        spoilt(shutil.copytree(tmp_path / "packed", tmp_path / part), torch.nan, f"model.layers.0.mlp.up_proj.{part}")
        with pytest.raises(UserError, match=r"layers.0.mlp.up_proj holds NaN or infinity"):
            checkpoint.opened(tmp_path / part).network(torch.float32)


def test_activations_in_few_bits_are_refused(models, tmp_path):
    checkpoint.packed(tmp_path / "packed", models("qwen2", "nvfp4"))
    about = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    about["config_groups"]["group_0"]["input_activations"] = {"num_bits": 4}
    changed(tmp_path / "packed", "config.json", quantization_config=about)
    with pytest.raises(UserError, match="its activations are quantized, too"):
        checkpoint.opened(tmp_path / "packed")


def test_only_what_is_kept_in_nvfp4_is_written_packed(models, tmp_path):
    with pytest.raises(UserError, match="q_proj is not kept in nvfp4"):
        checkpoint.packed(tmp_path / "packed", models("qwen2", "mxfp4"))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_the_change_beside_the_base(models, directories, tmp_path):
    """By PEFT's rule, W + (alpha / r) B A, of the names that it looks for."""
    model = models()
    checkpoint.adapter(tmp_path / "adapter", model, factors(model, 1))
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    network = AutoModelForCausalLM.from_pretrained(about["base_model_name_or_path"], dtype=torch.float32)
    assert about["target_modules"] == sorted({name.rpartition(".")[2] for name in model.linear})
    for name in model.linear:
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{part}.weight") for part in "AB")
        network.get_submodule(name).weight.data += about["lora_alpha"] / about["r"] * b @ a
    assert tensors == {}
    with torch.no_grad():
        torch.testing.assert_close(said(network), model.logits(TOKENS, None, factors(model, 1)), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")  # PEFT asks transformers so
def test_peft_loads_an_adapter(models, directories, tmp_path):
    peft = pytest.importorskip("peft", reason="there is no PEFT: pip install 'distqtrl[llm-peers]'")
    model = models("qwen3")
    checkpoint.adapter(tmp_path / "adapter", model, factors(model, 1))
    base = AutoModelForCausalLM.from_pretrained(directories["qwen3"], dtype=torch.float32)
    before = said(base)
    network = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    wanted = model.logits(TOKENS, None, factors(model, 1)).detach()
    torch.testing.assert_close(said(network), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(said(network.merge_and_unload()), wanted, atol=1e-5, rtol=0)
    assert (before - wanted).abs().max() > 0.1


def test_what_is_there_is_kept_and_nothing_is_half_written(models, tmp_path, monkeypatch):
    model = models()
    (tmp_path / "mine").mkdir()
    for write in (checkpoint.merged, checkpoint.adapter):
        with pytest.raises(UserError, match=r"mine exists: give a new directory"):
            write(tmp_path / "mine", model, factors(model, 1))
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "full", "there")))
    with pytest.raises(OSError, match="full"):
        checkpoint.merged(tmp_path / "new", model, None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_prompt_whose_letters_the_tokenizer_lacks_is_refused(directories):
    found = checkpoint.opened(directories["qwen2"])
    assert found.tokens("1+1=")
    with pytest.raises(UserError, match=r"has letters that the tokenizer of .* does not have, 'ahistw': ask in those"):
        found.tokens("what is 1+1=")
