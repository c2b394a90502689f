"""A file of somebody else's never makes us import a module that the user did not name."""

import json
import sys

import gymnasium
import pytest
import torch

from distqtrl.cli import main as cli
from distqtrl.config.sources import preset as preset_of
from distqtrl.config.sources import presets
from distqtrl.environment import permission
from distqtrl.errors import UserError
from distqtrl.policy.distribution import Categorical
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import Policy

MODULE = """
import gymnasium, pathlib
pathlib.Path({marker!r}).touch()
gymnasium.register("Foreign-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=20)
"""
QUICK = ["--vectors", "200", "--episodes", "2"]


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A policy file whose environment is a module's that leaves a mark."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "foreign_lab.py").write_text(MODULE.format(marker=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "foreign_lab", raising=False)
    network = Architecture(4, (4,), 2, "relu")
    w_M = torch.linspace(-1, 1, network.num_weights)
    file = tmp_path / "policy.safetensors"
    Policy(network, Categorical(2), w_M, Normalizer.fresh(4), {"id": "foreign_lab:Foreign-v0"}, {}).save(file)
    yield file
    gymnasium.registry.pop("Foreign-v0", None)


def run(capfd, *words):
    code = cli.main([str(word) for word in words])
    return code, *capfd.readouterr()


def test_a_policy_file_imports_nothing_by_itself(foreign, tmp_path, capfd):
    folder, marker = tmp_path / "out", tmp_path / "ran"
    for words in (["evaluate", foreign, "--episodes", 1], ["export", foreign, "-o", folder, "--target", "c", *QUICK]):
        code, out, err = run(capfd, *words)
        assert code == 2
        assert err == (
            f"distqtrl: {foreign} says environment.id = 'foreign_lab:Foreign-v0', which imports and runs the module "
            "'foreign_lab': if you trust it, add --import-environment\n"
        )
        assert not marker.exists()
        assert not folder.exists()
    assert run(capfd, "evaluate", foreign, "--episodes", 1, "--import-environment")[0] == 0
    assert marker.exists()
    allowed = "--import-environment"
    assert run(capfd, "export", foreign, "-o", folder, "--target", "c,onnx", *QUICK, allowed)[0] == 0
    marker.unlink()
    sys.modules.pop("foreign_lab")
    gymnasium.registry.pop("Foreign-v0")
    code, out, _ = run(capfd, "verify", folder, "--json", *QUICK)
    assert code == 0
    checks = {check["target"]: check for check in json.loads(out)}
    assert checks["c"]["status"] == "equal"
    assert checks["closed loop"]["status"] == "not checked"
    assert checks["closed loop"]["detail"].endswith("if you trust it, add --import-environment")
    assert not marker.exists()
    checks = json.loads(run(capfd, "verify", folder, "--json", *QUICK, allowed)[1])
    assert checks[-1]["status"] == "equal"
    assert marker.exists()


def test_ids_that_import_nothing_new():
    for name in presets():
        permission.check(preset_of(name).environment.id, "file", allowed=False)
    for name in ("ALE/Pong-v5", "CartPole-v1", "minigrid:MiniGrid-Empty-5x5-v0", "pettingzoo.butterfly/pistonball_v6"):
        permission.check(name, "file", allowed=False)


@pytest.mark.parametrize(
    "name",
    [
        "lab:Plain-v0",
        "os:x",
        "minigrid.evil:x",
        "games/relay",
        "os/system",
        "gymnasium.envs.registration/load_env_creator",
        "mpe2/os",
        "distqtrl.cli/main",
        "distqtrl.environment.coin_game/np",
        "pettingzoo.utils.deprecated_module/x",
        "minigrid:a:b",
        "mpe2/simple_spread_v3\n",
    ],
)
def test_ids_that_need_permission(name):
    with pytest.raises(UserError, match="--import-environment"):
        permission.check(name, "file", allowed=False)
    permission.check(name, "file", allowed=True)
