"""One optimizer step of several policies, with one reduction."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distqtrl.training.gradient import Array
from distqtrl.training.learner import Replica


def pull_back(replicas: Sequence[Replica], cotangents: Sequence[Tensor]) -> None:
    """Send each one's dL/dw_M through its generator, into the gradients of its parameters."""
    first, weights = replicas[0], [r.weights() for r in replicas]
    with first.profile("generate"):
        if any(w_M.requires_grad for w_M in weights):
            # not w_M.backward(cotangent_M), which imports sympy: a second of every rank's start
            products = [torch.dot(w_M, v_M) for w_M, v_M in zip(weights, cotangents, strict=True)]
            first._on_devices(lambda: torch.stack(products).sum().backward())


def descend_policies(
    replicas: Sequence[Replica],
    parameters: Sequence[Sequence[Tensor]],
    sums: Sequence[Array],
    shares: Sequence[float],
    where: str,
) -> tuple[list[Array], list[float]]:
    """One step of several replicas with one reduction, on parameters that each one's policy is among.

    shares: the parts of the step's samples that are this rank's. Returns every replica's sums and gradient norm; raises
    as ``Replica.descend``.
    """
    seen = [r._warmed(share) for r, share in zip(replicas, shares, strict=True)]
    moving = [r._stepping(p) for r, p in zip(replicas, parameters, strict=True)]
    flats = [r._flat(p, np.concatenate([s, x])) for r, p, s, x in zip(replicas, moving, sums, seen, strict=True)]
    whole = replicas[0]._total(np.concatenate(flats), where)
    norms, means, steps = [], [], replicas[0].num_steps + 1
    totals = np.split(whole, np.cumsum([len(flat) for flat in flats])[:-1])
    for r, p, s, x, total in zip(replicas, moving, sums, seen, totals, strict=True):
        gradient_N, mean, scales_S = np.split(total, [total.size - len(s) - len(x), total.size - len(x)])
        norms.append(r._move(p, gradient_N))
        means.append(mean)
        if len(x) and r.quantizer is not None:
            r.quantizer.update_scales(scales_S)
        r._w_M = None
    replicas[0].generated.forget(steps)
    return means, norms
