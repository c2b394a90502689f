"""The next token of every row, again and again: by the library's modules, or in fewer operations.

A small decoder's forward pass for one token is mostly the cost of starting operations. ``Few`` does what the library's
three families do, with q, k and v in one product, gate and up in another, and a cache that is made once. It is for
decoders in float32 whose acting weights are held (``Model.acting``); all others go through their own modules.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from distqtrl.language.model import Model

ROPES = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on how long a text has become


class Steps(Protocol):
    """A cache of N rows, which grows by a token a step."""

    def logits(self, token_N: Tensor, mask_NT: Tensor) -> Tensor:
        """What is said of the token after this one (N, V); mask_NT covers the cache and this one."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


def steps(model: Model, cache: Any, mask_NT: Tensor, room: int) -> Steps:
    """Steps of the acting policy from the library's cache of prompts on, with room for so many tokens."""
    config = model.network.config
    kinds = set(getattr(config, "layer_types", None) or ())  # of attention; Llama has one
    plain = kinds <= {"full_attention"} and config.rope_parameters["rope_type"] in ROPES
    held = all(layer.held is not None for layer in model.linear.values())
    if plain and held and model.dtype == torch.float32:
        return Few(model, cache, padded=not bool(mask_NT.all()), room=room)
    return ByLibrary(model, cache)


class ByLibrary:
    """Steps through the library's modules."""

    def __init__(self, model: Model, cache: Any) -> None:
        self.model, self.cache = model, cache

    def logits(self, token_N: Tensor, mask_NT: Tensor) -> Tensor:
        return self.model.forward(token_N[:, None], mask_NT, cache=self.cache)[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)


@dataclass(frozen=True)
class Norm:
    """The scale of an RMSNorm and what it adds to the mean square."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class Block:
    """A block's weights with those that read the same in one matrix."""

    before: Norm
    qkv: tuple[Tensor, Tensor | None]
    norms: tuple[Norm, Norm] | None  # of queries and keys
    scaling: float
    o: tuple[Tensor, Tensor | None]
    between: Norm
    gate_up: tuple[Tensor, Tensor | None]
    activation: Any
    down: tuple[Tensor, Tensor | None]


class Few:
    """Steps in few operations."""

    def __init__(self, model: Model, cache: Any, padded: bool, room: int) -> None:
        decoder = model.network.model
        self.embedding, self.head = decoder.embed_tokens.weight, model.network.lm_head.weight
        self.blocks = [_block(layer) for layer in decoder.layers]
        self.norm = _norm(decoder.norm)
        self.padded = padded
        keys = cache.layers[0].keys
        num, self.shared, self.length, self.width = keys.shape  # rows, heads of keys, tokens, numbers of a head
        self.kept = keys.new_empty(len(self.blocks), 2, num, self.shared, self.length + room, self.width)
        for into, layer in zip(self.kept, cache.layers, strict=True):
            into[0, :, :, : self.length], into[1, :, :, : self.length] = layer.keys, layer.values
        positions = torch.arange(self.length + room, device=keys.device)
        cos, sin = decoder.rotary_emb(keys, positions[None])
        half = self.width // 2
        self.cos, self.sin = cos[0, :, None], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)[:, None]

    def keep(self, rows: Tensor) -> None:
        self.kept = self.kept[:, :, rows]

    def logits(self, token_N: Tensor, mask_NT: Tensor) -> Tensor:
        at = mask_NT.sum(1) - 1 if self.padded else slice(self.length, self.length + 1)
        cos, sin, attended = self.cos[at], self.sin[at], mask_NT[:, None, None] if self.padded else None
        num, now, half = len(token_N), self.length, self.width // 2
        self.length += 1
        x = self.embedding[token_N]
        for block, (keys, values) in zip(self.blocks, self.kept, strict=True):
            heads = functional.linear(block.before(x), *block.qkv).view(num, -1, self.width)
            asking = heads.shape[1] - 2 * self.shared
            turned, value = heads[:, : -self.shared], heads[:, -self.shared :]
            if block.norms is not None:
                queries, others = block.norms
                turned = torch.cat([queries(turned[:, :asking]), others(turned[:, asking:])], dim=1)
            swapped = turned.unflatten(-1, (2, half)).flip(-2).flatten(-2)
            turned = torch.addcmul(turned * cos, swapped, sin)
            keys[:, :, now], values[:, :, now] = turned[:, asking:], value
            seen = functional.scaled_dot_product_attention(
                turned[:, :asking, None],
                keys[:, :, : now + 1],
                values[:, :, : now + 1],
                attn_mask=attended,
                scale=block.scaling,
                enable_gqa=asking != self.shared,
            )
            x = x + functional.linear(seen.reshape(num, -1), *block.o)
            gate, up = functional.linear(block.between(x), *block.gate_up).chunk(2, dim=-1)
            x = x + functional.linear(block.activation(gate) * up, *block.down)
        return functional.linear(self.norm(x), self.head)


def _block(layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return Block(
        before=_norm(layer.input_layernorm),
        qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
        norms=norms,
        scaling=attention.scaling,
        o=_joined(attention.o_proj),
        between=_norm(layer.post_attention_layernorm),
        gate_up=_joined(mlp.gate_proj, mlp.up_proj),
        activation=mlp.act_fn,
        down=_joined(mlp.down_proj),
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _joined(*layers: Any) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of layers with one input, one below the other."""
    if len(layers) == 1:
        return layers[0].held, layers[0].bias
    biases = [layer.bias for layer in layers]
    return torch.cat([layer.held for layer in layers]), None if biases[0] is None else torch.cat(biases)
