"""Runs with several choices at once and with masks, from training to what is exported, by the commands."""

import json

import numpy as np
import pytest
import torch
from runs import as_words, tiny

from distqtrl.allreduce.communicator import Serial
from distqtrl.cli import main as cli
from distqtrl.config.run import Config
from distqtrl.config.sources import with_flags
from distqtrl.errors import UserError
from distqtrl.files import tensors as tensorfile
from distqtrl.policy import policy_file
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, masks
from distqtrl.record.checkpoint import FORMAT
from distqtrl.training import loop as train
from distqtrl.training import updates
from distqtrl.training.build import prepare
from distqtrl.training.policy_gradient import samples as samples_module
from distqtrl.training.policy_gradient.samples import samples
from distqtrl.training.step import backward

TINY = tiny(
    generator_source="direct",
    policy_hidden=8,
    algorithm_rollout_steps=24,
    algorithm_epochs=2,
    algorithm_minibatches=2,
    environment_max_episode_steps=None,
    evaluate_episodes=3,
    train_updates=3,
    train_steps=None,
)
TRUST = "--import-environment"  # the games are a module of the tests
LEVERS = {"environment.id": "choices:Levers-v0"}
DOORS = {"environment.id": "choices:Doors-v0"}


def kwargs(**values):
    return {"environment.kwargs": json.dumps(values)}


def flags(*tables):
    return {key: value for table in (TINY, *tables) for key, value in table.items()}


def prepared(*tables):
    return prepare(with_flags(Config(), flags(*tables)), Serial())


def command(*tables):
    return as_words(TINY, *tables)


def called(capfd, *words):
    """What a command says as JSON."""
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("action", ["levers", "switches"])
def test_levers_are_learned(action):
    """What pays is the part that is right: nearly all of it after training, about half before."""
    fast = {"train.updates": "60", "algorithm.learning_rate": "0.03", "algorithm.value_learning_rate": "0.03"}
    run = prepared(LEVERS, kwargs(action=action), fast, {"environment.local_num": "8"})
    (head,) = [spec.head for spec in run.policies.specs]
    assert isinstance(head, Factored)
    rewards = []
    for number in range(60):
        players = run.policies.players([run.learner.acting_weights(number)])
        rewards.append(samples_module.rollout(run.config, run.environments, number, players).rewards_TB.mean())
        updates.update(run, [])
    assert np.mean(rewards[:3]) < 0.7
    assert np.mean(rewards[-3:]) > 0.9


@pytest.mark.parametrize("action", ["levers", "switches"])
def test_commands_of_a_run_with_several_choices(tmp_path, capfd, action):
    """Trained, described, evaluated, stopped and resumed alike, exported to C and ONNX, verified."""
    game, about = {**LEVERS, **kwargs(action=action)}, [3, 2, 4] if action == "levers" else [2, 2, 2, 2]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert "factored" in called(capfd, "describe", "cartpole", *command(game))["policy"]
    trained = called(capfd, "train", "cartpole", "--run", str(whole), *command(game, {"train.checkpoint_every": "2"}))
    found = called(capfd, "evaluate", str(whole), "--episodes", "3", TRUST)
    assert found["mean"] == pytest.approx(trained["evaluation"]["mean"])
    state = {"train.checkpoint_every": "2"}
    called(capfd, "train", "cartpole", "--run", str(part), *command(game, state))
    (latest,) = (part / "checkpoints").glob("update-000003*")
    latest.unlink()
    (part / "result.json").unlink()  # as if it had been killed in its last update
    assert cli.main(["train", "--resume", str(part)]) == 0
    capfd.readouterr()
    both = [tensorfile.read(run / "checkpoints" / latest.name, FORMAT, "")[1] for run in (whole, part)]
    assert {name: x.tobytes() for name, x in both[0].items()} == {name: x.tobytes() for name, x in both[1].items()}
    policy = policy_file.load(whole / "policy.safetensors")
    assert list(policy.head.sizes) == about
    made = tmp_path / "made"
    quick = ["--vectors", "2000", "--episodes", "2", TRUST]
    words = ["export", str(whole / "policy.safetensors"), "-o", str(made), "--target", "c,onnx", *quick]
    assert cli.main(words) == 0, capfd.readouterr()
    checks = {check["target"]: check["status"] for check in json.loads((made / "manifest.json").read_text())["checks"]}
    assert {checks[name] for name in ("c", "onnx", "closed loop", "interpreter")} == {"equal"}
    assert f"one number per factor, {len(about)} in all" in (made / "README.md").read_text()
    assert cli.main(["verify", str(made), *quick, "--import-environment"]) == 0


@pytest.mark.parametrize("sharing", ["independent", "shared_circuit"])
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_agents_with_different_choices(tmp_path, algorithm, sharing):
    whole = {"algorithm.name": algorithm, "agents.sharing": sharing, "environment.id": "choices/Crew"}
    source = {"generator.source": "circuit", "mapping.kind": "mlp", "mapping.chunk": "8"}
    run = prepared(whole, source, {"policy.normalize_observations": "true"})
    heads = [spec.head for spec in run.policies.specs]
    assert heads == [Factored((2, 3), (0, 4)), Factored((2,) * 3, (0,) * 3), Categorical(2)]
    before = [learner.parameters[0].detach().clone() for learner in run.policies.learners]
    result = train.train(run, tmp_path)
    assert result["agents"].keys() == {"a", "b", "c"}
    assert all((p != learner.parameters[0]).any() for p, learner in zip(before, run.policies.learners, strict=True))


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_a_choice_beside_continuous_actions(tmp_path, algorithm):
    run = prepared({"algorithm.name": algorithm, "agents.sharing": "independent", "environment.id": "games/Mixed"})
    assert [type(spec.head) for spec in run.policies.specs] == [Categorical, Gaussian]
    assert train.train(run, tmp_path)["status"] == "complete"


def test_soft_actor_critic_refuses_choices():
    with pytest.raises(
        UserError,
        match=r"sac takes continuous actions or one of several, .*Levers-v0 has choices among \(3, 2, 4\): use",
    ):
        prepared(LEVERS, {"algorithm.name": "sac"})


@pytest.mark.parametrize("action", ["number", "levers", "switches"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"algorithm.name": "reinforce", "algorithm.rollout": "episodes"},
        {"quantize.aware": "true", "policy.normalize_observations": "true", "algorithm.entropy": "0.1"},
        {"environment.frames": "2", "train.precision": "float64", "rollout.noise": "exponential"},
    ],
    ids=["ppo", "reinforce", "aware", "frames"],
)
def test_masked_actions_are_never_taken(tmp_path, action, more):
    """Doors are an error where they are masked: none is in training, validation and evaluation."""
    run = prepared(DOORS, kwargs(action=action), more, {"evaluate.every": "2", "evaluate.validation_episodes": "2"})
    (spec,) = run.policies.specs
    architecture, head = spec.architecture, spec.head
    assert head.masked
    assert architecture.num_inputs == 2 * int(more.get("environment.frames", 1))
    result = train.train(run, tmp_path)
    assert np.isfinite(result["evaluation"]["mean"])
    policy = policy_file.load(tmp_path / "policy.safetensors")
    assert policy.head == head
    assert policy.normalizer.mean_O.shape == (architecture.num_inputs,)


def test_the_loss_knows_masks_too():
    """Log-probabilities of the learner are those of the player: nothing is clipped before the first step."""
    run = prepared(DOORS, kwargs(action="levers"), {"algorithm.entropy": "0.1"})
    learner = run.learner
    w_M = learner.acting_weights(0)
    rollout = samples_module.rollout(run.config, run.environments, 0, run.policies.players([w_M]))
    batch = samples(learner, rollout, w_M)
    outputs = learner.outputs(w_M, batch.raw_NO, batch.obs_NO)
    mask_NA = masks(learner.head, batch.raw_NO)
    assert not mask_NA.bool().all()
    assert (torch.softmax(outputs[:, :3], -1)[mask_NA[:, :3] == 0] == 0).all()
    torch.testing.assert_close(learner.head.log_prob(outputs, batch.actions, learner.log_std), batch.old_log_prob_N)
    assert (batch.old_log_prob_N > -10).all()
    assert (batch.entropy_N <= np.log(3) + np.log(2) + np.log(4)).all()
    loss = learner.loss(batch, divisor=1.0, count=1.0)
    backward([learner], [loss])
    gradient_M = loss.leaf_M.grad
    assert torch.isfinite(gradient_M).all()


def test_where_everything_is_allowed_masks_change_nothing():
    """Bit for bit: the same policy with and without them."""
    rng = np.random.default_rng(0)
    obs_BO, mask_BA = rng.normal(size=(50, 4)).astype(np.float32), np.ones((50, 3), np.float32)
    architecture = policy_file.Architecture(4, (8,), 3, "tanh")
    w_M, normalizer = torch.randn(architecture.num_weights), policy_file.Normalizer.fresh(4)
    plain, masked = (
        policy_file.Policy(architecture, Categorical(3, 0, masked), w_M, normalizer, {}) for masked in (False, True)
    )
    np.testing.assert_array_equal(plain.act(obs_BO), masked.act(np.hstack([obs_BO, mask_BA])))


@pytest.mark.parametrize("sharing", ["shared", "independent"])
@pytest.mark.parametrize("critic", ["independent", "centralised"])
def test_agents_honour_their_masks(tmp_path, sharing, critic):
    run = prepared({"environment.id": "choices/Guarded", "agents.sharing": sharing, "agents.critic": critic})
    result = train.train(run, tmp_path)
    assert np.isfinite(result["evaluation"]["mean"])


def test_a_masked_policy_is_evaluated_and_not_exported(tmp_path, capfd):
    run = tmp_path / "run"
    trained = called(capfd, "train", "cartpole", "--run", str(run), *command(DOORS))
    assert called(capfd, "evaluate", str(run), "--episodes", "3", TRUST)["mean"] == trained["evaluation"]["mean"]
    assert cli.main(["export", str(run / "policy.safetensors"), "-o", str(tmp_path / "x")]) == 2
    said = capfd.readouterr().err
    assert "this policy needs its environment's action_mask, which an exported program does not read: use it" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mode", [[], ["--mode", "pareto", "--cost", "luts"]])
def test_a_search_that_could_not_export_does_not_begin(tmp_path, capfd, mode):
    words = ["search-bits", "cartpole", "-o", str(tmp_path / "s"), *mode, *command(DOORS)]
    assert cli.main(words) == 2
    assert "choices:Doors-v0 observes an action_mask, which an exported program does not" in capfd.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_run_that_may_do_nothing_ends_in_one_line(tmp_path, capfd):
    words = command(DOORS, kwargs(stuck=3))
    assert cli.main(["train", "cartpole", "--run", str(tmp_path / "run"), *words]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len([line for line in said if "action_mask" in line]) == 1
    assert "step 3 of its episode: action_mask allows no action: fix the environment" in said[-1]
