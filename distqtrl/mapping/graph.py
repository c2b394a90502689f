"""Basis states as nodes: their bits, the hypercube that joins them, and the probability's feature.

feature_i = [bits of i as -1/+1, most significant first (n), x_i of ``features``]       n + 1 inputs
"""

import math

import torch
from torch import Tensor


def num_nodes(num_weights: int, chunk: int) -> int:
    """ceil(M / c): how many basis states yield weights, c each."""
    return math.ceil(num_weights / chunk)


def num_qubits(num_weights: int, chunk: int = 1) -> int:
    """n = ceil(log2(ceil(M / c))), at least 1.

    >>> num_qubits(898), num_qubits(4835), num_qubits(898, chunk=16)
    (10, 13, 6)
    """
    return max(1, (num_nodes(num_weights, chunk) - 1).bit_length())


def bits(n: int) -> Tensor:
    """bits_Sn: row i holds the bits of i as -1/+1, most significant first (wire 0).

    >>> bits(2).tolist()
    [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    index_S = torch.arange(2**n).unsqueeze(1)
    return ((index_S >> torch.arange(n - 1, -1, -1)) & 1) * 2.0 - 1.0


def hypercube(n: int) -> Tensor:
    """edge_index (2, n 2^n): both directions between basis states that differ in one bit."""
    index_S = torch.arange(2**n)
    neighbours = torch.cat([index_S ^ (1 << b) for b in range(n)])
    return torch.stack([index_S.repeat(n), neighbours])
