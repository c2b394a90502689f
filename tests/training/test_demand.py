"""Numbers that no memory holds are refused in one line that names the key, before anything is allocated."""

import subprocess
import sys

import pytest
from runs import of_environments

from distqtrl.circuit import memory
from distqtrl.cli import main as cli
from distqtrl.config import sources
from distqtrl.environment.world import make
from distqtrl.errors import UserError
from distqtrl.training import demand
from distqtrl.training.plan import plan

HUGE = [
    ("cartpole", "environment.local_num", ["1000000000"]),
    ("cartpole", "algorithm.rollout_steps", ["1000000000000"]),
    ("cartpole", "policy.hidden", ["10000000", "10000000"]),
    ("cartpole", "policy.hidden", ["1000000000000"]),
    ("cartpole", "algorithm.value_hidden", ["10000000", "10000000"]),
    ("cartpole", "mapping.hidden", ["1000000", "1000000"]),
    ("cartpole", "mapping.chunk", ["1000000000000"]),
    ("cartpole", "circuit.layers", ["1000000000"]),
    ("cartpole", "evaluate.episodes", ["1000000000000"]),
    ("cartpole", "evaluate.validation_episodes", ["1000000000000"]),
    ("cartpole", "qpu.replicas", ["1000000000"]),
    ("cartpole", "train.threads", ["1000000000"]),
    ("cartpole", "environment.frames", ["1000000000"]),
    ("cartpole", "qpu.spsa_samples", ["1000000000000", "--qpu.gradient", "spsa"]),
    ("cartpole", "circuit.layers", ["10000", "--qpu.backend", "aer", "--qpu.noise", "FakeJakartaV2"]),
    ("cartpole", "policy.hidden", ["10000000", "10000000", "--generator.source", "direct"]),
    ("pendulum-sac", "algorithm.replay", ["1000000000000"]),
    ("pendulum-sac", "algorithm.batch_size", ["1000000000000"]),
    ("pendulum-sac", "algorithm.deviation_hidden", ["10000000", "10000000"]),
    ("pendulum-sac", "algorithm.value_hidden", ["10000000", "10000000"]),
]


@pytest.mark.parametrize(("preset", "key", "words"), HUGE, ids=lambda x: " ".join(x) if isinstance(x, list) else x)
def test_what_no_memory_holds_is_refused_by_name(preset, key, words, capfd, tmp_path):
    argv = ["train", preset, "--train.directory", str(tmp_path / "runs"), f"--{key}", *words]
    code = cli.main(argv)
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert key in err
    assert "GiB" in err or "less than or equal to" in err
    assert not (tmp_path / "runs").exists()


def test_nothing_is_allocated_before_the_refusal():
    argv = ["describe", "cartpole", "--policy.hidden", "10000000", "10000000"]
    code = (
        "import resource, sys, torch; from distqtrl.cli import main as cli;"
        "now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"code = cli.main({argv!r});"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - now; print(grown); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert int(done.stdout) < 600 * 1024  # KiB: libraries


@pytest.mark.parametrize("name", of_environments())
def test_presets_fit_small_machines(name, monkeypatch):
    """An estimate is low: what would have run is not refused."""
    monkeypatch.setattr(demand, "machine_memory", lambda: 2**32)
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**32)
    settings = sources.preset(name)
    demand.check_settings(settings)
    try:
        make(settings.environment).close()
    except UserError as error:
        pytest.skip(str(error))
    plan(settings)
