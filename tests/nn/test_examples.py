"""Every example of docs/python.md is short, runs as it stands, and what it trains gets better."""

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from needs import need

from distqtrl import nn as generated
from distqtrl.cli import main as cli

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
HEADED = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


def ran(title, folder):
    """The names that the example under a heading leaves behind."""
    (code,) = HEADED[title]
    (folder / "example.py").write_text(code)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = Path.cwd()
    try:
        os.chdir(folder)
        return runpy.run_path("example.py")
    finally:
        os.chdir(here)
        torch.set_num_threads(threads)


def only_generated(net):
    """Every trained tensor of it belongs to the generator."""
    (weights,) = generated.generators(net)
    return {id(p) for p in net.parameters()} == {id(p) for p in weights.parameters()}


def test_examples_are_short():
    codes = [code for codes in HEADED.values() for code in codes]
    assert len(codes) == 10
    assert max(len(code.splitlines()) for code in codes) <= 25


def test_the_door(tmp_path):
    names = ran("Train, load, export", tmp_path)
    assert names["result"]["evaluation"]["mean"] > 100  # of 500; 20 at first
    assert names["episode_return"] > 50
    for checks in (names["manifest"]["checks"], [vars(check) for check in names["checks"]]):
        status = {check["target"]: check["status"] for check in checks}
        assert "DIFFERENT" not in status.values()
        assert (status["c"], status["closed loop"]) == ("equal", "equal")
    assert (tmp_path / "exported" / "policy.c").exists()


def test_the_door_under_mpirun(forked_ranks, tmp_path):
    (code,) = HEADED["Under mpirun and SLURM"]
    command = re.search(r"^    OMP_NUM_THREADS=1 mpirun -n (\d+) python (\S+)$", PAGE, re.MULTILINE)
    place = f"import os\nos.chdir({str(tmp_path)!r})\n"
    (tmp_path / command[2]).write_text(place + code)
    code, out, err = forked_ranks(int(command[1]), [tmp_path / command[2]])
    assert code == 0, err
    (line,) = out.splitlines()
    assert re.fullmatch(r"returns \[[\d.]+, [\d.]+\] on 2 ranks", line)
    assert (tmp_path / "runs" / "seed1" / "result.json").exists()


def test_an_environment_of_ones_own(tmp_path, monkeypatch):
    title = "An environment of your own"
    (tmp_path / "thermostat.py").write_text(HEADED[title][0])
    monkeypatch.syspath_prepend(tmp_path)
    play, better = re.findall(r"^    PYTHONPATH=\. distqtrl (.*)$", PAGE, re.MULTILINE)
    trained = runs.forked(cli.main, [*play.split(), "--json"], cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    played = runs.forked(cli.main, [*better.split(), "--json"], cwd=tmp_path)
    assert json.loads(played.stdout)["mean"] > -120  # heating below 20 degrees -61, by chance -285


def test_a_small_cnn(tmp_path):
    names = ran("The generator for your own network", tmp_path)
    assert names["losses"][-1] < 0.2 * names["losses"][0]
    assert names["accuracy"] > 0.95
    (weights,) = generated.generators(names["net"])
    assert weights.runs == 41  # one per step, and one for what the last step left
    assert weights.source.qpu.ledger.gradients == 40
    assert weights.source.qpu.num_qubits == 6
    assert isinstance(names["net"][2].weight, torch.nn.Parameter)  # the norm layer, trained directly


def test_a_loop_of_ones_own(tmp_path):
    names = ran("A loop of your own", tmp_path)
    assert only_generated(names["actor"])
    assert np.mean(names["lengths"][-5:]) > 3 * np.mean(names["lengths"][:5])
    assert generated.generators(names["actor"])[0].runs == len(names["lengths"])  # not per environment step


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_stable_baselines3(tmp_path):
    if find_spec("stable_baselines3") is None:
        need("there is no stable-baselines3: pip install 'distqtrl[benchmark]'")
    names = ran("stable-baselines3", tmp_path)
    model, kind = names["model"], names["Generated"]
    actor = [model.policy.mlp_extractor.policy_net, model.policy.action_net]
    assert all(
        not layer._parameters for part in actor for layer in part.modules() if isinstance(layer, torch.nn.Linear)
    )
    (weights,) = generated.generators(model.policy)
    optimized = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in weights.parameters()} <= optimized
    assert weights.runs == 2048 // 64 * 4  # one per optimizer step
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert np.mean(returns[-5:]) > 1.5 * np.mean(returns[:10])
    obs_BO = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    actions_B = model.predict(obs_BO, deterministic=True)[0]
    again = type(model).load(tmp_path / "generated", custom_objects={"policy_class": kind})
    np.testing.assert_array_equal(again.predict(obs_BO, deterministic=True)[0], actions_B)
    np.testing.assert_array_equal(generated.policy(model.policy, "CartPole-v1").act(obs_BO), actions_B)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_orthogonal_initialisation_of_stable_baselines3_changes_nothing():
    """Where a part is generated before the policy initialises itself."""
    if find_spec("stable_baselines3") is None:
        need("there is no stable-baselines3: pip install 'distqtrl[benchmark]'")
    from gymnasium.spaces import Box, Discrete
    from stable_baselines3.common.policies import ActorCriticPolicy

    made = []

    class Early(ActorCriticPolicy):
        def _build_mlp_extractor(self):
            super()._build_mlp_extractor()
            net = generated.generate(self.mlp_extractor.policy_net, mapping={"chunk": 64})
            made.append(net[0].weight.detach().clone())

    policy = Early(Box(-1, 1, (4,)), Discrete(2), lambda _: 1e-3, net_arch={"pi": [16], "vf": [16]})
    layer, plain = policy.mlp_extractor.policy_net[0], policy.mlp_extractor.value_net[0]
    assert torch.equal(layer.weight, made[0])
    assert layer.bias.abs().min() > 0
    assert plain.bias.abs().max() == 0  # what it does to others
    loss = policy.evaluate_actions(torch.randn(3, 4), torch.zeros(3))[1].sum()
    policy.optimizer.zero_grad()
    loss.backward()
    policy.optimizer.step()
    assert not torch.equal(layer.weight, made[0])


def test_torchrl(tmp_path):
    """In a process of its own: TorchRL changes settings of the whole one, and warns at import."""
    if find_spec("torchrl") is None:
        need("there is no TorchRL: pip install 'distqtrl[peers]'")
    (code,) = HEADED["TorchRL"]
    code = f"import torch\ntorch.manual_seed(0), torch.set_num_threads(1)\n{code}" + (
        "(weights,) = distqtrl.nn.generators(net)\n"
        "assert {id(p) for p in weights.parameters()} <= {id(p) for p in loss.parameters()}\n"
        "print(weights.runs, *lengths)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    runs, *lengths = map(float, done.stdout.split())
    assert runs == 8 * 16  # one per optimizer step, whoever asks
    assert np.mean(lengths[-2:]) > 1.5 * np.mean(lengths[:2])


def test_a_qnode_of_pennylane(tmp_path):
    if find_spec("pennylane") is None:
        need("there is no PennyLane: pip install 'distqtrl[pennylane]'")
    names = ran("A circuit of your own", tmp_path)
    assert only_generated(names["net"])
    assert names["losses"][-1] < 0.1 * names["losses"][0]
    (weights,) = generated.generators(names["net"])
    assert weights.source.angles["theta"].shape == (2, 4, 3)
    assert weights.source.angles["theta"].grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript is deprecated, and used
def test_to_onnx_and_torchscript(tmp_path):
    names = ran("To ONNX and TorchScript", tmp_path)
    x = torch.linspace(-1, 1, 4)[None]
    wanted = names["net"](x)
    assert torch.equal(names["plain"](x), wanted)
    assert torch.equal(names["program"].module()(x), wanted)
    torch.testing.assert_close(names["script"](x), wanted)
    assert only_generated(names["net"])


def test_to_integers(tmp_path):
    names = ran("To integers", tmp_path)
    assert names["action"].shape == (1,)
    command = re.search(r"^    distqtrl (export .*)$", PAGE, re.MULTILINE)[1].split()
    done = subprocess.run(
        [sys.executable, "-m", "distqtrl", *command, "--episodes", "5", "--vectors", "500"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "policy.c").exists()
    assert "c " in done.stdout
