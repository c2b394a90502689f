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

MOST_OF_ROWS = 8  # numbers per weight: what rows of R may take, where only some are asked for


class Expansion(nn.Module):
    """x_S -> out, of at least M numbers, or of those asked for. Signs are drawn from torch's generator, in no file."""

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

    def forward(self, x_S: Tensor, index_N: Tensor | None = None) -> Tensor:
        x_S, width = x_S.reshape(-1), self.signs_BS.shape[1]
        x_S = functional.pad(x_S, (0, width - len(x_S))) * self.scale
        if index_N is not None and len(index_N) * width <= MOST_OF_ROWS * self.signs_BS.numel():
            return self._rows(index_N) @ x_S
        out_BS = hadamard.transform(self.signs_BS * x_S, self.high, self.low)
        return out_BS if index_N is None else out_BS.view(-1)[index_N]

    def _rows(self, index_N: Tensor) -> Tensor:
        """These rows of R."""
        block_N, k_N = index_N // self.signs_BS.shape[1], index_N % self.signs_BS.shape[1]
        high, low = self.high[k_N // len(self.low)], self.low[k_N % len(self.low)]
        return self.signs_BS[block_N] * (high.unsqueeze(2) * low.unsqueeze(1)).flatten(1)
