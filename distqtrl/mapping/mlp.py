"""The papers' mapping: one MLP applied to every basis state by itself (arXiv 2407.06103 code).

The authors' network has no activation (``none``), so it is affine: n + 1 effective numbers, whatever its size.
"""

from itertools import pairwise

from torch import nn


def network(n: int, hidden: tuple[int, ...], chunk: int, activation: nn.Module) -> nn.Module:
    """features_SF -> out_Sc.

    >>> sum(p.numel() for p in network(10, (10, 10, 10), 1, nn.Identity()).parameters())
    351
    """
    layers: list[nn.Module] = []
    for i, o in pairwise((n + 1, *hidden)):
        layers += [nn.Linear(i, o), activation]
    return nn.Sequential(*layers, nn.Linear((n + 1, *hidden)[-1], chunk))
