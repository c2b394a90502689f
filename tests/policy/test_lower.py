"""The integer program says what the quantized network says, but for ties; actions stay within bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize.programs import observations, programs

from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.policy import lower
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.quantize import integers
from distqtrl.quantize.calibrate import LOGITS, SQUASHED, Network, quantized
from distqtrl.quantize.formats import Bits
from distqtrl.quantize.program import Argmax, Lookup, Matmul, Program, Scale


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("b", [1, 3, 8])
def test_the_program_is_the_quantized_network(activation, per, b):
    rng = np.random.default_rng(b)
    layers = tuple((rng.normal(size=(n, k)), rng.normal(size=n)) for n, k in ((16, 4), (16, 16), (3, 16)))
    net = Network(layers, activation, np.zeros(4), np.ones(4), np.inf, LOGITS)
    obs_BO = rng.normal(size=(3000, 4))
    q = quantized(net, obs_BO, Bits(b, 8, 8), per)
    program = lower.program(q, Categorical(3))
    trace = [
        y for y, op in zip(program.trace(program.convert(obs_BO)), program.ops, strict=True) if is_levels(op, program)
    ]
    assert len(trace) == 1 + len(layers)
    for reads, layer, writes in zip(trace, q.layers, trace[1:], strict=False):
        apart = np.abs(layer.levels(reads) - writes)
        assert apart.max() <= 1  # only what lies on the edge between two levels
        assert apart.mean() < 0.02


def is_levels(op, program):
    """Whether an operation's result is what the next layer or the head reads."""
    following = program.ops[program.ops.index(op) + 1 :][:1]
    return isinstance(op, Scale | Lookup) and not isinstance(following[0], Lookup)


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 100)), min_size=1, max_size=4),
    st.integers(1, 9),  # 9 stands for a head's tanh
)
def test_actions_stay_within_bounds(bounds, b):
    low = tuple(a for a, _ in bounds)
    high = tuple(a + w for a, w in bounds)
    top = (1 << b) - 1 if b < 9 else 2 * lower.TANH_END
    try:
        scale, fraction = lower._action(Gaussian(low, high), top)
    except UserError:
        assert min(w for _, w in bounds) < 2 * 2.0**-6  # 2^-6 is a step where the largest bound is 200
        return
    ends = scale(np.array([[0] * len(low), [top] * len(low)])) * 2.0**-fraction
    assert (ends >= low).all()
    assert (ends <= high).all()
    step = 2.0**-fraction
    assert (ends[0] - low <= 2 * step).all()
    assert (np.array(high) - ends[1] <= 3 * step).all()


@pytest.mark.parametrize(
    ("low", "high"),
    [((-40000, 0.5), (40000, 0.9)), ((-100, 1e-4), (100, 2e-4)), ((-1, 0.3), (1, 0.3)), ((-4e4, -1), (4e4, 1))],
)
def test_an_action_that_is_narrow_beside_another_is_refused(low, high):
    """In integers it would leave its bounds, or be a constant."""
    head = Gaussian(tuple(map(float, low)), tuple(map(float, high)))
    with pytest.raises(UserError, match=r"action 1 from .* is less than a step of integers that hold "):
        lower._action(head, 255)
    with pytest.raises(UserError, match="action 1 from"):
        lower.quantizer(Quantize(aware=True), Architecture(3, (4,), 2, "relu"), head)


@pytest.mark.parametrize("b", [1, 4, 8])
def test_a_squashed_head_is_tanh_of_the_levels(b):
    rng = np.random.default_rng(b)
    layers = tuple((rng.normal(size=(n, k)), rng.normal(size=n)) for n, k in ((16, 4), (3, 16)))
    net, obs_BO = Network(layers, "relu", np.zeros(4), np.ones(4), np.inf, SQUASHED), rng.normal(size=(500, 4))
    q, head = quantized(net, obs_BO, Bits(4, 8, b)), SquashedGaussian((-1.0, -2.0, 0.0), (1.0, 2.0, 0.5))
    program = lower.program(q, head)
    means_BA = integers.acting(q)(obs_BO)
    assert len(np.unique(means_BA)) <= 1 << b
    expected_BA = head.to_environment(head.greedy(means_BA))
    np.testing.assert_allclose(program.act(obs_BO), expected_BA, atol=4 * 2.0**-program.output_fraction)
    assert (np.abs(program.act(obs_BO) - head.to_environment(np.zeros((1, 3)))) <= [1, 2, 0.25]).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 8))
def test_a_factored_head_is_an_argmax_per_factor(sizes, b):
    rng, num = np.random.default_rng(b), sum(sizes)
    layers = tuple((rng.normal(size=(n, k)), rng.normal(size=n)) for n, k in ((16, 4), (num, 16)))
    net, obs_BO = Network(layers, "relu", np.zeros(4), np.ones(4), np.inf, LOGITS), rng.normal(size=(500, 4))
    q, head = quantized(net, obs_BO, Bits(4, 8, b)), Factored(tuple(sizes), tuple(range(len(sizes))))
    for program in (lower.program(q, head), lower.pruned(lower.program(q, head))):
        expected_BF = head.to_environment(head.greedy(integers.acting(q)(obs_BO)))
        np.testing.assert_array_equal(program.act(obs_BO), expected_BF)
        assert program.act(obs_BO).shape == (500, len(sizes))


@pytest.mark.parametrize("head", [Categorical(3, 0, True), Factored((2, 1), (0, 0), True)])
def test_a_masked_head_leaves_as_no_program(head):
    rng = np.random.default_rng(0)
    net = Network(((rng.normal(size=(3, 4)), rng.normal(size=3)),), "relu", np.zeros(4), np.ones(4), np.inf, LOGITS)
    q = quantized(net, rng.normal(size=(50, 4)), Bits(4, 8, 8))
    with pytest.raises(UserError, match="needs its environment's action_mask, which an exported program does not read"):
        lower.program(q, head)


@settings(max_examples=50, deadline=None)
@given(programs)
def test_what_is_pruned_makes_no_difference(program):
    smaller = lower.pruned(program)
    x_BO = observations(program, 300)
    np.testing.assert_equal(smaller.run(x_BO), program.run(x_BO))


def test_silent_and_unread_neurons_go():
    ones = np.ones(3, int)
    first = Scale(ones[:2], 0 * ones[:2], 8, 0, 255)
    hidden = Scale(ones, np.array([0, 0, 900]), 0, 0, 7)  # the third always says 7
    layers = [Matmul(np.array([[1, 0], [0, 1], [0, 1]])), Matmul(np.array([[1, 0, 1], [2, 0, -1]]))]
    head = Scale(ones[:2], 0 * ones[:2], 0, 0, 99), Argmax()
    program = Program((0, 0), 16, (first, layers[0], hidden, layers[1], *head))
    smaller = lower.pruned(program)
    assert [op.weights_NK.tolist() for op in smaller.ops if isinstance(op, Matmul)] == [[[1, 0]], [[1], [2]]]
    assert smaller.ops[4].offset_N.tolist() == [7, -7]
