"""Derivatives by hand, in NumPy: of the policy's and the value network, and of log probabilities and entropies.

Networks of this size are bound by calls: a forward and a backward pass takes half to a fifth of what torch's autograd
takes, which it equals to rounding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from distqtrl.policy.distribution import HALF_LOG_2PI, Array, Categorical, Gaussian, Head
from distqtrl.policy.network import Architecture

Layer = tuple[np.ndarray, np.ndarray]  # a weight (N, K) and a bias (N,)


def cut(shapes: Iterable[tuple[int, int]], flat_M: np.ndarray) -> list[Layer]:
    """A flat vector as the layers of a network, views of it (``network.unpack`` of an array)."""
    out, start = [], 0
    for o, i in shapes:
        middle = start + o * i
        out.append((flat_M[start:middle].reshape(o, i), flat_M[middle : middle + o]))
        start = middle + o
    return out


def forward(layers: list[Layer], activation: str, x_BK: np.ndarray) -> list[np.ndarray]:
    """What every layer reads, and behind it what the last one gives, (B, N)."""
    seen = [x_BK]
    for weight, bias in layers:
        if len(seen) > 1:
            x = seen[-1]
            _ = np.tanh(x, out=x) if activation == "tanh" else np.maximum(x, 0, out=x)
        x = seen[-1] @ weight.T
        x += bias
        seen.append(x)
    return seen


def backward(layers: list[Layer], activation: str, seen: list[np.ndarray], slope_BN: np.ndarray) -> np.ndarray:
    """dL/d of all weights, flat, given dL/d of the outputs; seen: what ``forward`` gave."""
    flat_M = np.empty(sum(weight.size + bias.size for weight, bias in layers), slope_BN.dtype)
    into, ones_B = cut([weight.shape for weight, _ in layers], flat_M), np.ones(len(slope_BN), slope_BN.dtype)
    for k in range(len(layers) - 1, -1, -1):
        np.matmul(slope_BN.T, seen[k], out=into[k][0])
        np.matmul(ones_B, slope_BN, out=into[k][1])
        if k:
            weight = layers[k][0]
            slope_BN = slope_BN * weight if len(weight) == 1 else slope_BN @ weight  # the former is faster there
            slope_BN *= 1 - seen[k] * seen[k] if activation == "tanh" else seen[k] > 0
    return flat_M


def of_weights(architecture: Architecture, by: np.ndarray) -> np.ndarray:
    """dL/d w_M, given dL/d of all matrices and biases that w_M makes (``backward``): a convolution's are summed up."""
    if not (front := architecture.front):
        return by
    own = [c.summed(*layer) for c, layer in zip(front, cut([c.shape for c in front], by), strict=True)]
    return np.concatenate([*own, by[sum(o * i + o for o, i in (c.shape for c in front)) :]])


@dataclass
class Scores:
    """Log probabilities of actions and entropies, (B,).

    pull: dL/d of the former (B,) and of the entropies' sum (a number) -> dL/d outputs (B, A), and dL/d log_std (A,).
    """

    log_prob_B: Array
    entropy_B: Array
    pull: Callable[[Array, float], tuple[Array, Array]]


def scores(head: Head, outputs_BA: Array, actions: np.ndarray, log_std_A: Array) -> Scores:
    """What ``head.log_prob`` and ``head.entropy`` say, with their derivatives."""
    if isinstance(head, Categorical):
        return _categorical(outputs_BA, actions, log_std_A)
    if isinstance(head, Gaussian):
        return _gaussian(outputs_BA, actions, log_std_A)
    return _by_autograd(head, outputs_BA, actions, log_std_A)


def _categorical(logits_BA: Array, actions_B: np.ndarray, log_std_A: Array) -> Scores:
    log_p_BA = logits_BA - logits_BA.max(-1, keepdims=True)
    log_p_BA -= np.log(np.exp(log_p_BA).sum(-1, keepdims=True))
    p_BA, rows_B = np.exp(log_p_BA), np.arange(len(actions_B))
    entropy_B = -(p_BA * log_p_BA).sum(-1)

    def pull(by_log_prob_B: Array, by_entropy: float) -> tuple[Array, Array]:
        by_BA = -by_log_prob_B[:, np.newaxis] * p_BA
        by_BA[rows_B, actions_B] += by_log_prob_B
        if by_entropy:
            by_BA -= by_entropy * p_BA * (log_p_BA + entropy_B[:, np.newaxis])
        return by_BA, np.zeros_like(log_std_A)

    return Scores(log_p_BA[rows_B, actions_B], entropy_B, pull)


def _gaussian(mean_BA: Array, actions_BA: np.ndarray, log_std_A: Array) -> Scores:
    steep_A = np.exp(-log_std_A)
    z_BA = (actions_BA - mean_BA) * steep_A
    log_prob_B = (-0.5 * z_BA * z_BA).sum(-1) - (log_std_A + HALF_LOG_2PI).sum()

    def pull(by_log_prob_B: Array, by_entropy: float) -> tuple[Array, Array]:
        by_BA = by_log_prob_B[:, np.newaxis] * z_BA
        return by_BA * steep_A, (by_BA * z_BA).sum(0) - by_log_prob_B.sum() + by_entropy * len(z_BA)

    entropy_B = np.full_like(log_prob_B, (log_std_A + (0.5 + HALF_LOG_2PI)).sum())
    return Scores(log_prob_B, entropy_B, pull)


def _by_autograd(head: Head, outputs_BA: Array, actions: np.ndarray, log_std_A: Array) -> Scores:
    """For heads whose derivatives are not written out."""
    leaves = [torch.from_numpy(x).requires_grad_() for x in (outputs_BA, log_std_A)]
    found = [head.log_prob(leaves[0], torch.from_numpy(actions), leaves[1]), head.entropy(*leaves)]

    def pull(by_log_prob_B: Array, by_entropy: float) -> tuple[Array, Array]:
        along = [torch.from_numpy(by_log_prob_B), torch.full_like(found[1], by_entropy)]
        by_BA, by_A = torch.autograd.grad(found, leaves, along, materialize_grads=True)
        return by_BA.numpy(), by_A.numpy()

    return Scores(found[0].detach().numpy(), found[1].detach().numpy(), pull)
