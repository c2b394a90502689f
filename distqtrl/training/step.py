"""One optimizer step of several policies, with one reduction."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distqtrl.training.gradient import Array
from distqtrl.training.learner import Learner


def pull_back(learners: Sequence[Learner], cotangents: Sequence[Tensor]) -> None:
    """Send each one's dL/dw_M through its generator, into the gradients of its parameters."""
    first, weights = learners[0], [r.weights() for r in learners]
    with first.profile("generate"):
        if any(w_M.requires_grad for w_M in weights):
            # not w_M.backward(cotangent_M), which imports sympy: a second of every rank's start
            products = [torch.dot(w_M, v_M) for w_M, v_M in zip(weights, cotangents, strict=True)]
            first._on_devices(lambda: torch.stack(products).sum().backward())


def descend_policies(
    learners: Sequence[Learner],
    parameters: Sequence[Sequence[Tensor]],
    sums: Sequence[Array],
    shares: Sequence[float],
    where: str,
) -> tuple[list[Array], list[float]]:
    """One step of several learners with one reduction, on parameters that each one's policy is among.

    shares: the parts of the step's samples that are this rank's. Returns every replica's sums and gradient norm; raises
    as ``Learner.descend``.
    """
    seen = [learner._warmed(share) for learner, share in zip(learners, shares, strict=True)]
    moving = [learner._stepping(p) for learner, p in zip(learners, parameters, strict=True)]
    flats = [
        learner._flat(p, np.concatenate([s, x])) for learner, p, s, x in zip(learners, moving, sums, seen, strict=True)
    ]
    whole = learners[0]._total(np.concatenate(flats), where)
    norms, means, steps = [], [], learners[0].num_steps + 1
    totals = np.split(whole, np.cumsum([len(flat) for flat in flats])[:-1])
    for learner, p, s, x, total in zip(learners, moving, sums, seen, totals, strict=True):
        gradient_N, mean, scales_S = np.split(total, [total.size - len(s) - len(x), total.size - len(x)])
        norms.append(learner._move(p, gradient_N))
        means.append(mean)
        if len(x) and learner.quantizer is not None:
            learner.quantizer.update_scales(scales_S)
        learner._w_M = None
    learners[0].generated.forget(steps)
    return means, norms
