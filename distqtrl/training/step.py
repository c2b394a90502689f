"""One optimizer step of several learners, with one reduction, in five words: zero, loss, backward, reduce, step.

zero(learners)
losses = [...]                                # each learner's own
backward(learners, losses)                    # to dL/dw_M, and through the generators
totals = reduce(learners, losses, where)      # one flat float64 vector over all ranks
norms = step(learners, totals)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from distqtrl.training.gradient import Array, Named, reduced
from distqtrl.training.learner import Learner


@dataclass
class Loss:
    """One learner's loss, and what its step moves."""

    value: Tensor | None  # none: its gradients are known
    leaf_M: Tensor | None  # the generated weights that it is a function of; none = it concerns no policy
    direct: Sequence[Tensor]  # what else it depends on
    moves: range  # places of neighbouring parameters of the learner, so that their gradient is in one piece
    sums: Array  # added up over the ranks beside the gradient
    names: Sequence[str] = ()  # of the first of them, for who must say which was the first that is not finite
    share: float = 1.0  # the part of the step's samples that is this rank's
    local_batch: float = 0.0  # units that this rank's gradient is of, and that of all ranks:
    global_batch: float = 0.0  # where the noise scale is measured (``algorithm.noise_scale``), else 0
    known: Sequence[Tensor] = ()  # gradients by leaf_M and by direct


@dataclass
class Reduced:
    """Summed over the ranks: the gradient of what moves, the loss's sums, and what a quantizer that warms up saw."""

    moves: range
    gradient_N: Array
    sums: Array
    scales_S: Array
    parts: Array  # what the noise scale is made of; nothing where it is not measured
    of_policy: bool


def zero(learners: Sequence[Learner]) -> None:
    """All gradients are 0."""
    for learner in learners:
        learner.gradients.zero()


def backward(learners: Sequence[Learner], losses: Sequence[Loss]) -> None:
    """Add the gradients of everything that the losses depend on."""
    for learner, loss in zip(learners, losses, strict=True):
        leaves = [*loss.direct] if loss.leaf_M is None else [loss.leaf_M, *loss.direct]
        with learner.profile("loss"), torch.no_grad():
            if loss.value is not None:
                loss.value.backward(inputs=leaves)
                continue
            for leaf, gradient in zip(leaves, loss.known, strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
    if losses[0].leaf_M is not None:
        pull_back(learners, [loss.leaf_M.grad for loss in losses])  # type: ignore[union-attr, misc]


def pull_back(learners: Sequence[Learner], cotangents: Sequence[Tensor]) -> None:
    """Send each one's dL/dw_M through its generator, into the gradients of its parameters."""
    generated, weights = learners[0].generated, [learner.weights() for learner in learners]
    with generated.profile("generate"):
        if any(w_M.requires_grad for w_M in weights):
            # not w_M.backward(cotangent_M), which imports sympy: a second of every rank's start
            products = [torch.dot(w_M, v_M) for w_M, v_M in zip(weights, cotangents, strict=True)]
            generated.on_devices(sum(products[1:], products[0]).backward)


def reduce(learners: Sequence[Learner], losses: Sequence[Loss], where: str) -> list[Reduced]:
    """All gradients and sums of the step in one reduction over the ranks, in float64.

    Raises NotFinite, naming the rank, when one is not finite (Diverged on that rank alone while ranks step by
    themselves).
    """
    first, locals_ = learners[0], []
    with first.profile("allreduce"):
        for learner, loss in zip(learners, losses, strict=True):
            seen_S = np.zeros(0) if loss.leaf_M is None else learner.scales_seen(loss.share)
            gradient_N = learner.local_gradient(loss.moves)
            parts = np.zeros(0)
            if loss.global_batch:
                parts = learner.noise_scale.part(learner.of_generator(gradient_N), loss.local_batch, loss.global_batch)
            made = {"gradient_N": gradient_N, "sums": loss.sums, "scales_S": seen_S, "parts": parts}
            locals_.append(Reduced(moves=loss.moves, of_policy=loss.leaf_M is not None, **made))
        pieces = [piece for each in locals_ for piece in (each.gradient_N, each.sums, each.scales_S, each.parts)]
        total = reduced(first.config.allreduce, first.comm, np.concatenate(pieces), where, _named(losses[0], pieces))
    summed = iter(np.split(total, np.cumsum([len(piece) for piece in pieces])[:-1]))
    totals = []
    for each in locals_:
        gradient_N, sums, scales_S, parts = islice(summed, 4)
        totals.append(replace(each, gradient_N=gradient_N, sums=sums, scales_S=scales_S, parts=parts))
    for learner, loss, whole in zip(learners, losses, totals, strict=True):
        if loss.global_batch:
            learner.noise_scale.add(learner.of_generator(whole.gradient_N), whole.parts, loss.global_batch)
    return totals


def _named(loss: Loss, pieces: Sequence[Array]) -> Named:
    """What the numbers of a step of one learner are, where its loss has names for its sums."""
    start, end = len(pieces[0]), sum(len(piece) for piece in pieces)
    sums = [(name, slice(start + i, start + i + 1)) for i, name in enumerate(loss.names)]
    return [*sums, ("gradient", slice(0, start)), ("statistics", slice(start, end))] if sums else []


def step(learners: Sequence[Learner], totals: Sequence[Reduced]) -> list[float]:
    """Move the parameters; returns the norms of the gradients before they were clipped."""
    norms = []
    for learner, total in zip(learners, totals, strict=True):
        norms.append(learner.move(total.moves, total.gradient_N))
        if len(total.scales_S):
            learner.take_scales(total.scales_S)
    if totals[0].of_policy:
        learners[0].generated.moved()
    return norms
