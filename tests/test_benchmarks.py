"""Benchmark scripts run in their quick mode and write what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distqtrl import config

ROOT = Path(__file__).parents[1]


def test_cartpole(tmp_path, mpirun):
    script = ROOT / "benchmarks" / "solve.py"
    subprocess.run([sys.executable, script, "--quick", "-o", tmp_path], check=True, timeout=120)
    results = json.loads((tmp_path / "cartpole.json").read_text())
    assert [row["seed"] for row in results["seeds"]] == [100, 101]
    assert all(row["env_steps"] == 8320 for row in results["seeds"])  # the first whole update past the budget
    assert 0.9 < sum(results["summary"]["share"].values()) < 1.1
    assert "| seed |" in (tmp_path / "cartpole.md").read_text()


@pytest.mark.parametrize(("preset", "seeds"), [("cartpole", 10), ("acrobot", 3), ("frozenlake", 3), ("pendulum", 3)])
def test_committed_results_are_of_the_preset_as_it_is(preset, seeds):
    results = json.loads((ROOT / "benchmarks" / "results" / f"{preset}.json").read_text())
    assert config.validated(results["config"], preset) == config.preset(preset)  # keys added since have their default
    assert len(results["seeds"]) == seeds
