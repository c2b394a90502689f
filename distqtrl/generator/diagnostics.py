"""What moves the weights: the spectrum of J = d w_M / d(trained numbers), and the source's share of it.

    directions_99    how many singular directions hold 99 % of |J|^2
    participation    (sum s^2)^2 / sum s^4 of the singular values s: how many directions count (Hill number of order 2)
    source_share     |J_source|^2 / |J|^2: what angles (or free numbers) move, of all that trained numbers move

Exact for up to MOST_ROWS weights; of more, a fixed sample stands for all. Without shots and noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distqtrl.generator import tangent
from distqtrl.generator.generator import Generator

HELD = 0.99


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
    share = float(source_NX.square().sum() / whole)
    return Diagnostics(min(held, len(energy)), float(whole**2 / energy.square().sum()), min(share, 1.0))


def jacobian(generator: Generator) -> tuple[Tensor, Tensor]:
    """J of what the source trains and of what the mapping trains, at the weights that stand for all: (N, .) each."""
    index_N = tangent.rows(generator.num_weights)
    if generator.mapping is None:
        assert generator.factors is not None
        return _by(generator()[index_N], list(generator.factors.parameters())), torch.zeros(len(index_N), 0)
    p_S = generator.ideal_probabilities().detach().requires_grad_()
    w_N = generator.mapping(p_S)[index_N]
    source_SX = generator.source_tangent()
    return tangent.pushed(w_N, p_S, source_SX.T), _by(w_N, list(generator.of_mapping()))


def _by(w_N: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """dw/d(parameters), a column per number, by as many products as there are numbers or weights, the fewer of both."""
    count = sum(p.numel() for p in parameters)
    if not parameters:
        return w_N.new_zeros(len(w_N), 0, dtype=torch.float64)
    if count <= len(w_N):
        parts = [tangent.pushed(w_N, p, torch.eye(p.numel(), dtype=torch.float64)) for p in parameters]
        return torch.cat(parts, dim=1)
    rows = []
    for w in w_N:
        gradients = torch.autograd.grad(w, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]).double())
    return torch.stack(rows)
