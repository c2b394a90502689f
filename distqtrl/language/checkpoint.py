"""Directories of decoders as transformers writes them: read from the disk alone, written whole or not at all.

Read: Qwen2, Qwen3 and Llama families, in floating point or as ``nvfp4-pack-quantized`` (compressed-tensors), whose
codes are taken as they are. Written: a full checkpoint, an adapter as PEFT reads it, and a base as NVFP4.
"""

import hashlib
import json
import re
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distqtrl.errors import UserError, shortened
from distqtrl.files import reading
from distqtrl.language import library
from distqtrl.quantize.blocks import Encoded

if TYPE_CHECKING:
    from distqtrl.language.model import Model

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
FORMAT = "nvfp4-pack-quantized"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them must be there
ABOUT = (  # what goes with a decoder into every copy, where it is there
    *TOKENIZERS,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "generation_config.json"),
)
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
CHUNK = 1 << 22  # bytes
LOADING = threading.Lock()  # while transformers makes a network, torch's defaults are others for all threads


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a directory before its weights are read. ends: tokens that end a completion."""

    directory: Path
    about: dict[str, Any]  # config.json
    config: Any  # the same as transformers' own, of a decoder in floating point
    tokenizer: Any
    ends: tuple[int, ...]

    @property
    def quantized(self) -> bool:
        """Whether the weights are codes of NVFP4."""
        return "quantization_config" in self.about

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        found: int = self.config.max_position_embeddings
        return found

    @property
    def pad(self) -> int:
        """The token that fills up rows; it is never attended to."""
        found = self.tokenizer.pad_token_id
        return self.ends[0] if found is None else int(found)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the names and contents of weights, configuration and tokenizer, in the order of names."""
        digest = hashlib.sha256()
        for path in sorted([*_weights(self.directory), *_beside(self.directory), self.directory / "config.json"]):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def tokens(self, text: str) -> list[int]:
        """A prompt as tokens; raises UserError where it has none, one that the decoder lacks, or too many."""
        found = [int(token) for token in self.tokenizer(text)["input_ids"]]
        if not found:
            raise UserError(f"the prompt {shortened(text)} has no token in {self.directory}: ask something")
        if lost := _lost(text, self.tokenizer.decode(found)):
            raise UserError(
                f"the prompt {shortened(text)} has letters that the tokenizer of {self.directory} does not have, "
                f"{shortened(lost)}: ask in those that it has, or give another base"
            )
        _check_token(self.directory, max(found), f"the prompt {shortened(text)} has", self.config.vocab_size)
        if len(found) >= self.context:
            raise UserError(
                f"the prompt {shortened(text)} has {len(found)} tokens, and the context of {self.directory} is "
                f"{self.context}, completion included: shorten it, or leave it out"
            )
        return found

    def text(self, tokens: list[int]) -> str:
        """Tokens as text, without those that only mark something."""
        found: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return found

    def network(self, dtype: torch.dtype) -> tuple[Any, dict[str, Encoded]]:
        """The decoder, new at every call, and its linear layers that are codes, for which it has placeholders."""
        tensors, encoded = _separated(self.directory, _read(self.directory))
        for name, codes in encoded.items():
            tensors[f"{name}.weight"] = torch.zeros((), dtype=dtype).expand(codes.shape)
        kind = getattr(library.transformers(), self.about["architectures"][0])
        try:
            with LOADING:
                network, told = kind.from_pretrained(
                    None, config=self.config, state_dict=tensors, dtype=dtype, output_loading_info=True
                )
        except Exception as error:  # tensors of other shapes, among others
            raise _refusal(self.directory, f"its weights do not fit config.json: {_said(error)}") from None
        for problem in ("missing", "mismatched", "unexpected"):
            if names := sorted(str(name) for name in told[f"{problem}_keys"]):
                raise _refusal(self.directory, f"{len(names)} weights are {problem}, such as {names[0]}")
        for name, parameter in network.named_parameters():
            _check_finite(self.directory, name, parameter)
        return network.eval(), encoded


def opened(directory: Path) -> Checkpoint:
    """The checkpoint in a directory; raises UserError, one line, where it is none that can be a base."""
    directory = Path(directory)
    if not directory.is_dir():
        remedy = "give a directory that holds config.json, model.safetensors and tokenizer.json"
        if HUB_NAME.fullmatch(str(directory)):
            remedy = (
                "nothing is fetched at run time; if that is a name on a hub, bring it first: hf download "
                f"{directory} --local-dir DIR"
            )
        raise UserError(f"language.base = {directory} is not a directory here: {remedy}")
    about = _table(directory, "config.json")
    found = about.get("architectures") or [about.get("model_type")]
    if not isinstance(found, list):
        raise _refusal(directory, f"architectures of config.json is {shortened(found)}, no list")
    if found[0] not in ARCHITECTURES:
        raise _refusal(directory, f"it is a {found[0]}; known are {', '.join(ARCHITECTURES)}")
    _check_format(directory, about)
    _weights(directory)
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise _refusal(directory, "it has no tokenizer (tokenizer.json)")
    config = _config(directory, about)
    try:
        tokenizer = library.transformers().AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library fails in any way
        raise _refusal(directory, f"its tokenizer is not understood: {_said(error)}") from None
    ends = _ends(directory, about, tokenizer, config.vocab_size)
    if not ends:
        raise _refusal(directory, "it has no end token (eos_token_id), so that no completion would end")
    made = Checkpoint(directory, about, config, tokenizer, ends)
    _check_token(directory, made.pad, "padding is", config.vocab_size)
    return made


def merged(directory: Path, model: "Model", factors_F: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write W + (B - B_0) A of every layer as a checkpoint that transformers loads; raises UserError if it exists."""

    def weights(name: str) -> dict[str, Tensor]:
        return {"weight": model.linear[name].merged()}

    with model.acting(factors_F):
        _write(directory, model, weights, _floating(model.checkpoint.about, dtype), dtype)


def packed(directory: Path, model: "Model") -> None:
    """Write the frozen base as ``nvfp4-pack-quantized``, for which model must keep it in nvfp4."""

    def weights(name: str) -> dict[str, Tensor]:
        kept = model.linear[name].packed
        if kept is None or kept.format != "nvfp4":
            raise UserError(f"{name} is not kept in nvfp4, the one packed format that others load: export it merged")
        assert kept.tensor_scale is not None
        scales = kept.scales.view(torch.float8_e4m3fn)
        return {"weight_packed": kept.codes, "weight_scale": scales, "weight_global_scale": kept.tensor_scale}

    about = _floating(model.checkpoint.about, torch.bfloat16)
    about["quantization_config"] = _scheme()
    _write(directory, model, weights, about, torch.bfloat16)


def adapter(directory: Path, model: "Model", factors_F: Tensor) -> None:
    """Write A and B - B_0 as an adapter that PEFT loads beside the base; raises UserError if the directory exists."""
    tensors = {}
    with torch.no_grad():
        for name, (a, b) in model.factors(factors_F).items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.float()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.float()
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model.checkpoint.directory.resolve()),
        "r": model.rank,
        "lora_alpha": model.rank,  # their product is scaled by alpha / r
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in model.adapted}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with whole(directory) as place:
        _save(tensors, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps(about, indent=1) + "\n")


def _write(
    directory: Path,
    model: "Model",
    weights: Callable[[str], dict[str, Tensor]],
    about: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    """Linear layers as ``weights`` says, everything else in dtype, the tokenizer as it is."""
    tensors = {}
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():  # a head that shares the embedding is not among them
            tensors[name] = parameter.to(dtype)
        for name, layer in model.linear.items():
            made = {f"{name}.{key}": value for key, value in weights(name).items()}
            tensors |= {key: value.to(dtype) if key.endswith(".weight") else value for key, value in made.items()}
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias.to(dtype)
    with whole(directory) as place:
        _save(tensors, place / WEIGHTS)
        (place / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        for path in _beside(model.checkpoint.directory):
            shutil.copyfile(path, place / path.name)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


@contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """A folder beside the one that is asked for, which takes its place at the end; raises UserError if that exists."""
    if directory.exists():
        raise UserError(f"{directory} exists: give a new directory, or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as place:
        made = Path(place) / "made"
        made.mkdir()
        yield made
        made.rename(directory)


def _floating(about: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A configuration of weights in floating point, without what says how a program runs it."""
    gone = ("quantization_config", "torch_dtype", "return_dict", "attn_implementation")
    return {key: value for key, value in about.items() if key not in gone} | {"dtype": str(dtype).rpartition(".")[2]}


def _scheme() -> dict[str, Any]:
    """Weights alone in NVFP4, the head as it is, in the words of compressed-tensors."""
    weights = {
        **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        **{"symmetric": True, "dynamic": False, "scale_dtype": "torch.float8_e4m3fn"},
    }
    group = {"targets": ["Linear"], "weights": weights, "format": FORMAT}
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _config(directory: Path, about: dict[str, Any]) -> Any:
    try:
        return library.transformers().AutoConfig.for_model(**_floating(about, torch.float32))
    except UserError:
        raise
    except Exception as error:  # a configuration can be wrong in any way
        raise _refusal(directory, f"config.json is not understood: {_said(error)}") from None


def _check_format(directory: Path, about: dict[str, Any]) -> None:
    """Raise UserError for weights in a format that is not read."""
    told = about.get("quantization_config")
    if told is None:
        return
    method, format = (told.get(key) for key in ("quant_method", "format")) if isinstance(told, dict) else (told, None)
    if (method, format) != ("compressed-tensors", FORMAT):
        raise _refusal(directory, f"it is quantized as {method} {format or ''}".rstrip() + f"; {FORMAT} alone is read")
    groups = told.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise _refusal(directory, f"config_groups of config.json is {shortened(groups)}, no table of tables")
    if any(group.get("input_activations") for group in groups.values()):
        raise _refusal(directory, "its activations are quantized, too; weights alone may be (NVFP4A16)")


def _lost(text: str, again: str) -> str:
    """The letters and digits of a text that its tokens do not give back; forms of one letter count as one.

    >>> _lost("what is 1+1=", "1+1="), _lost("Ångström", "ångström")
    ('ahistw', '')
    """
    before, after = (set(unicodedata.normalize("NFKD", x).casefold()) for x in (text, again))
    return "".join(sorted(letter for letter in before - after if letter.isalnum()))


def _check_token(directory: Path, token: int, what: str, vocabulary: int) -> None:
    """Raise UserError for a token that has no row in the embedding: one that was added to the tokenizer alone."""
    if token >= vocabulary:
        raise UserError(
            f"language.base = {directory}: {what} token {token} of the tokenizer, and the decoder has tokens 0 to "
            f"{vocabulary - 1} (vocab_size): resize it (resize_token_embeddings) and save it, or give the tokenizer "
            "that it was trained with"
        )


def _check_finite(directory: Path, name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise UserError(f"language.base = {directory}: {name} holds NaN or infinity: give a base of finite weights")


def _table(directory: Path, name: str) -> dict[str, Any]:
    """The table of a JSON file; raises UserError where it holds none."""
    try:
        found = reading.parsed(reading.text(directory / name))
    except ValueError as error:
        raise _refusal(directory, f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise _refusal(directory, f"{name} is no table")
    return found


def _weights(directory: Path) -> list[Path]:
    """The files of weights; raises UserError where one is missing."""
    names = [WEIGHTS]
    if (directory / INDEX).is_file():
        try:
            names = sorted(set(_table(directory, INDEX)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as error:
            raise _refusal(directory, f"{INDEX}: {error}") from None
    for name in names:
        if not isinstance(name, str) or not (directory / name).is_file():
            raise _refusal(directory, f"it has no {name}")
    return [directory / name for name in names]


def _beside(directory: Path) -> list[Path]:
    return [directory / name for name in ABOUT if (directory / name).is_file()]


def _ends(directory: Path, about: dict[str, Any], tokenizer: Any, vocabulary: int) -> tuple[int, ...]:
    """End tokens, as generation would take them: of generation_config.json, config.json or the tokenizer."""
    name = "generation_config.json"
    generation = _table(directory, name) if (directory / name).is_file() else {}
    for found in (generation.get("eos_token_id"), about.get("eos_token_id"), tokenizer.eos_token_id):
        tokens = found if isinstance(found, list) else [found]
        if known := [token for token in tokens if isinstance(token, int) and 0 <= token < vocabulary]:
            return tuple(known)
    return ()


def _read(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in _weights(directory):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise _refusal(directory, f"{path.name} cannot be read: {_said(error)}") from None
    return tensors


def _separated(directory: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Encoded]]:
    """Tensors in floating point, and linear layers as codes."""
    encoded = {}
    for key in [key for key in tensors if key.endswith(".weight_packed")]:
        name = key.removesuffix(".weight_packed")
        try:
            codes, scales, scale = (
                tensors.pop(f"{name}.{part}") for part in ("weight_packed", "weight_scale", "weight_global_scale")
            )
            if codes.dtype != torch.uint8 or codes.ndim != 2 or codes.shape[1] % 8:
                raise KeyError(f"weight_packed is {codes.dtype} {tuple(codes.shape)}")
            shape = (codes.shape[0], 2 * codes.shape[1])
            if tuple(scales.shape) != (shape[0], shape[1] // 16) or scale.numel() != 1:
                raise KeyError("scales of another shape")
        except KeyError as error:
            raise _refusal(directory, f"{name} is packed and incomplete ({error})") from None
        for part in (scales.float(), scale):
            _check_finite(directory, name, part)
        if scales.float().min() < 0 or scale.item() <= 0:
            raise _refusal(directory, f"{name} is packed with scales below 0")
        scales_OY = scales.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        encoded[name] = Encoded("nvfp4", shape, codes.numpy(), scales_OY, np.float32(scale.item()))
    return tensors, encoded


def _refusal(directory: Path, problem: str) -> UserError:
    return UserError(f"language.base = {directory}: {problem}: give a decoder as transformers writes it")


def _said(error: Exception) -> str:
    return shortened(" ".join(str(error).split()))
