"""Completions of a decoder, one stream of random numbers for each, and what the decoder says of them.

A loop over the library's forward pass and its cache. Every completion draws one number a token from its own stream, so
that it is the same whoever shares its batch, but for rounding; prompts that repeat are read once; a completion that
has ended leaves the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distqtrl.errors import Diverged, UserError
from distqtrl.language import library
from distqtrl.language.model import Model, Noise
from distqtrl.language.steps import steps

KEPT = 0.75  # a batch shrinks when fewer of its rows than this part go on: to copy the cache costs, too


@dataclass(frozen=True)
class Completions:
    """Tokens, padded on the right, on the decoder's device.

    length_N counts the end token, if there is one (ended_N); log_prob_NT, of the acting policy, is 0 beyond it.
    """

    tokens_NT: Tensor
    length_N: Tensor
    log_prob_NT: Tensor
    ended_N: Tensor


def check(model: Model, longest: int, max_tokens: int) -> None:
    """Raise UserError where prompt and completion do not fit the decoder's context."""
    context = model.checkpoint.context
    if longest + max_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and language.max_tokens = {max_tokens} exceed the context of "
            f"{model.checkpoint.directory}, {context} tokens: lower language.max_tokens to {context - longest}"
        )


@torch.no_grad()
def complete(
    model: Model,
    factors_F: Tensor | None,
    prompts: Sequence[list[int]],
    streams: Sequence[np.random.Generator],
    max_tokens: int,
    temperature: float,
    noise: Noise | None = None,
    greedy: bool = False,
    precision: str = "none",
) -> Completions:
    """A completion of every prompt by the acting policy; greedy takes the likeliest token and draws nothing.

    precision: what the acting policy's weights are rounded to. Raises UserError beyond the decoder's context, Diverged
    where it says NaN.
    """
    check(model, max(map(len, prompts)), max_tokens)
    device, num = model.device, len(prompts)
    ends = torch.tensor(model.checkpoint.ends, device=device)
    uniform_NT = torch.zeros(num, max_tokens, dtype=torch.float64)
    if not greedy:
        uniform_NT = torch.from_numpy(np.stack([stream.random(max_tokens) for stream in streams]))
    uniform_NT = uniform_NT.to(device)
    tokens_NT = torch.full((num, max_tokens), model.checkpoint.pad, device=device)
    log_prob_NT = torch.zeros(num, max_tokens, dtype=model.dtype, device=device)
    length_N = torch.full((num,), max_tokens, device=device)
    ended_N = torch.zeros(num, dtype=torch.bool, device=device)
    rows = torch.arange(num, device=device)  # those in the batch
    with model.acting(factors_F, noise, held=True, precision=precision):
        cache, logits_NV, mask_NT = _read(model, prompts)
        going_on = steps(model, cache, mask_NT, room=max_tokens)
        for t in range(max_tokens):
            log_probs_NV = log_softmax(logits_NV, temperature)
            token_N = logits_NV.argmax(-1) if greedy else drawn(log_probs_NV, uniform_NT[rows, t])
            tokens_NT[rows, t] = token_N
            log_prob_NT[rows, t] = log_probs_NV.gather(1, token_N[:, None])[:, 0]
            over_N = torch.isin(token_N, ends) & ~ended_N[rows]
            length_N[rows[over_N]] = t + 1
            ended_N[rows[over_N]] = True
            going = ~ended_N[rows]
            num_going = int(going.sum())
            if num_going == 0 or t + 1 == max_tokens:
                break
            if num_going < KEPT * len(rows):
                kept = going.nonzero()[:, 0]
                going_on.keep(kept)
                rows, token_N, mask_NT = rows[kept], token_N[kept], mask_NT[kept]
            mask_NT = torch.cat([mask_NT, mask_NT.new_ones(len(rows), 1)], dim=1)
            logits_NV = going_on.logits(token_N, mask_NT)
    if not bool(log_prob_NT.isfinite().all()):
        raise Diverged("a log probability of the language model is not finite: lower the learning rate")
    beyond_NT = torch.arange(max_tokens, device=device) >= length_N[:, None]
    return Completions(
        tokens_NT.masked_fill(beyond_NT, model.checkpoint.pad),
        length_N,
        log_prob_NT.masked_fill(beyond_NT, 0),
        ended_N,
    )


def log_probs(
    model: Model,
    factors_F: Tensor | None,
    prompts: Sequence[list[int]],
    tokens_NT: Tensor,
    length_N: Tensor,
    temperature: float,
) -> Tensor:
    """log p of every token of completions (N, T), differentiable in factors_F; 0 beyond a completion's length."""
    longest, device = int(length_N.max()), model.device
    inside_NT = torch.arange(longest, device=device) < length_N[:, None]
    with model.acting(factors_F):
        cache, logits_NV, mask_NT = _read(model, prompts)
        logits_NTV = logits_NV[:, None]
        if longest > 1:
            mask_NT = torch.cat([mask_NT, inside_NT[:, : longest - 1]], dim=1)
            more_NTV = model.forward(tokens_NT[:, : longest - 1], mask_NT, cache=cache)
            logits_NTV = torch.cat([logits_NTV, more_NTV], dim=1)
    chosen_NT = tokens_NT[:, :longest, None]
    found_NT = torch.where(inside_NT, log_softmax(logits_NTV, temperature).gather(2, chosen_NT)[..., 0], 0.0)
    return torch.nn.functional.pad(found_NT, (0, tokens_NT.shape[1] - longest))


def _read(model: Model, prompts: Sequence[list[int]]) -> tuple[Any, Tensor, Tensor]:
    """The cache of prompts, what is said of the next token (N, V), and where rows are no padding (N, T).

    Prompts that repeat are read once, and their gradients are summed.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: i for i, prompt in enumerate(distinct)}
    cache = library.transformers().DynamicCache(config=model.network.config)
    tokens_NT, mask_NT = padded(distinct, model.checkpoint.pad, model.device)
    logits_NV = model.forward(tokens_NT, mask_NT, cache=cache, last=1)[:, -1]
    if len(distinct) < len(prompts):
        rows = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=model.device)
        cache.batch_select_indices(rows)
        logits_NV, mask_NT = logits_NV[rows], mask_NT[rows]
    return cache, logits_NV, mask_NT


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log p of every token, in float32 or better."""
    return torch.log_softmax((logits if logits.dtype == torch.float64 else logits.float()) / temperature, dim=-1)


def drawn(log_probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The token at which the sum of probabilities exceeds a number in [0, 1); one without probability is never drawn.

    >>> drawn(torch.tensor([[0.5, 0.0, 0.5]]).log(), torch.tensor([0.5]))
    tensor([2])
    """
    sums_NV = log_probs_NV.double().exp().cumsum(1)
    found_N = torch.searchsorted(sums_NV, (uniform_N.double() * sums_NV[:, -1])[:, None], right=True)[:, 0]
    return found_N.clamp(max=sums_NV.shape[1] - 1)  # NaN has no place among them


def padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts, filled up on the left, and where they are (N, T).

    >>> padded([[7], [8, 9]], 0, torch.device("cpu"))[0].tolist()
    [[0, 7], [8, 9]]
    """
    longest = max(map(len, prompts))
    tokens_NT = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    first_N = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    return tokens_NT, torch.arange(longest, device=device) >= first_N[:, None]
