"""Training end to end in this process: every kind of environment, algorithm and control."""

import json
from typing import get_args

import numpy as np
import pytest

from distqtrl import config
from distqtrl.allreduce.communicator import Serial
from distqtrl.train import prepare, train

SMALL = {"train.steps": "128", "evaluate.episodes": "2", "evaluate.every": "none", "evaluate.target": "none"}
SOON = {"algorithm.learning_starts": "0", "algorithm.batch_size": "32"}  # SAC
STEPS = {"environment.local_num": "4", "algorithm.rollout_steps": "16", "mapping.kind": "mlp"}


def trained(folder, preset, **flags):
    cfg = config.with_flags(config.preset(preset), {**SMALL, **{k.replace("__", "."): v for k, v in flags.items()}})
    (folder / "config.json").write_text(config.save(cfg))
    run = prepare(cfg, Serial())
    before = run.learner.fingerprint()
    result = train(run, folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    learned = any(row["gradient_norm"] > 0 for row in rows)  # without rewards and a baseline there is no gradient
    assert (run.learner.fingerprint() != before) == learned
    assert learned or not any(row["return_mean"] for row in rows)
    assert all(np.isfinite(row["policy_loss"]) and np.isfinite(row["gradient_norm"]) for row in rows)
    return run, result


@pytest.mark.parametrize("environment", ["CartPole-v1", "Acrobot-v1", "FrozenLake-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    "algorithm",
    [
        {"algorithm.name": "ppo", "algorithm.minibatches": "2"},
        {"algorithm.name": "reinforce"},
        {"algorithm.name": "reinforce", "algorithm.rollout": "episodes", "algorithm.baseline": "false"},
    ],
    ids=["ppo", "reinforce", "episodes"],
)
def test_environments_and_algorithms(tmp_path, environment, algorithm):
    flags = {**STEPS, **algorithm, "environment.id": environment, "environment.max_episode_steps": "30"}
    run, result = trained(tmp_path, "cartpole", **flags)
    assert result["status"] == "complete"
    assert result["env_steps"] >= 128
    assert run.environments.obs_BO.shape == (4, run.learner.architecture.num_inputs)


@pytest.mark.parametrize("source", get_args(config.Generator.model_fields["source"].annotation))
def test_controls(tmp_path, source):
    run, _ = trained(tmp_path, "cartpole", **{**STEPS, "generator.source": source})
    assert (run.learner.generator.qpu is not None) == (source in ("circuit", "frozen_circuit"))


@pytest.mark.parametrize("preset", sorted(config.presets()))
def test_presets_start(tmp_path, preset):
    trained(tmp_path, preset, **{"environment.local_num": "2", "algorithm.rollout_steps": "32", **SOON})


def test_weights_are_generated_once_per_optimizer_step(tmp_path):
    run, _ = trained(tmp_path, "cartpole", **{**STEPS, "algorithm.epochs": "3", "algorithm.minibatches": "2"})
    assert run.learner.generator.qpu.ledger.gradients == 2 * 6  # updates x optimizer steps
    assert run.learner.generator.qpu.ledger.circuits == 2 * 6 + 1  # steps, the policy file


def test_reaching_the_target_ends_the_run(tmp_path):
    flags = {**STEPS, "evaluate.every": "1", "evaluate.target": "1", "evaluate.validation_episodes": "2"}
    _, result = trained(tmp_path, "cartpole", **flags)
    assert result["target_reached"]
    assert result["update"] == 1


def test_a_budget_in_updates_ends_the_run(tmp_path):
    _, result = trained(tmp_path, "qtrl-cartpole", **{"train.steps": "none", "train.updates": "7"})
    assert (result["update"], result["episodes"], result["target_reached"]) == (7, 7, False)


def test_the_smoothed_return_of_training_ends_the_run(tmp_path):
    flags = {"train.steps": "none", "train.updates": "200", "train.smoothing": "5"}
    _, result = trained(tmp_path, "qtrl-cartpole", **flags, **{"train.target": "25"})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    returns = [row["return_mean"] for row in rows]
    smoothed = [np.mean(returns[max(0, i - 4) : i + 1]) for i in range(len(returns))]
    np.testing.assert_allclose([row["return_smoothed"] for row in rows], smoothed)
    assert result["target_reached"]
    assert smoothed[-1] >= 25 > max(smoothed[:-1])


def test_cartpole_is_solved(tmp_path):
    cfg = config.with_flags(config.preset("cartpole"), {"environment.local_num": "32", "train.seed": "1"})
    (tmp_path / "config.json").write_text(config.save(cfg))
    result = train(prepare(cfg, Serial()), tmp_path)
    assert result["evaluation"]["mean"] >= 475
    assert result["env_steps"] <= cfg.train.steps
