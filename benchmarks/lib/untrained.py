"""Policies of random weights: what a policy of these sizes and bits costs, not how it acts."""

from itertools import pairwise

import numpy as np

from distqtrl.policy import lower
from distqtrl.policy.distribution import Gaussian
from distqtrl.quantize.calibrate import CLIPPED, Network, quantized
from distqtrl.quantize.formats import Bits
from distqtrl.quantize.program import Program


def policy(sizes: tuple[int, ...], bits: Bits, seed: int = 0) -> tuple[Network, Program]:
    """A float network with a Gaussian head, normal observations, and its integer program."""
    rng = np.random.default_rng(seed)
    made = tuple((rng.normal(size=(n, k)) / k**0.5, rng.normal(size=n) / 4) for k, n in pairwise(sizes))
    net = Network(made, "relu", np.zeros(sizes[0]), np.ones(sizes[0]), 10.0, CLIPPED)
    head = Gaussian((-1.0,) * sizes[-1], (1.0,) * sizes[-1])
    return net, lower.pruned(lower.program(quantized(net, rng.normal(size=(4000, sizes[0])), bits), head))
