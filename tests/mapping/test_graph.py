import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqtrl.mapping import graph


@pytest.mark.parametrize(
    ("weights", "chunk", "nodes", "qubits"),
    [
        (898, 1, 898, 10),
        (4835, 1, 4835, 13),
        (898, 16, 57, 6),
        (1024, 1, 1024, 10),
        (1025, 1, 1025, 11),
        (1, 1, 1, 1),
        (2, 1, 2, 1),
        (3, 1, 3, 2),
        (10, 100, 1, 1),
    ],
)
def test_number_of_nodes_and_qubits(weights, chunk, nodes, qubits):
    assert graph.num_nodes(weights, chunk) == nodes
    assert graph.num_qubits(weights, chunk) == qubits


@given(st.integers(1, 10**9), st.integers(1, 10**4))
def test_number_of_qubits_is_the_smallest_that_fits(weights, chunk):
    n = graph.num_qubits(weights, chunk)
    assert 2**n * chunk >= weights
    assert n == 1 or 2 ** (n - 1) * chunk < weights


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_bits_are_plus_minus_one_most_significant_first(n):
    expected = [[2.0 * int(digit) - 1 for digit in format(i, f"0{n}b")] for i in range(2**n)]
    assert graph.bits(n).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_every_node_has_n_neighbours_at_hamming_distance_1(n):
    pairs = graph.hypercube(n).T.tolist()
    expected = [[i, j] for i in range(2**n) for j in range(2**n) if (i ^ j).bit_count() == 1]
    assert len(expected) == n * 2**n
    assert sorted(pairs) == expected
