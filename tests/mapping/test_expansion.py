"""The fixed random matrix: beside the matrix itself, and as a random projection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipys

from distqtrl import mapping
from distqtrl.config.stages import MappingModel
from distqtrl.mapping import hadamard
from distqtrl.mapping.expansion import Expansion
from distqtrl.mapping.model import Mapping


def expansion(n, num_weights, num_features=None, seed=0):
    torch.manual_seed(seed)
    return Expansion(n, num_weights, num_features or 2**n).double()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_transform_is_a_product_with_hadamards_matrix(n):
    x_BS = torch.from_numpy(np.random.default_rng(n).normal(size=(3, 2**n)))
    found = hadamard.transform(x_BS, *hadamard.factors(n, torch.float64))
    np.testing.assert_allclose(found, x_BS.numpy() @ scipys(2**n), rtol=0, atol=1e-12)


@given(n=st.integers(1, 7), num_weights=st.integers(1, 700), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_rows_are_signs_orthogonal_within_a_block(n, num_weights, seed):
    made = expansion(n, num_weights, seed=seed)
    R = torch.stack([made(row).reshape(-1) for row in torch.eye(2**n, dtype=torch.float64)], dim=1) * 2 ** (n / 2)
    assert len(R) >= num_weights
    assert set(R.flatten().round(decimals=9).tolist()) <= {-1.0, 1.0}
    for block in R.split(2**n):
        torch.testing.assert_close(block @ block.T, 2**n * torch.eye(2**n, dtype=torch.float64), rtol=0, atol=1e-9)


def test_outputs_have_the_features_mean_square():
    made = expansion(8, 70_000)
    x_S = torch.from_numpy(np.random.default_rng(0).normal(size=256))
    assert made(x_S).square().mean().item() == pytest.approx(x_S.square().mean().item(), rel=1e-9)


def test_blocks_differ_and_the_seed_decides():
    first, second = expansion(6, 1000), expansion(6, 1000, seed=1)
    assert len(torch.unique(first.signs_BS, dim=0)) == len(first.signs_BS) == 16
    assert torch.equal(first.signs_BS, expansion(6, 1000).signs_BS)
    assert not torch.equal(first.signs_BS, second.signs_BS)


def test_ten_million_weights_take_a_byte_each():
    made = Expansion(10, 10**7, 2**10)
    held = sum(buffer.numel() * buffer.element_size() for buffer in made.buffers())
    assert held < 1.1e7
    assert made(torch.ones(2**10)).numel() >= 10**7


@pytest.mark.parametrize("most", [0, 10**9])
def test_outputs_asked_for_are_those_of_all(monkeypatch, most):
    """Both ways: rows of R, and all outputs."""
    monkeypatch.setattr(mapping.expansion, "MOST_OF_ROWS", most)
    made, x_S = expansion(5, 300, 29), torch.from_numpy(np.random.default_rng(0).normal(size=29))
    index_N = torch.tensor([299, 0, 31, 32, 64, 7, 7])
    torch.testing.assert_close(made(x_S, index_N), made(x_S).view(-1)[index_N], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["expansion", "gnn_expansion", "gnn", "mlp"])
@pytest.mark.parametrize("output", ["residual", "fan_in", "raw"])
def test_weights_asked_for_are_those_of_all(monkeypatch, kind, output):
    monkeypatch.setattr(mapping.expansion, "MOST_OF_ROWS", 10**9)
    torch.manual_seed(0)
    settings = MappingModel(kind=kind, output=output, hidden=(4,), chunk=20)
    made, p_S = Mapping(settings, [(90, 4), (210, 9)], 4).double(), torch.full((16,), 1 / 16, dtype=torch.float64)
    made.calibrate(p_S, torch.linspace(-1, 1, 300, dtype=torch.float64))
    index_N = torch.tensor([299, 0, 89, 90, 5])
    torch.testing.assert_close(made.rows(p_S, index_N), made(p_S)[index_N], rtol=0, atol=1e-12)


def test_few_of_many_weights_are_made_without_the_others(monkeypatch):
    settings = MappingModel(kind="expansion", output="residual", feature="linear")
    made = Mapping(settings, [(10**6, 4)], 8)
    monkeypatch.setattr(hadamard, "transform", None)  # makes all of them
    assert made.rows(torch.full((256,), 1 / 256, dtype=torch.float64), torch.arange(100)).shape == (100,)
