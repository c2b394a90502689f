"""Walsh-Hadamard transform: y_k = sum_i (-1)^(k.i) x_i."""

import torch
from torch import Tensor


def matrix(n: int, dtype: torch.dtype) -> Tensor:
    """H (2^n, 2^n) of ones and minus ones.

    >>> matrix(1, torch.float64).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    h = torch.ones(1, 1, dtype=dtype)
    for _ in range(n):
        h = torch.cat([torch.cat([h, h], dim=1), torch.cat([h, -h], dim=1)])
    return h


def factors(n: int, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """H of n bits as a Kronecker product: of its upper half of the bits, and of its lower half."""
    return matrix(n - n // 2, dtype).to(device), matrix(n // 2, dtype).to(device)


def transform(x_BS: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Every row times H, which ``factors`` gave.

    >>> rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    >>> transform(rows, *factors(2, rows.dtype)).tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, 1.0]]
    """
    y: Tensor = high @ (x_BS.reshape(len(x_BS), len(high), len(low)) @ low)
    return y.reshape(x_BS.shape)
