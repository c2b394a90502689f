"""A command of the command line in this process, and a run that it made."""

import shutil

import pytest

from distqtrl.cli import main as cli


@pytest.fixture
def command(capfd):
    """command(*words) -> (exit code, standard output, standard error)."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="session")
def trained_once(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "cartpole", "--run", str(directory), *small, "--mapping.kind", "mlp"]) == 0
    return directory


@pytest.fixture
def trained(trained_once, tmp_path):
    """The directory of a complete run, a copy of its own for every test."""
    return shutil.copytree(trained_once, tmp_path / "run")
