"""A fixed random matrix in the place of a network: only the source is trained.

    out_M = R x_S / sqrt(F),    R = M rows of [H D_1; H D_2; ...]          F features that are not always 0

H is the Walsh-Hadamard matrix, D_b are diagonals of random signs: entries of R are +-1, and rows of one block are
orthogonal. This is the random projection of the random subspaces of Li et al. (arXiv 1804.08838), structured as in
the subsampled randomised Hadamard transform (Ailon & Chazelle 2006): no M x S matrix, M signs, time O(M sqrt(S)) in
matrix products. Weights of features with mean square 1 have mean square 1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from distqtrl.mapping import hadamard


class Expansion(nn.Module):
    """x_S -> out, of at least M numbers. Signs are drawn from torch's generator and kept in no file."""

    signs_BS: Tensor
    high: Tensor
    low: Tensor

    def __init__(self, n: int, num_weights: int, num_features: int) -> None:
        super().__init__()
        self.scale = num_features**-0.5
        blocks = math.ceil(num_weights / 2**n)
        self.register_buffer("signs_BS", torch.randint(2, (blocks, 2**n), dtype=torch.int8) * 2 - 1, persistent=False)
        for name, factor in zip(("high", "low"), hadamard.factors(n, torch.float32), strict=True):
            self.register_buffer(name, factor, persistent=False)

    def forward(self, x_S: Tensor) -> Tensor:
        x_S = x_S.reshape(-1)
        x_S = functional.pad(x_S, (0, self.signs_BS.shape[1] - len(x_S)))
        return hadamard.transform(self.signs_BS * (x_S * self.scale), self.high, self.low)
