"""What moves the weights: the spectrum of J = d w_M / d(trained numbers), and the source's share of it.

    directions_99    how many singular directions hold 99 % of |J|^2
    participation    (sum s^2)^2 / sum s^4 of the singular values s: how many directions count (Hill number of order 2)
    source_share     |J_source|^2 / |J|^2: what angles (or free numbers) move, of all that trained numbers move

Of the ideal circuit, also where there are shots or noise. Exact for up to 4096 weights; of more, as many of every layer
stand for all, each for its part of the layer. Where J has more than MOST_PRODUCTS columns times basis states it is made
row by row, of 256 weights or fewer: the first two are lower bounds then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distqtrl.generator import tangent
from distqtrl.generator.factors import Layers
from distqtrl.generator.generator import Generator

HELD = 0.99
MOST_PRODUCTS = 2**21  # columns times basis states: about a second of products


@dataclass(frozen=True)
class Diagnostics:
    """Facts of the Jacobian where the parameters stand (module docstring)."""

    directions_99: int
    participation: float
    source_share: float


def diagnose(generator: Generator) -> Diagnostics:
    """The diagnostics of one policy's generator, which is left as it is.

    >>> from distqtrl.config.run import validated
    >>> direct = Generator(validated({"generator": {"source": "direct"}}, "here"), [(10, 4), (6, 2)])
    >>> diagnose(direct)
    Diagnostics(directions_99=16, participation=16.0, source_share=1.0)
    """
    if generator.mapping is None and generator.factors is None:
        return Diagnostics(generator.num_weights, float(generator.num_weights), 1.0)
    source_NX, mapping_NX = jacobian(generator)
    total_NX = torch.cat([source_NX, mapping_NX], dim=1)
    small = total_NX.T @ total_NX if total_NX.shape[1] <= len(total_NX) else total_NX @ total_NX.T
    energy = torch.linalg.eigvalsh(small).clamp(min=0).flip(0)
    whole = energy.sum()
    if not whole > 0:
        return Diagnostics(0, 0.0, 0.0)
    held = int(torch.searchsorted(energy.cumsum(0), HELD * whole)) + 1
    of_source, of_mapping = source_NX.square().sum(), mapping_NX.square().sum()
    share = float(of_source / (of_source + of_mapping))
    return Diagnostics(min(held, len(energy)), float(whole**2 / energy.square().sum()), share)


def jacobian(generator: Generator) -> tuple[Tensor, Tensor]:
    """J of what the source trains and of what the mapping trains, at the weights that stand for all: (N, .) each.

    J^T J is that of all weights, on average over samples.
    """
    source, mapping = generator.of_source(), generator.of_mapping()
    count = sum(p.numel() for p in (*source, *mapping))
    states = 1 if generator.mapping is None else 2**generator.mapping.num_qubits
    index_N, weight_N = rows(generator.layers, tangent.MOST_ROWS)
    if count > len(index_N) or count * states > MOST_PRODUCTS:
        return _by_rows(generator, max(16, min(256, MOST_PRODUCTS // states)))
    if generator.mapping is None:
        w_N = generator.ideal_rows(index_N) * weight_N
        return _by_columns(w_N, source), torch.zeros(len(index_N), 0, dtype=torch.float64)
    p_S = generator.ideal_probabilities().detach().requires_grad_()
    w_N = generator.mapping.rows(p_S, index_N) * weight_N
    return tangent.pushed(w_N, p_S, generator.source_tangent().T), _by_columns(w_N, mapping)


def rows(layers: Layers, most: int) -> tuple[Tensor, Tensor]:
    """Weights that stand for all, as many of every layer, and the root of how many each stands for.

    >>> index_N, weight_N = rows([(9, 1), (3, 2)], most=6)
    >>> sum(index_N >= 9).item(), weight_N.square().sum().item()
    (3, 12.0)
    """
    total, start, parts = sum(size for size, _ in layers), 0, []
    for size, _ in layers:
        index_N = tangent.rows(size, size if total <= most else most // len(layers))
        parts.append((start + index_N, torch.full((len(index_N),), (size / len(index_N)) ** 0.5)))
        start += size
    index, weight = zip(*parts, strict=True)
    return torch.cat(index), torch.cat(weight)


def _by_columns(w_N: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """dw/d(parameters), by one product for every number that is trained."""
    parts = [tangent.pushed(w_N, p, torch.eye(p.numel(), dtype=torch.float64)) for p in parameters]
    return torch.cat([w_N.new_zeros(len(w_N), 0, dtype=torch.float64), *parts], dim=1)


def _by_rows(generator: Generator, most: int) -> tuple[Tensor, Tensor]:
    """Both parts, by one gradient for every weight of a sample."""
    source, mapping = generator.of_source(), generator.of_mapping()
    index_N, weight_N = rows(generator.layers, most)
    parts = []
    for w in generator.ideal_rows(index_N) * weight_N:
        gradients = torch.autograd.grad(w, [*source, *mapping], retain_graph=True, materialize_grads=True)
        parts.append(torch.cat([g.flatten().double() for g in gradients]))
    j_NX, split = torch.stack(parts), sum(p.numel() for p in source)
    return j_NX[:, :split], j_NX[:, split:]
