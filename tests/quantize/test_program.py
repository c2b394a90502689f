"""The interpreter, against plain Python integers; ranges, against what is computed; damaged texts."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize.programs import observations, programs

from distqtrl.errors import UserError
from distqtrl.quantize.program import Argmax, Lookup, Matmul, Program, Scale, dumps, loads


def by_hand(program, x):
    """One observation in Python's own integers."""
    x = [int(v) for v in x]
    for op in program.ops:
        if isinstance(op, Matmul):
            x = [sum(w * v for w, v in zip(row, x, strict=True)) for row in op.weights_NK.tolist()]
        elif isinstance(op, Scale):
            products = [v * m + c for v, m, c in zip(x, op.multiplier_N.tolist(), op.offset_N.tolist(), strict=True)]
            x = [min(max(p // 2**op.shift, op.low), op.high) for p in products]
        elif isinstance(op, Lookup):
            x = [int(op.table[v]) for v in x]
        else:
            sizes, starts = (op.sizes, op.start) if op.sizes else ([len(x)], [op.start])
            ends = np.cumsum([0, *sizes]).tolist()
            parts = [x[first:last] for first, last in pairwise(ends)]
            x = [part.index(max(part)) + start for part, start in zip(parts, starts, strict=True)]
    return x


@settings(max_examples=50, deadline=None)
@given(programs)
def test_the_interpreter_and_python_agree(program):
    x_BO = observations(program, 20)
    assert program.run(x_BO).tolist() == [by_hand(program, x) for x in x_BO]


@settings(max_examples=50, deadline=None)
@given(programs)
def test_nothing_leaves_its_range(program):
    trace = program.trace(observations(program, 200))
    for y_BN, (_, _, y) in zip(trace, program.steps(), strict=True):
        assert (y_BN >= y.low_N).all()
        assert (y_BN <= y.high_N).all()


@settings(max_examples=30, deadline=None)
@given(programs)
def test_a_text_is_the_same_program(program):
    again = loads(dumps(program))
    assert dumps(again) == dumps(program)
    x_BO = observations(program, 50)
    np.testing.assert_equal(again.run(x_BO), program.run(x_BO))


def test_observations_are_rounded_and_saturated():
    program = Program((1, 0), 16, (Scale(np.ones(2, int), np.zeros(2, int), 0, -5, 5), Argmax()))
    converted = program.convert([[0.25, 0.5], [-0.25, -0.5], [-0.26, 1e9], [np.nan, -np.inf]])
    assert converted.tolist() == [[1, 1], [0, 0], [-1, 32767], [-32768, -32768]]


def test_the_first_of_equals_wins():
    program = Program((0, 0, 0), 16, (Argmax(start=4),))
    assert program.run(np.array([[1, 7, 7]])).tolist() == [[5]]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
def test_every_factor_has_an_argmax_of_its_own(sizes, data):
    """NumPy's, of few different numbers, so that there are ties; one number per factor, also where there is one."""
    starts = data.draw(st.lists(st.integers(-9, 9), min_size=len(sizes), max_size=len(sizes)))
    rows = data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=sum(sizes), max_size=sum(sizes)), min_size=1))
    program = Program((0,) * sum(sizes), 16, (Argmax(tuple(starts), tuple(sizes)),))
    parts = np.split(np.array(rows), np.cumsum(sizes)[:-1], axis=1)
    expected_BF = np.stack([part.argmax(1) + start for part, start in zip(parts, starts, strict=True)], 1)
    np.testing.assert_array_equal(program.run(np.array(rows)), expected_BF)
    np.testing.assert_array_equal(program.act(np.array(rows)), expected_BF)
    np.testing.assert_array_equal(loads(dumps(program)).run(np.array(rows)), expected_BF)


def test_a_single_choice_is_written_as_it_always_was():
    """So that the digests in older manifests stay true."""
    text = dumps(Program((0,), 16, (Scale(np.array([1]), np.array([0]), 0, 0, 9), Argmax(3))))
    assert text.splitlines()[2] == '{"op": "argmax", "start": 3}'
    assert loads(text).ops[-1] == Argmax(3)


@pytest.mark.parametrize(
    "op", [Argmax((0, 0), (2, 2)), Argmax((0,), (1, 2)), Argmax(0, (3,)), Argmax((0,), ()), Argmax((0, 0), (3, 0))]
)
def test_factors_that_do_not_share_out_the_numbers_are_refused(op):
    with pytest.raises(ValueError, match="factors"):
        Program((0, 0, 0), 16, (op,))
    line = json.dumps({"op": "argmax", "start": op.start, "sizes": op.sizes})
    text = dumps(Program((0, 0, 0), 16, (Argmax(),))).replace('{"op": "argmax", "start": 0}', line)
    with pytest.raises(UserError, match="cannot read the program"):
        loads(text)


@pytest.mark.parametrize(
    ("ops", "says"),
    [
        ((Scale(np.array([1 << 40]), np.array([1 << 62]), 0, 0, 1), Argmax()), "needs 64 bits"),
        ((Matmul(np.array([[1]])),), "must fit a byte"),
        ((Scale(np.array([1]), np.array([0]), 8, 0, 9), Matmul(np.array([[200]]))), "must fit a byte"),
    ],
)
def test_what_could_overflow_is_refused(ops, says):
    with pytest.raises(UserError, match=says):
        Program((0,), 16, ops)


def test_damaged_texts_are_refused():
    program = Program((0,), 16, (Scale(np.array([1]), np.array([0]), 0, 0, 9), Argmax()))
    text = dumps(program)
    for damaged in (text[:-20], text.replace("distqtrl program 1", "x"), text.replace('"shift"', '"shaft"'), "[]"):
        with pytest.raises(UserError, match="cannot read the program"):
            loads(damaged)
    assert json.loads(text)["ops"][0]["op"] == "scale"
