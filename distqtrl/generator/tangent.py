"""How the weights move when the angles do, and coordinates of the angles in which that is isotropic.

    J_SP = d p / d theta        by shifted circuits, exact
    G_PP = mean over weights m of (d w_m / d theta)^T (d w_m / d theta) / s_m^2,      s_m = 1/sqrt(3 fan_in)

    theta_P = start_P + (G + damping mean(G))^(-1/2) u_P / sqrt(P)

A step of u moves the weights, in units of a fresh policy's deviation, as far as the same step of the d = P free
numbers of a random subspace does. This is natural gradient descent (Amari 1998) in the metric of the weights, as long
as the tangent stays what it was; where mapping.gain is large the angles move little, and it does. Otherwise the
coordinates can be made anew where the angles have come to; moments of an optimizer stay those of the old ones.
"""

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl.mapping.model import Mapping

MOST_ROWS = 4096  # weights that the metric is the mean over


class Whitened(nn.Module):
    """() -> theta_P, float64, of coordinates that are 0 where the metric was taken."""

    start_P: Tensor
    basis_PP: Tensor

    def __init__(self, start_P: Tensor, metric_PP: Tensor, damping: float) -> None:
        super().__init__()
        self.damping = damping
        self.register_buffer("start_P", start_P.clone())
        self.register_buffer("basis_PP", _basis(metric_PP, damping))
        self.u_P = nn.Parameter(torch.zeros_like(start_P))

    def forward(self) -> Tensor:
        return self.start_P + self.basis_PP @ self.u_P

    @torch.no_grad()
    def restart(self, metric_PP: Tensor) -> None:
        """New coordinates of the angles as they stand, of the metric there."""
        self.start_P.copy_(self())
        self.basis_PP.copy_(_basis(metric_PP, self.damping))
        self.u_P.zero_()


def _basis(metric_PP: Tensor, damping: float) -> Tensor:
    value_P, vector_PP = torch.linalg.eigh(metric_PP)
    floor = damping * value_P.clamp(min=0).mean()
    scaled = vector_PP * (value_P.clamp(min=0) + floor).rsqrt()
    return scaled @ vector_PP.T / len(metric_PP) ** 0.5


def metric(mapping: Mapping, p_S: Tensor, jacobian_SP: Tensor) -> Tensor:
    """G_PP of the weights' tangent (module docstring), from at most MOST_ROWS of the weights."""
    p_S = p_S.detach().clone().requires_grad_()
    index_N = rows(mapping.num_weights)
    fan_in_M = torch.cat([torch.full((size,), float(fan_in)) for size, fan_in in mapping.layers])
    w_N = mapping.rows(p_S, index_N) * (3 * fan_in_M[index_N]).sqrt()
    jacobian_NP = pushed(w_N, p_S, jacobian_SP.T)
    return jacobian_NP.T @ jacobian_NP / len(index_N)


def pushed(w_N: Tensor, x: Tensor, directions_PX: Tensor) -> Tensor:
    """dw/dx times every direction, as columns (N, P) in float64.

    Forward mode out of two reverse passes: the gradient by x is linear in its cotangent v, so that its own gradient by
    v is the product with a direction. Unlike torch's forward mode it needs no rule of its own for any operation.
    """
    v_N = torch.zeros_like(w_N, requires_grad=True)  # products, and no cotangents as arguments: those load sympy
    (pulled,) = torch.autograd.grad((w_N * v_N).sum(), x, create_graph=True, materialize_grads=True)
    if not pulled.requires_grad:  # w does not depend on x
        return w_N.new_zeros(len(w_N), len(directions_PX), dtype=torch.float64)
    columns = []
    for direction in directions_PX:
        product = (pulled * direction.view_as(pulled).to(pulled.dtype)).sum()
        columns.append(torch.autograd.grad(product, v_N, retain_graph=True)[0].double())
    return torch.stack(columns, dim=1) if columns else w_N.new_zeros(len(w_N), 0, dtype=torch.float64)


def rows(num_weights: int, most: int = MOST_ROWS) -> Tensor:
    """Which weights stand for all, at most so many."""
    if num_weights <= most:
        return torch.arange(num_weights)
    return torch.from_numpy(np.random.default_rng(0).choice(num_weights, most, replace=False))
