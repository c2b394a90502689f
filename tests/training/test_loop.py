"""Training end to end in this process: every kind of environment, algorithm and control."""

import json
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from runs import TRAINED_MAPPING, UNJUDGED, as_words, of_environments, texts

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Serial
from distqtrl.cli import main as cli
from distqtrl.config import sources
from distqtrl.config.run import save
from distqtrl.config.sources import with_flags
from distqtrl.errors import Foreign, UserError
from distqtrl.export import episodes
from distqtrl.generator.controls import SOURCES
from distqtrl.policy import lower, policy_file
from distqtrl.record.recorder import Recorder
from distqtrl.training import loop, updates
from distqtrl.training.build import prepare
from distqtrl.training.loop import train
from distqtrl.training.policy_gradient import samples as samples_module

SMALL = {**texts(UNJUDGED), "train.steps": "128"}
SOON = {"algorithm.learning_starts": "0", "algorithm.batch_size": "32"}  # SAC
STEPS = {**texts(TRAINED_MAPPING), "environment.local_num": "4", "algorithm.rollout_steps": "16", "mapping.kind": "mlp"}


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(folder, preset, **flags):
    cfg = with_flags(sources.preset(preset), {**SMALL, **{k.replace("__", "."): v for k, v in flags.items()}})
    (folder / "config.json").write_text(save(cfg))
    run = prepare(cfg, Serial())
    before = run.learner.fingerprint()
    result = train(run, folder)
    rows = metrics_of(folder)
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


@pytest.mark.parametrize("source", SOURCES)
def test_controls(tmp_path, source):
    run, _ = trained(tmp_path, "cartpole", **{**STEPS, "generator.source": source, "generator.numbers": "300"})
    assert (run.learner.generator.qpu is not None) == (source in ("circuit", "frozen_circuit"))


@pytest.mark.parametrize("preset", of_environments())
def test_presets_start(tmp_path, preset):
    trained(tmp_path, preset, **{"environment.local_num": "2", "algorithm.rollout_steps": "36", **SOON})


def test_weights_are_generated_once_per_optimizer_step(tmp_path):
    run, _ = trained(tmp_path, "cartpole", **{**STEPS, "algorithm.epochs": "3", "algorithm.minibatches": "2"})
    assert run.learner.generator.qpu.ledger.gradients == 2 * 6  # updates x optimizer steps
    assert run.learner.generator.qpu.ledger.circuits == 2 * 6 + 1  # steps, the policy file


def test_reaching_the_target_ends_the_run(tmp_path):
    flags = {**STEPS, "evaluate.every": "1", "evaluate.target": "1", "evaluate.validation_episodes": "2"}
    _, result = trained(tmp_path, "cartpole", **flags)
    assert result["target_reached"]
    assert result["update"] == 1


KEEPING = {
    **{"evaluate.every": "1", "evaluate.validation_episodes": "3", "evaluate.keep": "best", "evaluate.target": "none"},
    **{"train.steps": "none", "train.updates": "6", "algorithm.learning_rate": "0.05", "train.checkpoint_every": "1"},
    **{"environment.id": "CartPole-v1", "environment.local_num": "4", "algorithm.rollout_steps": "16"},
}
INTEGERS = {"policy.normalize_observations": "true", "quantize.aware": "true"}


@pytest.mark.parametrize("flags", [{}, INTEGERS], ids=["floating point", "integers"])
def test_the_best_policy_is_kept(tmp_path, flags):
    """A copy of it, from the moment of its validation, and across a resume."""
    _, result = trained(tmp_path, "cartpole", **KEEPING, **flags)
    best = max(metrics_of(tmp_path), key=lambda row: row["validation_return"])
    assert best["update"] < 5  # so that a later one did not win by being the last
    policy = policy_file.load(tmp_path / "policy.safetensors")
    assert policy.origin["validation_return"] == best["validation_return"]
    assert policy.origin["env_steps"] == result["policy_env_steps"] == best["env_steps"]
    kept = (tmp_path / "policy.safetensors").read_bytes()

    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    last.unlink()  # go on from the one before
    (tmp_path / "result.json").unlink()
    (tmp_path / "policy.safetensors").unlink()
    cfg = with_flags(sources.preset("cartpole"), {**SMALL, **KEEPING, **flags})
    assert train(prepare(cfg, Serial(), resume=tmp_path), tmp_path)["evaluation"] == result["evaluation"]
    assert (tmp_path / "policy.safetensors").read_bytes() == kept


@pytest.mark.parametrize(("unsaved_s", "rarer", "saved"), [(1e9, 20, 1), (0, 0, 3), (0, 1e9, 2)])
def test_training_that_is_unsaved_for_long_makes_checkpoints(tmp_path, monkeypatch, unsaved_s, rarer, saved):
    """Beside those of train.checkpoint_every; where they take long themselves, not after every update."""
    monkeypatch.setattr(loop, "UNSAVED_S", unsaved_s)
    monkeypatch.setattr(loop, "RARER", rarer)
    kept = {"train.checkpoint_every": "1000", "train.keep_checkpoints": "9"}
    trained(tmp_path, "cartpole", **{**kept, "train.steps": "none", "train.updates": "3"})
    assert len(list((tmp_path / "checkpoints").iterdir())) == saved


def test_a_budget_in_updates_ends_the_run(tmp_path):
    _, result = trained(tmp_path, "qtrl-cartpole", **{"train.steps": "none", "train.updates": "7"})
    assert (result["update"], result["episodes"], result["target_reached"]) == (7, 7, False)


def test_the_smoothed_return_of_training_ends_the_run(tmp_path):
    flags = {"train.steps": "none", "train.updates": "200", "train.smoothing": "5"}
    _, result = trained(tmp_path, "qtrl-cartpole", **flags, **{"train.target": "25"})
    rows = metrics_of(tmp_path)
    returns = [row["return_mean"] for row in rows]
    smoothed = [np.mean(returns[max(0, i - 4) : i + 1]) for i in range(len(returns))]
    np.testing.assert_allclose([row["return_smoothed"] for row in rows], smoothed)
    assert result["target_reached"]
    assert smoothed[-1] >= 25 > max(smoothed[:-1])


def test_cartpole_is_solved(tmp_path):
    cfg = with_flags(sources.preset("cartpole"), {"environment.local_num": "32", "train.seed": "1"})
    (tmp_path / "config.json").write_text(save(cfg))
    result = train(prepare(cfg, Serial()), tmp_path)
    assert result["evaluation"]["mean"] >= 475
    assert result["env_steps"] <= cfg.train.steps


@pytest.mark.parametrize("source", ["direct", "circuit"])
@pytest.mark.parametrize("preset", ["cartpole", "pendulum", "pendulum-sac"])
def test_a_policy_trained_on_integers_is_the_program_it_leaves_as(tmp_path, preset, source):
    flags = {**STEPS, **SOON, "generator.source": source, "quantize.aware": "true", "quantize.core_bits": "2"}
    run, result = trained(tmp_path, preset, **flags, **{"policy.hidden": "8", "quantize.warmup": "2"})
    policy = policy_file.load(tmp_path / "policy.safetensors")
    obs = np.concatenate([run.environments.obs_BO, 3 * np.random.default_rng(0).normal(size=(200, 1))], axis=None)
    obs_BO = np.resize(obs, (100, policy.architecture.num_inputs)).astype(np.float32)
    program = lower.program(policy.quantized(), policy.head)
    np.testing.assert_array_equal(policy.act(obs_BO), program.act(obs_BO))
    w_M = run.learner.weights().detach()
    trains = run.learner.outputs(w_M, torch.from_numpy(obs_BO), run.learner.observed(obs_BO))
    head = run.learner.head
    meant = head.to_environment(head.greedy(trains.detach().numpy()))
    step = 0 if preset == "cartpole" else 2 * 2.0**-14  # actions leave as fixed-point numbers
    assert np.abs(meant - policy.act(obs_BO)).max() <= step
    np.testing.assert_array_equal(run.learner.acting(w_M)(obs_BO, obs_BO), trains.detach().numpy())
    assert result["evaluation"]["episodes"] == 2


@pytest.mark.parametrize("flags", [{"rollout.precision": "nvfp4"}, {"rollout.noise": "constant"}], ids=str)
@pytest.mark.parametrize("preset", ["cartpole", "pendulum-sac"])
def test_actors_differ_from_the_learned_policy(tmp_path, preset, flags):
    every = {**STEPS, **SOON, **flags, "rollout.pad": "true", "train.steps": "256", "rollout.noise_stages": "3"}
    run, _ = trained(tmp_path, preset, **every)
    rows = metrics_of(tmp_path)
    layers = len(run.learner.architecture.shapes)
    if "rollout.noise" in flags:
        assert [(row["noise"], row["noisy_layers"]) for row in rows] == [(0.0, 0), (0.0, 0)] + 2 * [(0.01, layers)]
    learned = run.learner.weights().detach()
    assert not torch.equal(run.learner.acting_weights(3), learned)
    policy = policy_file.load(tmp_path / "policy.safetensors")
    assert torch.equal(policy.w_M, learned)


def test_importance_ratios_are_over_the_policy_that_acted(tmp_path):
    cfg = with_flags(sources.preset("cartpole"), {**SMALL, **STEPS, "rollout.precision": "int2"})
    learner = (run := prepare(cfg, Serial())).learner
    acted = learner.acting_weights(0)
    rollout = samples_module.rollout(cfg, run.environments, 0, run.policies.players([acted]))
    samples = samples_module.samples(learner, rollout, acted)
    logits = learner.acting(acted)(rollout.obs_TBO.reshape(64, -1), rollout.obs_TBO.reshape(64, -1))
    probability_NA = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = probability_NA[np.arange(64), rollout.actions.ravel()]
    np.testing.assert_allclose(np.exp(samples.old_log_prob_N.numpy()), expected, rtol=1e-4)
    learned = learner.acting(learner.weights().detach())(samples.obs_NO.numpy(), samples.obs_NO.numpy())
    assert np.abs(learned - logits).max() > 1e-3


@pytest.mark.parametrize("precision", ["none", "int2"])
def test_an_update_counts_how_far_the_acting_policy_is_from_the_learned_one(precision):
    flags = {"rollout.precision": precision, "algorithm.learning_rate": "1e-12", "algorithm.epochs": "1"}
    cfg = with_flags(sources.preset("cartpole"), {**SMALL, **STEPS, **flags, "algorithm.minibatches": "1"})
    metrics, *_ = updates.update(prepare(cfg, Serial()), [])
    assert (metrics["approx_kl"] > 1e-5) == (precision == "int2")
    assert (abs(metrics["entropy"] - metrics["acting_entropy"]) > 1e-5) == (precision == "int2")


@pytest.mark.parametrize("aware", ["false", "true"])
def test_minibatches_without_samples_are_no_steps(aware):
    flags = {"algorithm.rollout": "episodes", "algorithm.minibatches": "100", "environment.max_episode_steps": "9"}
    cfg = with_flags(sources.preset("cartpole"), {**SMALL, **flags, "quantize.aware": aware})
    run = prepare(cfg, Serial())
    updates.update(run, [])
    assert 0 < run.learner.num_steps < 100 * cfg.algorithm.epochs


def test_the_warm_up_begins_when_the_normaliser_has_seen_something():
    flags = {"quantize.aware": "true", "quantize.warmup": "1000", "policy.hidden": "8"}
    run = prepare(with_flags(sources.preset("pendulum"), {**SMALL, **STEPS, **flags}), Serial())
    for update in range(3):
        seen, scales_S = int(run.learner.quantizer.num_observed), run.learner.quantizer.scales_S.detach().clone()
        updates.update(run, [])
        assert (int(run.learner.quantizer.num_observed) > seen) == (update > 0)
        assert torch.equal(run.learner.quantizer.scales_S.detach(), scales_S) == (update == 0)
    place = next(i for i, p in enumerate(run.learner.parameters) if p is run.learner.quantizer.scales_S)
    assert place not in run.learner.optimizer.state  # no gradient, and no moments of one, before it is over


def test_a_scale_that_collapses_is_refused_on_every_rank():
    flags = {"quantize.aware": "true", "quantize.warmup": "0", "policy.hidden": "8"}
    run = prepare(with_flags(sources.preset("cartpole"), {**SMALL, **STEPS, **flags}), Serial())
    run.learner.quantizer.scales_S.data[1] = -1.0
    with pytest.raises(Refused, match="the scale of output is -1"):
        updates.update(run, [])


def test_an_adapters_base_keeps_its_observations(tmp_path):
    trained(tmp_path, "pendulum", **{**STEPS, "generator.source": "direct", "policy.normalize_observations": "false"})
    flags = {**SMALL, **STEPS, "adapter.base": str(tmp_path / "policy.safetensors"), "generator.source": "direct"}
    with pytest.raises(UserError, match="reads observations as they are"):
        prepare(with_flags(sources.preset("pendulum"), flags), Serial())


@pytest.mark.parametrize("source", ["direct", "circuit"])
def test_an_update_of_low_rank_starts_at_its_base(tmp_path, source):
    (tmp_path / "base").mkdir()
    base, _ = trained(tmp_path / "base", "cartpole", **{**STEPS, "generator.source": "direct"})
    path = str(tmp_path / "base" / "policy.safetensors")
    flags = {**STEPS, "generator.source": source, "adapter.base": path, "adapter.rank": "2"}
    start = prepare(with_flags(sources.preset("cartpole"), {**SMALL, **flags}), Serial()).learner
    torch.testing.assert_close(start.weights().detach(), base.learner.weights().detach(), rtol=0, atol=0)
    rounded = {**flags, "adapter.precision": "nvfp4", "adapter.pad": "true"}
    (tmp_path / "run").mkdir()
    run, _ = trained(tmp_path / "run", "cartpole", **rounded)
    trained_numbers = sum(p.numel() for p in run.learner.generator.parameters())
    print(f"{source}: {trained_numbers} trained numbers, {run.learner.architecture.num_weights} weights")
    again = prepare(with_flags(sources.preset("cartpole"), {**SMALL, **rounded}), Serial()).learner
    again.load(run.learner.tensors())
    assert torch.equal(again.weights(), run.learner.weights())


def test_a_rank_starts_without_torchs_compiler(tmp_path):
    """Half of the time that a rank took to start went into these, and nothing of them is used."""
    flags = as_words(SMALL, STEPS)
    program = f"""if True:
        import sys
        from distqtrl.cli import main as cli
        assert cli.main(["train", "cartpole", "--run", {str(tmp_path / "run")!r}, *{flags!r}]) == 0
        assert not {{"torch._dynamo", "sympy"}} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", program], check=True)


class Endless(gymnasium.Env):
    """Ends when action 1 is taken, and that costs 1: a trained policy never does."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    broken = False

    def reset(self, *, seed=None, options=None):
        assert not self.broken, "a broken environment"
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), -float(action), bool(action), False, {}


gymnasium.register("distqtrl/Endless-v0", Endless)
FOREVER = {"environment.id": "distqtrl/Endless-v0", "environment.max_episode_steps": "none", "policy.hidden": "4"}
FOREVER |= {"generator.source": "direct", "algorithm.learning_rate": "1"}


def test_an_environment_without_an_end_is_evaluated(tmp_path, capfd):
    flags = {
        **STEPS,
        **FOREVER,
        "train.steps": "2048",
        "evaluate.every": "16",
        "evaluate.validation_episodes": "3",
        "algorithm.rollout_steps": "32",
    }
    run, result = trained(tmp_path, "cartpole", **flags)
    most = max(1000, 4 * result["longest_episode"])
    assert result["longest_episode"] == max(len(actions) for actions in run.environments.actions) > 32
    assert result["evaluation"] == {**dict.fromkeys(("mean", "std", "min", "max"), 0.0), "episodes": 2, "cut": 2,
                                    "max_steps": most}  # fmt: skip
    rows = metrics_of(tmp_path)
    assert rows[15]["validation_cut"] == 3
    assert capfd.readouterr().err.count("validation: 3 of 3 episodes had not ended after ") == 1
    assert policy_file.load(tmp_path / "policy.safetensors").origin["max_steps"] == most
    assert cli.main(["evaluate", str(tmp_path), "--episodes", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["max_steps"] == most
    assert cli.main(["evaluate", str(tmp_path), "--episodes", "1", "--max-steps", "7"]) == 0
    assert "1 of 1 episodes had not ended after 7 steps and was cut there" in capfd.readouterr().out
    policy = policy_file.load(tmp_path / "policy.safetensors")
    assert len(episodes.observations(policy, (), 2)) == 2 * 1000


def test_a_time_limit_is_no_bound(tmp_path):
    _, result = trained(tmp_path, "cartpole", **STEPS)
    assert (result["evaluation"]["cut"], result["evaluation"]["max_steps"]) == (0, None)
    assert "max_steps" not in policy_file.load(tmp_path / "policy.safetensors").origin


@pytest.mark.parametrize("what", ["environment", "events", "several"])
def test_the_policy_is_saved_before_what_can_fail(tmp_path, monkeypatch, what):
    flags = {**STEPS, **FOREVER, "train.steps": "64"}
    if what == "several":
        flags |= {"environment.id": "games/Game", "agents.sharing": "independent"}
    cfg = with_flags(sources.preset("cartpole"), {**SMALL, **flags})
    run = prepare(cfg, Serial())

    end = Recorder.end

    def fails(*args):
        end(*args) if what == "events" else None
        raise OSError(28, "No space left on device", "events")

    if what == "events":
        monkeypatch.setattr(Recorder, "end", fails)
    elif what == "several":
        monkeypatch.setattr("distqtrl.training.evaluation.evaluation", fails)
    else:
        monkeypatch.setattr(Endless, "broken", True)
        monkeypatch.setattr(Endless, "step", lambda self, action: (np.zeros(2, np.float32), 0.0, False, False, {}))
    with pytest.raises(Foreign if what == "environment" else OSError):
        train(run, tmp_path)
    names = {"policy.safetensors"} if what != "several" else {"policy-a.safetensors", "policy-b.safetensors"}
    assert {path.name for path in policy_file.files(tmp_path)} == names
    assert all(policy.w_M.isfinite().all() for policy in policy_file.team(tmp_path))
    assert not (tmp_path / "result.json").exists()


class Wandering(gymnasium.Env):
    """Goes to another folder in every step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        os.chdir("/")
        return np.zeros(2, np.float32), 1.0, True, False, {}


def test_an_environment_that_goes_elsewhere_takes_no_file_along(tmp_path, monkeypatch):
    gymnasium.register("Wandering-v0", Wandering)
    monkeypatch.chdir(tmp_path)
    flags = as_words(SMALL, {"environment.id": "Wandering-v0", "generator.source": "direct"})
    assert cli.main(["train", "cartpole", "--run", "runs/x", *flags]) == 0
    assert {"policy.safetensors", "result.json", "learning_curve.png"} <= {
        p.name for p in (tmp_path / "runs/x").iterdir()
    }


def test_actions_that_no_policy_file_holds_are_refused_before_training():
    cfg = with_flags(sources.preset("simple-spread"), {"environment.id": "games/Distant", "environment.kwargs": "{}"})
    with pytest.raises(
        UserError, match=r"games/Distant: no policy file holds its actions \(start = 1152921504606846976"
    ):
        prepare(cfg, Serial())
