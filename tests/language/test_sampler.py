"""Completions follow from their own streams and from what the learner says of them."""

import numpy as np
import pytest
import torch

from distqtrl.errors import Diverged, UserError
from distqtrl.language import sampler
from distqtrl.seeding import stream

from .conftest import factors

PROMPTS = [[3, 4, 13, 5, 6, 14], [3, 4, 13, 5, 6, 14], [7, 14], [3, 4, 13, 5, 6, 14], [8, 9, 13, 14]]


def streams(num):
    return [stream(0, "action", number) for number in range(num)]


def complete(model, prompts=PROMPTS, drawn=None, **kwargs):
    settings = {"max_tokens": 9, "temperature": 0.8} | kwargs
    drawn = streams(len(prompts)) if drawn is None else drawn
    return sampler.complete(model, factors(model, 1), prompts, drawn, **settings)


@pytest.mark.parametrize("precision", ["none", "nvfp4"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_the_learner_says_what_the_sampler_said(family, precision, models):
    model = models(family, precision)
    made = complete(model, max_tokens=20)
    assert 0 < made.ended_N.sum() < 5  # some have left the batch
    with torch.no_grad():
        found_NT = sampler.log_probs(model, factors(model, 1), PROMPTS, made.tokens_NT, made.length_N, 0.8)
    torch.testing.assert_close(found_NT, made.log_prob_NT, atol=2e-6, rtol=1e-6)
    exact, tokens = models(family, precision, torch.float64), (PROMPTS, made.tokens_NT, made.length_N, 0.8)
    with torch.no_grad():
        exact_NT = sampler.log_probs(exact, factors(model, 1).double(), *tokens)
    for said_NT in (found_NT, made.log_prob_NT):  # they differ by rounding alone
        torch.testing.assert_close(said_NT.double(), exact_NT, atol=2e-6, rtol=1e-6)
    beyond_NT = torch.arange(20) >= made.length_N[:, None]
    assert (made.log_prob_NT[beyond_NT] == 0).all()
    assert (made.log_prob_NT[~beyond_NT] < 0).all()
    assert (made.tokens_NT[beyond_NT] == 0).all()
    ends = made.tokens_NT[torch.arange(5), made.length_N - 1] == model.checkpoint.ends[0]
    assert torch.equal(ends, made.ended_N)


def test_a_completion_is_the_same_whoever_shares_the_batch(models):
    model = models("qwen2", "nvfp4")
    together = complete(model, max_tokens=20)
    for row, (prompt, drawn) in enumerate(zip(PROMPTS, streams(5), strict=True)):
        alone = complete(model, [prompt], [drawn], max_tokens=20)
        assert torch.equal(alone.tokens_NT[0], together.tokens_NT[row])
        torch.testing.assert_close(alone.log_prob_NT[0], together.log_prob_NT[row], atol=2e-6, rtol=1e-6)


def test_tokens_come_as_often_as_they_are_likely(models):
    model = models()
    num = 4000
    made = complete(model, [PROMPTS[0]] * num, max_tokens=1, temperature=1.5)
    tokens, mask = sampler.padded([PROMPTS[0]], 0, torch.device("cpu"))
    with torch.no_grad():
        wanted_V = (model.logits(tokens, mask, factors(model, 1))[0, -1] / 1.5).softmax(-1)
    seen_V = torch.bincount(made.tokens_NT[:, 0], minlength=15) / num
    assert (seen_V - wanted_V).abs().max() < 4 * (0.25 / num) ** 0.5


def test_greedy_takes_the_likeliest_token_and_draws_nothing(models):
    model = models()
    made = complete(model, greedy=True, drawn=())
    tokens, mask = sampler.padded([[*PROMPTS[2], *made.tokens_NT[2].tolist()]], 0, torch.device("cpu"))
    with torch.no_grad():
        said = model.logits(tokens, mask, factors(model, 1))[0, 1:-1].argmax(-1)
    length = int(made.length_N[2])
    assert torch.equal(said[:length], made.tokens_NT[2, :length])


def test_acting_weights_may_be_rounded_and_noisy(models):
    model = models()
    plain, rounded = complete(model), complete(model, precision="int3")
    noisy = complete(model, noise=model.noisy(0.3, np.random.default_rng(0)))
    assert not torch.equal(plain.log_prob_NT, rounded.log_prob_NT)
    assert not torch.equal(plain.log_prob_NT, noisy.log_prob_NT)
    assert torch.equal(plain.log_prob_NT, complete(model).log_prob_NT)


def test_gradients_reach_every_factor_and_no_padding(models):
    model = models("qwen2", "nvfp4", torch.float64)
    factors_F = factors(model, 1).requires_grad_()
    made = complete(model, max_tokens=20)
    told_NT = sampler.log_probs(model, factors_F, PROMPTS, made.tokens_NT, made.length_N, 0.8)
    told_NT.sum().backward()
    together_F = factors_F.grad.clone()
    assert all(part.abs().max() > 0 for part in torch.split(together_F, [size for size, _ in model.layers]))
    factors_F.grad = None
    for row, prompt in enumerate(PROMPTS):
        one = slice(row, row + 1)
        sampler.log_probs(model, factors_F, [prompt], made.tokens_NT[one], made.length_N[one], 0.8).sum().backward()
    torch.testing.assert_close(factors_F.grad, together_F, rtol=1e-6, atol=1e-6)


def test_beyond_the_context_is_refused(models):
    with pytest.raises(
        UserError,
        match=r"prompt of 6 tokens and language.max_tokens = 59 exceed .* 64 tokens: lower .* to 58",
    ):
        complete(models(), max_tokens=59)
    assert complete(models(), max_tokens=58).tokens_NT.shape == (5, 58)


def test_a_token_without_probability_is_never_drawn():
    log_probs_NV = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().expand(3, 5)
    assert sampler.drawn(log_probs_NV, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)).tolist() == [1, 3, 3]


def test_what_is_not_a_number_is_refused(models):
    model = models()
    with pytest.raises(Diverged, match="not finite: lower the learning rate"):
        sampler.complete(model, factors(model, 1) * torch.nan, PROMPTS, streams(5), 3, 1.0)
