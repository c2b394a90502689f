"""Runs that reports are made of: trained once, copied by every test that damages them."""

import shutil
from pathlib import Path

import pytest
import runs

SHORT = "--train.updates 20 --evaluate.episodes 2 --environment.max_episode_steps 15"
COINS = """--train.updates 9 --train.steps none --algorithm.rollout_steps 3 --algorithm.minibatches 1
    --generator.source direct --policy.hidden 4 --evaluate.episodes 2"""
SILENT = "--algorithm.rollout steps --algorithm.rollout_steps 1 --algorithm.baseline true --algorithm.normalize_over"
MORE = {"early-3": ["--train.target", "0.5"], "silent-4": [*SILENT.split(), "update"]}  # one update; no episode ends
NAMES = ("circuit-0", "circuit-1", "circuit-2", "direct-1", "direct-2", "frozen_random-0", *MORE)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Name -> run directory; not to be changed."""
    made, folder = {}, tmp_path_factory.mktemp("runs")
    for name in NAMES:
        source, _, seed = name.rpartition("-")
        more = MORE.get(name) or ["--generator.source", source]
        words = [*SHORT.split(), "--train.seed", seed, *more]
        made[name] = runs.trained(folder / name, *words, preset="qtrl-cartpole")
    return made


@pytest.fixture(scope="session")
def coins(tmp_path_factory):
    """A run with two agents, player_0 and player_1; not to be changed. In some of its updates no episode ends."""
    words = ["--environment.kwargs", '{"max_cycles": 5}', *COINS.split()]
    return runs.trained(tmp_path_factory.mktemp("coins") / "run", *words, preset="coin-game")


@pytest.fixture
def copied(trained, tmp_path):
    """copied(name, ...) -> copies of those runs, tmp_path/runs/name."""
    return lambda *names: [Path(shutil.copytree(trained[name], tmp_path / "runs" / name)) for name in names]
