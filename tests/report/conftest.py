"""Runs that reports are made of: trained once, copied by every test that damages them."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from distqtrl.cli import main as cli

TINY = "--train.updates 20 --evaluate.episodes 2 --environment.max_episode_steps 15 --train.directory"
COINS = """--train.updates 9 --train.steps none --algorithm.rollout_steps 3 --algorithm.minibatches 1
    --generator.source direct --policy.hidden 4 --evaluate.episodes 2 --train.directory"""
SILENT = "--algorithm.rollout steps --algorithm.rollout_steps 1 --algorithm.baseline true --algorithm.normalize_over"
MORE = {"early-3": ["--train.target", "0.5"], "silent-4": [*SILENT.split(), "update"]}  # one update; no episode ends
NAMES = ("circuit-0", "circuit-1", "circuit-2", "direct-1", "direct-2", "frozen_random-0", *MORE)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Name -> run directory; not to be changed."""
    made = {}
    for source, _, seed in (name.rpartition("-") for name in NAMES):
        more = MORE.get(f"{source}-{seed}") or ["--generator.source", source]
        argv = ["qtrl-cartpole", "--json", *TINY.split(), str(tmp_path_factory.mktemp("runs")), "--train.seed", seed]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(["train", *argv, *more]) == 0
        made[f"{source}-{seed}"] = Path(json.loads(out.getvalue())["run"])
    return made


@pytest.fixture(scope="session")
def coins(tmp_path_factory):
    """A run with two agents, player_0 and player_1; not to be changed. In some of its updates no episode ends."""
    argv = ["coin-game", "--json", "--environment.kwargs", '{"max_cycles": 5}', *COINS.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["train", *argv, str(tmp_path_factory.mktemp("coins"))]) == 0
    return Path(json.loads(out.getvalue())["run"])


@pytest.fixture
def copied(trained, tmp_path):
    """copied(name, ...) -> copies of those runs, tmp_path/runs/name."""
    return lambda *names: [Path(shutil.copytree(trained[name], tmp_path / "runs" / name)) for name in names]
