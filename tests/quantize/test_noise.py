"""The noise's schedule against the released code's formula, and the noise on every layer."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.errors import UserError
from distqtrl.policy.network import Architecture, outputs, unpack
from distqtrl.policy.normalizer import Normalizer
from distqtrl.quantize.noise import KINDS, changed, deviation, scaled

FALLING = ["exponential", "linear", "cosine"]


def released(start, end, stages, step, total):
    """The reference: K - 1 values after a silent interval, NVlabs/QeRL's noise_scheduler.py."""
    trend = [start * (end / start) ** (i / (stages - 2)) for i in range(stages - 1)]
    interval = math.floor(min(step, total) / (total / stages))
    return 0.0 if interval == 0 else trend[min(interval - 1, stages - 2)]


def network(seed=0, dtype=torch.float32):
    architecture = Architecture(5, (64, 32), 3, "tanh")
    w_M = torch.from_numpy(np.random.default_rng(seed).normal(size=architecture.num_weights)).to(dtype)
    return architecture, unpack(architecture, w_M)


def factors(before, after):
    """(N, K) of every layer."""
    return [(new / old).double() for (old, _), (new, _) in zip(before, after, strict=True)]


def test_the_exponential_schedule_is_the_released_codes():
    for stages in (3, 4, 10):
        for step in range(0, 1201):
            expected = released(1e-2, 1e-4, stages, step, 1200)
            assert deviation("exponential", 1e-2, 1e-4, stages, step / 1200) == pytest.approx(expected, rel=1e-12)
    assert deviation("exponential", 5e-2, 5e-4, 10, 0.55) == pytest.approx(5e-2 * (5e-4 / 5e-2) ** (4 / 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", [3, 5, 10, 49, 50])
def test_stages_begin_at_their_share_of_the_budget(kind, stages):
    values = [deviation(kind, 1e-2, 1e-4, stages, i / stages) for i in range(stages + 1)]
    just_before = [deviation(kind, 1e-2, 1e-4, stages, i / stages - 1e-6) for i in range(1, stages + 1)]
    assert values[:-1] == just_before  # constant within a stage
    assert values[-1] == values[-2]  # the budget's end belongs to the last stage
    assert values[0] == 0
    if kind in FALLING:
        assert values[1] == 1e-2
        assert values[-1] == 1e-4
        assert all(a > b for a, b in pairwise(values[1:-1]))
    else:
        assert set(values[1:]) == {1e-2 if kind == "constant" else 0.0}


def test_the_end_is_exact():
    start, end = 0.003, 0.00021
    assert start * (end / start) != end
    assert deviation("exponential", start, end, 10, 1) == end


def test_comparisons_by_hand():
    assert [deviation("linear", 5, 1, 6, i / 6) for i in range(6)] == [0, 5, 4, 3, 2, 1]
    assert deviation("cosine", 5, 1, 6, 3 / 6) == pytest.approx(3)
    assert deviation("cosine", 5, 1, 6, 2 / 6) == pytest.approx(1 + 4 * (1 + math.sqrt(0.5)) / 2)


@given(st.sampled_from(KINDS), st.floats(1e-6, 1), st.floats(1e-3, 1), st.integers(3, 60), st.floats(-1, 2))
def test_a_deviation_lies_between_the_ends_or_is_0(kind, start, share, stages, done):
    end = start * share
    value = deviation(kind, start, end, stages, done)
    assert value == 0 or end <= value <= start * (1 + 1e-12)
    assert (value == 0) == (kind == "none" or done * stages + 1e-9 < 1)
    if kind in FALLING:  # both ends exact
        assert deviation(kind, start, end, stages, 1 / stages) == start
        assert deviation(kind, start, end, stages, 1) == end


@pytest.mark.parametrize(
    ("kind", "start", "end", "stages"),
    [
        ("log", 1e-2, 1e-4, 10),
        ("linear", 1e-2, 1e-4, 2),
        ("linear", 1e-4, 1e-2, 10),
        ("cosine", 1e-2, 0, 10),
        ("exponential", -1e-2, -1e-1, 10),
        ("exponential", math.nan, 1e-4, 10),
        ("constant", math.inf, 1e-4, 10),
    ],
)
def test_schedules_that_are_none(kind, start, end, stages):
    with pytest.raises(UserError, match="noise"):
        deviation(kind, start, end, stages, 0.5)


def test_noise_reaches_every_layer():
    _, before = network()
    after = scaled(before, 1e-2, np.random.default_rng(0))
    assert changed(before, after) == len(before) == 3
    vectors = []
    for factor_NK, (_, bias), (_, new) in zip(factors(before, after), before, after, strict=True):
        assert torch.equal(bias, new)
        assert (factor_NK - factor_NK[0]).abs().max() < 1e-6  # one vector for all outputs
        vectors.append(factor_NK.mean(0))
        assert len(set(vectors[-1].tolist())) == factor_NK.shape[1]  # each input its own
    assert vectors[1][:32].tolist() != vectors[2].tolist()  # each layer its own
    skipped = [before[0], *after[1:]]
    assert changed(before, skipped) == 2
    assert changed(before, before) == 0


def test_noise_has_the_deviation_that_was_asked_for():
    before = [(torch.ones(2, 20_000, dtype=torch.float64), torch.zeros(2))] * 2
    first, second = (factor_NK[0] - 1 for factor_NK in factors(before, scaled(before, 1e-2, np.random.default_rng(0))))
    for z_K in (first, second):
        assert float(z_K.std()) == pytest.approx(1e-2, rel=0.03)  # five deviations of the estimate are 2.5%
        assert abs(float(z_K.mean())) < 5 * 1e-2 / math.sqrt(20_000)
        assert float((z_K.abs() < 1e-2).double().mean()) == pytest.approx(0.683, abs=0.02)  # a normal's share
    assert abs(float((first * second).mean())) < 5 * 1e-4 / math.sqrt(20_000)


def test_in_the_first_layer_it_is_noise_in_the_observations_scale():
    architecture, layers = network(dtype=torch.float64)
    rng = np.random.default_rng(1)
    normalizer = Normalizer(100.0, rng.normal(size=5), rng.uniform(50, 500, 5))
    obs_BO = normalizer.mean_O + rng.normal(size=(20, 5)) / normalizer.scale_O  # no clamp bites
    plain = torch.from_numpy((obs_BO - normalizer.mean_O) * normalizer.scale_O)
    assert np.abs(plain.numpy()).max() < 10
    noisy = scaled(layers, 1e-2, np.random.default_rng(2))
    z_O = 1e-2 * np.random.default_rng(2).standard_normal(5)
    merged = torch.from_numpy((obs_BO - normalizer.mean_O) * (normalizer.scale_O * (1 + z_O)))
    in_weights = outputs(architecture, [noisy[0], *layers[1:]], plain)
    assert torch.allclose(in_weights, outputs(architecture, layers, merged), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(in_weights, outputs(architecture, layers, plain), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_deviation_0_is_the_identity_and_draws_as_many_numbers(dtype):
    _, before = network(dtype=dtype)
    silent, loud = np.random.default_rng(0), np.random.default_rng(0)
    after = scaled(before, 0.0, silent)
    assert changed(before, after) == 0
    assert all(new.dtype == dtype and torch.equal(old, new) for (old, _), (new, _) in zip(before, after, strict=True))
    scaled(before, 0.1, loud)
    assert silent.random() == loud.random()


def test_a_seed_gives_the_same_noise_and_weights_are_not_written_to():
    _, before = network()
    kept = [weight.clone() for weight, _ in before]
    first, second = (scaled(before, 1e-2, np.random.default_rng(7)) for _ in range(2))
    assert changed(first, second) == 0
    assert changed(first, scaled(before, 1e-2, np.random.default_rng(8))) == 3
    assert all(torch.equal(old, weight) for old, (weight, _) in zip(kept, before, strict=True))
    (weight_NK, _), (noisy_NK, _) = before[0], first[0]
    z_K = torch.from_numpy(1e-2 * np.random.default_rng(7).standard_normal(5))
    assert torch.equal(noisy_NK, (weight_NK.double() * (1 + z_K)).float())  # rounded once


def test_noise_below_the_weights_precision_is_counted_as_none():
    """bfloat16 has 8 bits: a factor of 1 + 1e-5 is lost, and a run that asks for it must not believe it got it."""
    before = [(torch.ones(4, 8, dtype=torch.bfloat16), torch.zeros(4))]
    assert changed(before, scaled(before, 1e-5, np.random.default_rng(0))) == 0


def test_gradients_pass():
    weight = torch.ones(2, 3, requires_grad=True)
    [(noisy, _)] = scaled([(weight, torch.zeros(2))], 0.1, np.random.default_rng(0))
    noisy.sum().backward()
    assert torch.allclose(weight.grad, noisy.detach())
