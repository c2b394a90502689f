"""Training with quantization: its forward pass is the integer program, its backward pass straight-through."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.policy import lower
from distqtrl.policy.distribution import Categorical, Gaussian, SquashedGaussian
from distqtrl.quantize import calibrate, integers
from distqtrl.quantize.aware import LEAST, Quantizer, Tape, Trained, weight_levels
from distqtrl.quantize.calibrate import CLIPPED, LOGITS, SQUASHED, Network
from distqtrl.quantize.formats import Bits
from distqtrl.quantize.program import Argmax, Lookup, Matmul

KINDS = (LOGITS, CLIPPED, SQUASHED)
RAW = np.zeros(3), np.ones(3), np.inf  # mean, scale and clamp of observations that are not normalised


def layers_of(widths, seed=0, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    made = []
    for k, n in pairwise(widths):
        weight_NK, bias_N = rng.normal(size=(n, k)) / k**0.5, rng.normal(size=n) / 4
        made.append(tuple(torch.tensor(x, dtype=dtype, requires_grad=True) for x in (weight_NK, bias_N)))
    return made


def normal(widths, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=widths[0]) * 10, rng.uniform(0.1, 5, widths[0]), 10.0


def warmed(quantizer, layers, obs_BO, affine, steps=1):
    """The quantizer after a whole warm-up on these observations."""
    for _ in range(steps):
        quantizer.outputs(layers, obs_BO, *affine, collect=True)
        quantizer.update_scales(quantizer.statistics())
    return quantizer


def observations(network, affine, num, seed):
    """Random ones, whole numbers, ones at the very edges between levels, and ones beyond every range."""
    rng, (mean_O, scale_O, _) = np.random.default_rng(seed), affine
    random_BO = mean_O + rng.normal(size=(num, len(mean_O))) / scale_O
    grid = network.inputs
    edges_BO = grid.low_N + (rng.integers(-1, grid.top + 2, random_BO.shape) + 0.5) * grid.step_N
    odd_BO = rng.choice([0.0, 1e9, -1e9, np.inf, -np.inf, np.nan], random_BO.shape)
    return np.concatenate([random_BO, edges_BO, np.nextafter(edges_BO, 1e9), random_BO.round(), odd_BO])


def equal(quantizer, layers, affine, seed=0, num=60, dtype=torch.float32):
    """Asserts that every level, the outputs and the actions are the program's."""
    network = quantizer.network(layers, *affine)
    obs_BO = observations(network, affine, num, seed).astype(np.float32 if dtype == torch.float32 else np.float64)
    seen = torch.from_numpy(obs_BO)
    out_BA = quantizer.outputs(layers, seen, *affine)
    assert out_BA.dtype == dtype
    found_BA, expected_BA = out_BA.detach().numpy(), integers.acting(network)(obs_BO)
    np.testing.assert_array_equal(found_BA, expected_BA.astype(found_BA.dtype))
    tape = Tape(quantizer.levels, quantizer.activation == "tanh", False, np.zeros(0, np.bool_))
    quantizer._forward(tape, quantizer._steps(affine[2]), layers, seen, *affine[:2])
    body = integers.program(network)
    trace = [y for y, op in zip(body.trace(body.convert(obs_BO)), body.ops, strict=True) if not isinstance(op, Matmul)]
    if any(isinstance(op, Lookup) for op in body.ops):
        trace = [trace[0], *trace[2:-1:2], trace[-1]]  # what a table reads is no level
    for levels, expected in zip(tape.q, trace, strict=True):
        np.testing.assert_array_equal(levels.numpy(), expected)
    width = quantizer.widths[-1]
    bounds = (-2.0,) * width, (3.0,) * width
    head = {LOGITS: Categorical(width), CLIPPED: Gaussian(*bounds), SQUASHED: SquashedGaussian(*bounds)}[quantizer.kind]
    program = lower.pruned(lower.program(network, head))
    acted, greedy = program.act(obs_BO), head.to_environment(head.greedy(found_BA))
    if isinstance(program.ops[-1], Argmax):
        np.testing.assert_array_equal(acted, greedy)
    else:
        assert np.abs(acted - greedy).max() <= 4 * 2.0**-program.output_fraction


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from(["tensor", "channel"]),
    st.booleans(),
    st.sampled_from(["relu", "tanh"]),
    st.sampled_from(KINDS),
    st.sampled_from([(3, 2), (1, 1), (5, 7, 3), (4, 16, 16, 2), (2, 9, 4, 6, 1)]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**32 - 1),
)
def test_training_says_what_the_program_says(
    b_in, b_core, b_out, per, narrow, activation, kind, widths, norm, dtype, s
):
    values = Quantize(input_bits=b_in, core_bits=(b_core,), output_bits=b_out, per=per, narrow=narrow, warmup=1)
    affine = normal(widths, s) if norm else (np.zeros(widths[0]), np.ones(widths[0]), np.inf)
    quantizer, layers = Quantizer(values, widths, activation, kind).to(dtype), layers_of(widths, s, dtype)
    equal(quantizer, layers, affine, s, dtype=dtype)  # before anything was seen
    mean_O, scale_O, _ = affine
    seen_BO = torch.tensor(mean_O + np.random.default_rng(s).normal(size=(64, widths[0])) / scale_O, dtype=dtype)
    warmed(quantizer, layers, seen_BO, affine)
    equal(quantizer, layers, affine, s, dtype=dtype)


@pytest.mark.parametrize("b", range(1, 9))
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_every_number_of_bits_and_wide_layers(b, per):
    """Sums beyond what float32 holds exactly at 8 bits, and bits that differ from layer to layer."""
    widths = (3, 600, 8, 2)
    values = Quantize(input_bits=b, core_bits=(b, 9 - b, 8), output_bits=b, per=per, narrow=b % 2 == 0, warmup=1)
    quantizer, layers = Quantizer(values, widths, "relu", KINDS[b % 3]), layers_of(widths, b)
    warmed(quantizer, layers, torch.randn(200, 3, generator=torch.Generator().manual_seed(b)), RAW)
    equal(quantizer, layers, RAW, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_gradients_reach_everything(dtype, kind, activation, per):
    widths = (3, 8, 8, 2)
    values = Quantize(core_bits=(3,), per=per, warmup=1, percentile=99)
    quantizer, layers = Quantizer(values, widths, activation, kind).to(dtype), layers_of(widths, 1, dtype)
    obs_BO = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    warmed(quantizer, layers, obs_BO, RAW)
    out_BA = quantizer.outputs(layers, obs_BO, *RAW)
    (out_BA * torch.linspace(-1, 2, out_BA.numel(), dtype=dtype).view(out_BA.shape)).sum().backward()
    for tensor in (quantizer.scales_S, *(t for layer in layers for t in layer)):
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all()
        assert (tensor.grad != 0).float().mean() > 0.5  # but what a silent ReLU reads


def by_autograd(quantizer, layers, obs_BO, affine):
    """The outputs in real numbers, rounded where the integers are, with gradients by autograd."""
    mean_O, scale_O, _ = (torch.as_tensor(x) for x in affine)
    x, number = (obs_BO - mean_O) * scale_O, 0

    def rounded(x, levels):
        step = quantizer.scales_S[levels.place] / levels.unit if levels.learned else 1 / levels.unit
        z = x / step + levels.zero
        inside = z.clamp(0, levels.top)
        return (inside + (torch.floor(z + 0.5).clamp(0, levels.top) - inside).detach() - levels.zero) * step

    x = rounded(x, quantizer.levels[0])
    for number, (weight, bias) in enumerate(layers, 1):
        step = quantizer.scales_S[quantizer.levels[number - 1].place].detach() / quantizer.levels[number - 1].unit
        ints, unit = weight_levels(weight.detach().float(), step.numpy(), quantizer.core_bits[0], quantizer.settings)
        near = ints * torch.from_numpy(unit).view(-1, 1) / step
        z = x @ (weight + (near - weight).detach()).T + bias
        x = rounded(z, quantizer.levels[number])
    return x


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("kind", [LOGITS, CLIPPED])
def test_gradients_are_those_of_autograd(per, kind):
    widths, affine = (3, 6, 5, 2), normal((3,))
    values = Quantize(core_bits=(4,), per=per, warmup=1, percentile=90)
    quantizer, layers = Quantizer(values, widths, "relu", kind).double(), layers_of(widths, 2, torch.float64)
    obs_BO = torch.tensor(affine[0] + np.random.default_rng(0).normal(size=(200, 3)) / affine[1])
    warmed(quantizer, layers, obs_BO, affine)
    parameters = [quantizer.scales_S, *(t for layer in layers for t in layer)]
    results = []
    for function in (quantizer.outputs, lambda layers, x, *affine: by_autograd(quantizer, layers, x, affine)):
        out_BA = function(layers, obs_BO, *affine)
        weights_BA = torch.linspace(-1, 2, out_BA.numel(), dtype=torch.float64).view(out_BA.shape)
        results.append([out_BA.detach(), *torch.autograd.grad((out_BA * weights_BA).sum(), parameters)])
    for ours, theirs in zip(*results, strict=True):  # a sum near the edge of two levels may round the other way
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_gradients_by_hand():
    """One input, one ReLU, one logit: inputs of 2 bits, weights and ReLU of 2 bits (ternary, 0 to 3), output 8 bits.

    x = 0.7 at scale 2 (step 1): level 3, value 1. w = 0.9, absmax 0.9: integer 1, value 0.9. z = 0.9 + 0.2 = 1.1.
    ReLU at scale 3 (step 1): level 1, value 1. v = -0.5: integer -1; output -0.5 + 0.1 = -0.4, scale 1.28 (step 0.01):
    level -40 exactly.
    """
    values = Quantize(input_bits=2, core_bits=(2,), output_bits=8, warmup=0)
    quantizer = Quantizer(values, (1, 1, 1), "relu", LOGITS).double()
    quantizer.scales_S.data[:] = torch.tensor([2.0, 3.0, 1.28], dtype=torch.float64)
    w, b, v, c = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([[0.9]], [0.2], [[-0.5]], [0.1]))
    out = quantizer.outputs([(w, b), (v, c)], torch.tensor([[0.7]]).double(), np.zeros(1), np.ones(1), np.inf)
    assert out.item() == pytest.approx(-0.4, abs=1e-12)
    out.backward()
    got = [w.grad.item(), b.grad.item(), v.grad.item(), c.grad.item()]
    assert got == pytest.approx([-0.5 * 1, -0.5, 1.0, 1.0])  # weights see values of levels: 1, not 0.7 or 1.1
    # (level - value / step) / unit, times what the gradient of the value is; unit is 2 levels, 3 and 128
    by_hand = [-0.5 * 0.9 * (1 - 0.7) / 2, -0.5 * (1 - 1.1) / 3, (-40 - -40) / 128]
    assert quantizer.scales_S.grad.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_gradients_beyond_the_range_by_hand():
    """A ReLU beyond its last level passes nothing on, and its scale grows with all of it; so does the input's."""
    values = Quantize(input_bits=2, core_bits=(2,), output_bits=8, warmup=0)
    quantizer = Quantizer(values, (1, 1, 1), "relu", LOGITS).double()
    quantizer.scales_S.data[:] = torch.tensor([2.0, 0.3, 12.8], dtype=torch.float64)
    w, b, v, c = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([[0.9]], [0.2], [[2.0]], [0.1]))
    out = quantizer.outputs([(w, b), (v, c)], torch.tensor([[5.0]]).double(), np.zeros(1), np.ones(1), np.inf)
    out.backward()
    assert out.item() == pytest.approx(0.7, abs=0.05)
    assert [w.grad.item(), b.grad.item(), c.grad.item()] == [0, 0, 1]
    assert v.grad.item() == pytest.approx(0.3)
    assert quantizer.scales_S.grad.tolist()[:2] == pytest.approx([0, 2.0 * 3 / 3])


def test_a_scale_beyond_the_clamp_may_only_come_back():
    quantizer, layers = Quantizer(Quantize(warmup=0, core_bits=(8,)), (3, 4, 2), "relu", LOGITS), layers_of((3, 4, 2))
    quantizer.scales_S.data[:] = torch.tensor([11.0, 50.0, 50.0])
    affine = np.zeros(3), np.ones(3), 10.0
    obs_BO = torch.tensor([[20.0, -20.0, 5.0]])
    gradients = []
    for sign in (1, -1):
        quantizer.scales_S.grad = None
        (sign * quantizer.outputs(layers, obs_BO, *affine).sum()).backward()
        gradients.append(quantizer.scales_S.grad[0].item())
    assert min(gradients) == 0 < max(gradients)
    assert np.abs(quantizer.network(layers, *affine).inputs.low_N).max() == 10


def test_the_warm_up_averages_a_percentile():
    values = Quantize(warmup=2, percentile=50, per="channel", core_bits=(8,))
    quantizer, layers = Quantizer(values, (3, 4, 2), "relu", SQUASHED), layers_of((3, 4, 2))
    rng = np.random.default_rng(0)
    batches = [torch.tensor(rng.normal(size=(101, 3)) * [1, 2, 4], dtype=torch.float32) for _ in range(3)]
    expected = None
    for number, obs_BO in enumerate(batches):
        warming, before = quantizer.warming, quantizer.scales_S.detach().clone()
        quantizer.scales_S.grad = None
        quantizer.outputs(layers, obs_BO, *RAW, collect=True).sum().backward()
        assert (quantizer.scales_S.grad is None) == warming == (number < 2)
        if warming:
            median_O = np.median(np.abs(obs_BO.numpy()), axis=0)
            expected = median_O if expected is None else 0.9 * expected + 0.1 * median_O
            np.testing.assert_allclose(quantizer.statistics()[:3], median_O, rtol=1e-6)
        quantizer.update_scales(quantizer.statistics())
        assert warming or torch.equal(before, quantizer.scales_S.detach())
    np.testing.assert_allclose(quantizer.scales_S.detach().numpy()[:3], expected, rtol=1e-6)
    again = Quantizer(values, (3, 4, 2), "relu", SQUASHED)
    again.load_state_dict(quantizer.state_dict())
    assert not again.warming


def test_what_was_silent_in_the_warm_up_has_a_scale():
    quantizer, layers = Quantizer(Quantize(warmup=1, per="channel"), (3, 4, 2), "relu", LOGITS), layers_of((3, 4, 2))
    layers[0][1].data[:] = torch.tensor([-99.0, 0, 0, 0])
    warmed(quantizer, layers, torch.zeros(10, 3), RAW)
    assert (quantizer.scales_S > 0).all()
    equal(quantizer, layers, RAW)


@pytest.mark.parametrize("value", [0.0, -1.0, LEAST / 2, np.nan, np.inf])
@pytest.mark.parametrize(("place", "name"), [(0, "input"), (1, "hidden layer 1"), (2, "output")])
def test_a_scale_that_collapsed_is_named(value, place, name):
    quantizer, layers = Quantizer(Quantize(), (3, 4, 2), "relu", LOGITS), layers_of((3, 4, 2))
    quantizer.scales_S.data[place] = value
    with pytest.raises(UserError, match=f"the scale of {name} is {quantizer.scales_S[place]:g}: lower"):
        quantizer.outputs(layers, torch.zeros(1, 3), *RAW)


def test_a_factor_that_cannot_be_written_names_its_scales():
    quantizer, layers = Quantizer(Quantize(), (3, 4, 2), "relu", LOGITS), layers_of((3, 4, 2))
    quantizer.scales_S.data[1] = 2e-8
    with pytest.raises(UserError, match=r"from input \(scale 3\) to hidden layer 1 \(scale 2e-08\)"):
        quantizer.outputs(layers, torch.zeros(1, 3), *RAW)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("b", [1, 2, 8])
def test_weights_of_zero(b, per):
    layers = layers_of((3, 4, 2))
    layers[0][0].data[:], layers[1][0].data[1] = 0, 0
    quantizer = Quantizer(Quantize(core_bits=(b,), per=per, warmup=0), (3, 4, 2), "relu", LOGITS)
    equal(quantizer, layers, RAW)
    quantizer.outputs(layers, torch.ones(2, 3), *RAW).sum().backward()
    assert all(t.grad.isfinite().all() for layer in layers for t in layer)


@pytest.mark.parametrize(("narrow", "b", "ends"), [(True, 2, (-1, 1)), (False, 2, (-2, 1)), (False, 8, (-128, 127))])
def test_ranges_of_weights(narrow, b, ends):
    weight_NK = torch.linspace(-1, 1, 101).view(1, -1)
    ints_NK, unit = weight_levels(weight_NK, np.ones(1), b, Quantize(narrow=narrow))
    assert (ints_NK.min(), ints_NK.max()) == ends
    assert unit.tolist() == pytest.approx([1 / max(abs(e) for e in ends)])
    ints_NK, _ = weight_levels(weight_NK, np.ones(1), 1, Quantize(narrow=narrow))
    assert ints_NK.unique().tolist() == [-1, 1]


def test_weights_are_rounded_half_to_even():
    weight_NK = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 7.0]])
    assert weight_levels(weight_NK, np.ones(1), 4, Quantize())[0].tolist() == [[0, 2, 2, 0, -2, 7]]


def test_bits_that_are_no_layers():
    with pytest.raises(
        UserError, match=r"core_bits = 2 3: the layers are 3 to 4, 4 to 4, 4 to 2: give one number, or 3"
    ):
        Quantizer(Quantize(core_bits=(2, 3)), (3, 4, 4, 2), "relu", LOGITS)


def test_another_networks_scales_are_refused():
    with pytest.raises(ValueError, match="the network needs"):
        Quantizer.of(Trained(Quantize(), np.ones(5)), (3, 4, 2), "relu", LOGITS)


def test_without_gradients_nothing_is_kept():
    quantizer, layers = Quantizer(Quantize(), (3, 4, 2), "relu", LOGITS), layers_of((3, 4, 2))
    with torch.no_grad():
        assert not quantizer.outputs(layers, torch.zeros(1, 3), *RAW).requires_grad


@pytest.mark.parametrize(("b", "share"), [(2, 0.6), (3, 0.4)])
def test_training_with_quantization_beats_quantizing_afterwards(b, share):
    """The error of a regression with 32 neurons in two hidden layers."""
    widths, obs = (2, 32, 32, 1), np.random.default_rng(0).uniform(-2, 2, (1024, 2))
    obs_BO = torch.tensor(obs, dtype=torch.float32)
    goal_BA = torch.tanh(obs_BO[:, :1] - obs_BO[:, 1:] ** 2 / 2 + 0.5)
    affine, num_steps = (np.zeros(2), np.ones(2), np.inf), 800

    def floating(layers, x):
        for weight, bias in layers[:-1]:
            x = torch.relu(x @ weight.T + bias)
        return x @ layers[-1][0].T + layers[-1][1]

    def trained(quantizer=None):
        rng, layers = np.random.default_rng(1), []
        for k, n in pairwise(widths):
            layers.append(tuple(torch.tensor(rng.uniform(-1, 1, size) / k**0.5).float() for size in ((n, k), n)))
        parameters = [t.requires_grad_() for layer in layers for t in layer]
        optimizer = torch.optim.Adam([*parameters, *(quantizer.parameters() if quantizer else ())], lr=3e-3)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
        for step in range(num_steps):
            x, goal = obs_BO[step % 4 :: 4], goal_BA[step % 4 :: 4]
            out = quantizer.outputs(layers, x, *affine, collect=True) if quantizer else floating(layers, x)
            optimizer.zero_grad()
            ((out - goal) ** 2).mean().backward()
            optimizer.step()
            decay.step()
            if quantizer:
                quantizer.update_scales(quantizer.statistics())
        return layers

    def error(network):
        return float(((integers.acting(network)(obs) - goal_BA.numpy()) ** 2).mean())

    quantizer = Quantizer(Quantize(core_bits=(b,), warmup=50, percentile=99), widths, "relu", SQUASHED)
    aware = error(quantizer.network(trained(quantizer), *affine))
    plain = tuple(tuple(t.detach().double().numpy() for t in layer) for layer in trained())
    for per in ("tensor", "channel"):
        after = error(calibrate.quantized(Network(plain, "relu", *affine, SQUASHED), obs, Bits(b, 8, 8), per))
        assert aware < share * after
    assert aware < 0.05 * float(goal_BA.var())
