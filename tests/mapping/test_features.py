"""What a mapping reads of probabilities, beside NumPy and sums over basis states."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from distqtrl.config.stages import MappingModel
from distqtrl.mapping.features import FEATURES

P_S = torch.tensor([0.4, 0.1, 0.05, 0.2, 0.0, 0.125, 0.025, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (0.8, 0.6), (0.8, 0.3)])
def test_the_papers(beta, alpha):
    p_S = [0.5, 0.25, 0.125, 0.0]
    x_S = FEATURES["tanh"](torch.tensor(p_S, dtype=torch.float64), MappingModel(beta=beta, alpha=alpha), 4)
    assert x_S.dtype == torch.float64
    expected = [(beta * math.tanh(0.1 * 8 * p)) ** alpha for p in p_S]
    np.testing.assert_allclose(x_S, expected, rtol=0, atol=1e-15)


def test_linear_and_logarithm():
    np.testing.assert_allclose(FEATURES["linear"](P_S, MappingModel(), 3), 8 * P_S.numpy() - 1, rtol=0, atol=1e-15)
    x_S = FEATURES["logarithm"](P_S, MappingModel(), 3)
    some_S = P_S.numpy() > 0
    np.testing.assert_allclose(x_S.numpy()[some_S], np.log(8 * P_S.numpy()[some_S]), rtol=0, atol=1e-15)
    assert x_S.isfinite().all()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_correlators_of_few_wires(most):
    expected = []
    for wires in product([0, 1], repeat=3):  # which wires are in <Z..Z>, wire 0 first
        signs = [(-1) ** sum(a * b for a, b in zip(wires, bits, strict=True)) for bits in product([0, 1], repeat=3)]
        expected.append(8**0.5 * float(np.dot(signs, P_S.numpy())) if 1 <= sum(wires) <= most else 0.0)
    x_S = FEATURES["walsh"](P_S, MappingModel(walsh_weight=most), 3)
    np.testing.assert_allclose(x_S, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_has_a_gradient(name):
    p_S = P_S.clone().clamp(min=1e-3).requires_grad_()
    torch.autograd.gradcheck(lambda p: FEATURES[name](p, MappingModel(alpha=0.5), 3), (p_S,))
