"""Graphs of adders compute the matrix they were made of, with fewer adders than its digits need."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.export.verilog import adders


def computed(graph, x):
    found, sums = graph
    values = [int(v) for v in x]
    for a in found:
        values.append((values[a.a] << a.a_shift) + a.sign * (values[a.b] << a.b_shift))
    return [0 if s.variable < 0 else s.sign * (values[s.variable] << s.shift) for s in sums]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_graph_is_the_matrix(rows, columns, bits, seed):
    rng = np.random.default_rng(seed)
    weights_NK = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, columns))
    graph = adders.graph(weights_NK)
    x = rng.integers(0, 256, columns)
    assert computed(graph, x) == (weights_NK @ x).tolist()


def test_what_is_common_is_added_once():
    found, _ = adders.graph(np.array([[1, 1, 0], [1, 1, 1], [2, 2, -1], [-1, -1, 0]]))
    assert len(found) == 3
