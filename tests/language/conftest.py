"""Decoders of every family, and models made of them."""

import pytest
import torch
from decoders import FAMILIES, write

from distqtrl.language import checkpoint
from distqtrl.language.model import Model


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """Family -> the directory of a decoder with two layers of width 64."""
    place = tmp_path_factory.mktemp("decoders")
    return {family: write(place / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def models(directories):
    """models(family, precision, dtype) -> a model whose linear layers are all targets; made once, and started."""
    made = {}

    def model(family="qwen2", precision="none", dtype=torch.float32):
        key = (family, precision, dtype)
        if key not in made:
            found = Model(checkpoint.opened(directories[family]), precision, rank=4, targets=("proj",), dtype=dtype)
            found.start(factors(found, 0))
            made[key] = found
        return made[key]

    return model


def factors(model, seed):
    """Factors that change what is said."""
    return torch.randn(model.num_factors, generator=torch.Generator().manual_seed(seed)).to(model.dtype) * 0.2
