"""A SLURM for the tests of a module."""

import private_slurm
import pytest
from needs import need


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    need(private_slurm.missing())
    with private_slurm.cluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up
