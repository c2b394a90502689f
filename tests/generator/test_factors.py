"""Low rank and tensor trains: the change that they make, 0 at the start, and how many numbers they take."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.errors import UserError
from distqtrl.generator.factors import LowRank, TensorTrain

LAYERS = [(640, 4), (258, 128)]
KINDS = {"low_rank": LowRank, "tensor_train": TensorTrain}


@pytest.mark.parametrize("name", KINDS)
@given(most=st.integers(264, 3000), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_no_more_numbers_and_no_change_at_the_start(name, most, seed):
    torch.manual_seed(seed)
    made = KINDS[name](LAYERS, most)
    assert sum(p.numel() for p in made.parameters()) <= most
    assert torch.equal(made(), torch.zeros(898))
    (made().square().sum() + made().sum()).backward()
    assert any(p.grad.abs().max() > 0 for p in made.parameters())


def test_low_rank_is_a_product_in_every_layer():
    made = LowRank(LAYERS, 600)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    change, start = made().detach().numpy(), 0
    for (outputs, inputs), a, b in zip([(128, 4), (2, 128)], made.a, made.b, strict=True):
        both = (3 * inputs) ** -0.5 * b.detach().numpy() @ a.detach().numpy()
        weight = change[start : start + outputs * inputs].reshape(outputs, inputs)
        bias = change[start + outputs * inputs : start + outputs * (inputs + 1)]
        np.testing.assert_allclose(np.column_stack([weight, bias]), both, rtol=1e-5, atol=1e-6)
        assert np.linalg.matrix_rank(weight) == 2
        start += outputs * (inputs + 1)


def test_a_tensor_train_is_a_chain_of_matrices_at_every_index():
    made = TensorTrain([(64, 4)], 60)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    cores = [core.detach().numpy() for core in made.cores]
    whole = np.einsum("aib,bjc,ckd->ijk", *cores).reshape(-1)
    np.testing.assert_allclose(made().detach(), whole * 12**-0.5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "least"), [("low_rank", 264), ("tensor_train", 20)])
def test_too_few_numbers_are_refused(name, least):
    with pytest.raises(
        UserError,
        match=f"generator.source {name} needs {least} numbers or more, not 3: set generator.numbers to {least}",
    ):
        KINDS[name](LAYERS, 3)
