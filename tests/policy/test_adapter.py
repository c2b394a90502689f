"""A frozen base plus an update of low rank."""

import numpy as np
import pytest
import torch

from distqtrl.config.frozen import Adapter as Settings
from distqtrl.config.stages import Quantize
from distqtrl.errors import UserError
from distqtrl.policy import adapter, network
from distqtrl.policy.distribution import Categorical
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize import blocks
from distqtrl.quantize.aware import Trained

SHAPE = Architecture(16, (32,), 2, "relu")


@pytest.fixture
def path(tmp_path):
    w_M = torch.randn(SHAPE.num_weights, generator=torch.Generator().manual_seed(0))
    Policy(SHAPE, Categorical(2), w_M, Normalizer.fresh(16), {}).save(tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def factors(rank, seed):
    num = sum(size for size, _ in adapter.layers(SHAPE, rank))
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rank", [1, 3])
def test_it_starts_at_the_base_and_changes_by_low_rank(rank):
    base_M = torch.randn(SHAPE.num_weights, dtype=torch.float64)
    start, later = factors(rank, 1), factors(rank, 2)
    made = adapter.Adapter(SHAPE, rank, base_M, start)
    assert torch.equal(made(start), base_M)
    change = made(later) - made(start)
    for (weight, bias), (b, a) in zip(network.unpack(SHAPE, change), expected(later, rank), strict=True):
        b0, a0 = expected(start, rank)[0 if weight.shape[1] == 16 else 1]
        torch.testing.assert_close(weight, b[:-1].T @ a - b0[:-1].T @ a0, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(bias, b[-1] - b0[-1], atol=1e-12, rtol=1e-12)
        assert torch.linalg.matrix_rank(weight.detach()) == min(2 * rank, *weight.shape)
    made(later).sum().backward()
    assert (later.grad != 0).double().mean() > 0.9


def expected(factors_F, rank):
    """(B with the bias as its last row, transposed; A) of every layer, cut by hand."""
    out, at = [], 0
    for o, i in SHAPE.shapes:
        a = factors_F[at : at + rank * i].view(rank, i)
        b = factors_F[at + rank * i : at + rank * (i + o)].view(o, rank)
        bias = factors_F[at + rank * (i + o) : at + rank * (i + o) + o]
        out.append((torch.cat([b.T, bias[None]]), a))
        at += rank * (i + o) + o
    return out


def test_the_base_is_rounded(path):
    found = adapter.base(Settings(base=str(path), precision="nvfp4"), SHAPE, Categorical(2))
    plain = adapter.base(Settings(base=str(path)), SHAPE, Categorical(2))
    for (weight, bias), (was, same) in zip(*(network.unpack(SHAPE, p.w_M) for p in (found, plain)), strict=True):
        np.testing.assert_array_equal(weight.numpy(), blocks.rounded("nvfp4", was.numpy()))
        assert torch.equal(bias, same)


def test_a_base_of_another_shape_is_refused(path):
    with pytest.raises(
        UserError, match=r"a \(16, 32, 2\) relu policy, this run's is \(16, 8, 2\) relu: set policy.hid"
    ):
        adapter.base(Settings(base=str(path)), Architecture(16, (8,), 2, "relu"), Categorical(2))
    trained = Policy(SHAPE, Categorical(2), torch.zeros(SHAPE.num_weights), Normalizer.fresh(16), {})
    trained.trained = Trained(Quantize(), np.ones(3))
    trained.save(path)
    with pytest.raises(UserError, match="was trained on integers"):
        adapter.base(Settings(base=str(path)), SHAPE, Categorical(2))
    seen = Architecture(16, (3,), 2, "relu", (1, 4, 4, 1), ("2x3",))
    Policy(seen, Categorical(2), torch.zeros(seen.num_weights), Normalizer.fresh(16), {}).save(path)
    with pytest.raises(UserError, match=r"has convolutions \(2x3\)"):  # the same widths are another policy
        adapter.base(Settings(base=str(path)), Architecture(16, (8, 3), 2, "relu"), Categorical(2))
    with pytest.raises(UserError, match="absent"):
        adapter.base(Settings(base="absent"), SHAPE, Categorical(2))
