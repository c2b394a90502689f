"""Several policies in one run: what they share and what they do not, how they step, what leaves, what is refused."""

import itertools
import json
import shlex
from pathlib import Path

import games
import numpy as np
import pytest
import torch
from runs import as_words, tiny

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Serial
from distqtrl.circuit import qpu
from distqtrl.circuit.shift import Ranks
from distqtrl.cli import main as cli
from distqtrl.config import stages as config
from distqtrl.config.run import Config
from distqtrl.config.sources import with_flags
from distqtrl.config.stages import Agents, Circuit, Qpu
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.errors import UserError
from distqtrl.generator import generator
from distqtrl.policy import policy_file
from distqtrl.training import loop as train
from distqtrl.training import roles, updates
from distqtrl.training.build import prepare
from distqtrl.training.placement import blocks
from distqtrl.training.policy_gradient import samples as samples_module
from distqtrl.training.policy_gradient.learner import PolicyGradient, step
from distqtrl.training.policy_gradient.samples import minibatches, rollout

TINY = tiny(
    mapping_chunk=8,
    policy_hidden=8,
    algorithm_rollout_steps=12,
    algorithm_epochs=2,
    algorithm_minibatches=2,
    environment_local_num=3,
    evaluate_episodes=3,
    train_precision="float64",
    train_updates=2,
    train_steps=None,
)
TRUST = "--import-environment"  # the games are a module of the tests
COIN = {"environment.id": "distqtrl.environment.coin_game/parallel_env", "environment.max_episode_steps": "10"}
TALK = {"environment.id": "mpe2/simple_speaker_listener_v4", "environment.max_episode_steps": "10"}
SHARING = ("shared", "independent", "shared_circuit")


def prepared(game, sharing="shared", **flags):
    every = {**TINY, **game, "agents.sharing": sharing, **{key.replace("__", "."): x for key, x in flags.items()}}
    return prepare(with_flags(Config(), every), Serial())


def flat(parameters):
    return np.concatenate([p.detach().numpy().ravel() for p in parameters])


@pytest.mark.parametrize("critic", ["independent", "centralised"])
@pytest.mark.parametrize(
    ("sharing", "game"),
    [pytest.param(sharing, COIN, id=f"{sharing}-coin") for sharing in SHARING]
    + [pytest.param(sharing, TALK, id=f"{sharing}-talk") for sharing in SHARING[1:]],  # shared is refused, see below
)
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_every_way_of_sharing_trains(tmp_path, algorithm, sharing, game, critic):
    flags = {"agents__critic": critic, "algorithm__name": algorithm, "policy__normalize_observations": "true"}
    if algorithm == "reinforce":
        flags |= {"algorithm__rollout": "episodes"}
    run = prepared(game, sharing, **flags)
    before = [flat(learner.parameters) for learner in run.policies.learners]
    result = train.train(run, tmp_path)
    after = [flat(learner.parameters) for learner in run.policies.learners]
    assert all((a != b).mean() > 0.5 for a, b in zip(before, after, strict=True))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    agents = run.environments.agents
    assert rows[-1]["agent_returns"].keys() == result["agents"].keys() == set(agents)
    assert np.mean(list(rows[-1]["agent_returns"].values())) == pytest.approx(rows[-1]["return_mean"])
    assert np.mean(list(result["agents"].values())) == pytest.approx(result["evaluation"]["mean"])
    names = ["policy"] if sharing == "shared" else [f"policy-{agent}" for agent in agents]
    assert sorted(path.stem for path in tmp_path.glob("policy*")) == sorted(names)
    assert ("policies" in rows[-1]) == (sharing != "shared")
    if sharing != "shared":
        losses = [policy["value_loss"] for policy in rows[-1]["policies"].values()]
        assert losses[0] != losses[1]
    assert run.learner.generator.qpu.ledger.circuits == result["qpu"]["circuits_per_gradient"] + {
        "shared": 1, "independent": 2, "shared_circuit": 1,
    }[sharing] * (1 + run.learner.num_steps)  # fmt: skip
    # what leaves plays as the run said it does
    policies = policy_file.team(tmp_path)
    roles = [policy.agents for policy in policies]
    envs = Environments(run.config.environment, range(3), 0, "evaluation", 0, roles)
    returns_B, _ = play(envs, envs.acting([policy.act for policy in policies]))
    assert returns_B.reshape(3, -1).mean() == pytest.approx(result["evaluation"]["mean"], abs=1e-4)


def test_policies_begin_differently_and_share_what_they_should():
    independent, shared = prepared(COIN, "independent"), prepared(COIN, "shared_circuit")
    a, b = (learner.generator for learner in independent.policies.learners)
    assert a.qpu is b.qpu
    assert not torch.equal(a.theta_P, b.theta_P)
    assert not torch.equal(*(next(iter(g.mapping.parameters())) for g in (a, b)))
    c, d = (learner.generator for learner in shared.policies.learners)
    assert torch.equal(a.theta_P, c.theta_P)  # of agent 0, however the others share
    assert not hasattr(d, "theta_P")
    assert len(list(d.parameters())) == len(list(c.parameters())) - 1
    torch.testing.assert_close(d(), d.mapping(c.probabilities()))
    # a policy's first weights do not depend on who else there is
    torch.testing.assert_close(independent.policies.learners[1].weights(), b())


@pytest.mark.parametrize("backend", ["statevector", "torch"])
@pytest.mark.parametrize("settings", [{}, {"shots": 64, "gradient": "parameter-shift"}])
def test_a_batch_of_circuits_is_what_they_are_one_by_one(backend, settings):
    rng = np.random.default_rng(0)
    batch, single = (qpu.build(Circuit(), Qpu(backend=backend, **settings), 3) for _ in range(2))
    theta_KP, v_KS = rng.normal(size=(4, batch.num_angles)), rng.normal(size=(4, 8))
    p_KS, gradient = batch.probabilities_batch(theta_KP)
    expected = [single.probabilities(theta_P) for theta_P in theta_KP]
    np.testing.assert_allclose(p_KS, [p_S for p_S, _ in expected], rtol=0, atol=1e-12)
    gradients = [back(v_S) for (_, back), v_S in zip(expected, v_KS, strict=True)]
    found = gradient(v_KS)
    if not settings:  # with shots, the circuits' numbers, and so their draws, come in another order
        np.testing.assert_allclose(found, gradients, rtol=0, atol=1e-12)
    assert batch.ledger == single.ledger


def test_independent_policies_step_as_if_they_were_alone():
    """Together, with one reduction and one batch of circuits, and one after the other."""
    together, alone = prepared(TALK, "independent"), prepared(TALK, "independent")
    found = []
    for run in (together, alone):
        learners = run.policies.learners
        acting = [learner.acting_weights(0) for learner in learners]
        whole = rollout(run.config, run.environments, 0, run.policies.players(acting))
        parts = [
            whole.of(run.environments.rows[k], run.environments.widths[k], run.policies.specs[k].head.unpadded)
            for k in range(2)
        ]
        samples = [samples_module.samples(r, part, w) for r, part, w in zip(learners, parts, acting, strict=True)]
        for batch in samples:
            batch.adv_N = batch.adv_N.to(torch.float64)
        counts = [len(batch.adv_N) for batch in samples]
        if run is together:
            step(learners, samples, counts, "")
        else:
            for k in range(2):
                learners[k].generated.forget()
                step([learners[k]], [samples[k]], [counts[k]], "")
        found.append([flat(learner.parameters) for learner in learners])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_a_shared_circuit_gets_the_sum_of_its_policies_gradients():
    run = prepared(TALK, "shared_circuit")
    first, second = run.policies.learners
    theta_P = first.generator.theta_P
    rng = np.random.default_rng(0)
    cotangents = [torch.from_numpy(rng.normal(size=r.architecture.num_weights)) for r in (first, second)]
    expected = [
        torch.autograd.grad(r.generator(), theta_P, v_M)[0] for r, v_M in zip((first, second), cotangents, strict=True)
    ]
    from distqtrl.training.step import pull_back

    pull_back([first, second], cotangents)
    torch.testing.assert_close(theta_P.grad, sum(expected), rtol=1e-9, atol=1e-12)
    assert float(expected[1].abs().max()) > 0


def test_minibatches_deal_out_only_steps_in_which_an_agent_acted():
    run = prepared({"environment.id": "games/Relay"}, "independent")
    metrics, *_ = updates.update(run, [])
    acted = run.counters.acted
    assert (sum(acted), acted) == (3 * (12 + 6 + 9), [36, 18, 27])
    whole = rollout(run.config, run.environments, 1, run.policies.players([r.weights() for r in run.policies.learners]))
    b = whole.of(run.environments.rows[1], 2, run.policies.specs[1].head.unpadded)
    (*_, last) = minibatches(run.learner.recipe, run.config.train.seed, run.environments.numbers(1), b.valid_TB, 1)
    assert sorted(torch.cat(last).tolist()) == list(range(18))
    assert metrics["policies"].keys() == {"a", "b", "c"}


# An agent's return is that of its own steps: gamma = lambda = 1, values 0, rewards are the actions.
def test_advantages_end_where_an_agent_ends():
    flags = {"algorithm__gamma": "1", "algorithm__gae_lambda": "1", "algorithm__normalize_advantages": "false"}
    run = prepared({"environment.id": "games/Relay"}, "independent", **flags)
    for learner in run.policies.learners:
        learner.value = None
    acting = [learner.acting_weights(0) for learner in run.policies.learners]
    whole = rollout(run.config, run.environments, 0, run.policies.players(acting))
    for k, (learner, w_M) in enumerate(zip(run.policies.learners, acting, strict=True)):
        own = whole.of(run.environments.rows[k], 2, run.policies.specs[k].head.unpadded)
        samples = samples_module.samples(learner, own, w_M)
        adv_TB = np.zeros(own.valid_TB.shape)
        adv_TB[own.valid_TB] = samples.adv_N
        ends = {0: 4, 1: 2, 2: 4}[k]
        for begin in (0, 4, 8):  # three episodes of four steps
            expected = own.rewards_TB[begin : begin + ends].sum(0)
            first = begin + (k == 2)
            np.testing.assert_allclose(adv_TB[first], expected)


def test_chsh_stays_at_the_classical_bound(tmp_path):
    """Policies that a circuit generated are classical where they act: no correlation beyond 0.75."""
    flags = {
        "train__updates": "60", "environment__local_num": "32", "algorithm__rollout_steps": "1",
        "algorithm__minibatches": "1", "algorithm__learning_rate": "0.02", "algorithm__epochs": "4",
    }  # fmt: skip
    run = prepared({"environment.id": "games/Chsh"}, "independent", **flags)
    train.train(run, tmp_path)
    said = []
    for learner in run.policies.learners:
        logits = learner.acting(learner.weights().detach())(*2 * [np.array([[-1.0], [1.0]])])
        said.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    played = itertools.product(range(2), repeat=4)
    won = sum(said[0][x, a] * said[1][y, b] / 4 for x, y, a, b in played if (a ^ b) == x * y)
    assert 0.7 < won <= 0.75 + 1e-12


@pytest.mark.parametrize(("reward", "best"), [("own", 0.0), ("team", 2.0)])
def test_who_learns_from_the_teams_reward_gives(tmp_path, reward, best):
    flags = {
        "train__updates": "40", "environment__local_num": "16", "algorithm__rollout_steps": "1",
        "algorithm__minibatches": "1", "algorithm__learning_rate": "0.02", "agents__reward": reward,
    }  # fmt: skip
    run = prepared({"environment.id": "games/Gift"}, **flags)
    result = train.train(run, tmp_path)
    assert result["evaluation"]["mean"] == best


@pytest.mark.parametrize(
    ("game", "flags", "message"),
    [
        (
            TALK,
            {},
            "agents.sharing shared needs equal spaces: .*speaker_0 has 3 observations, 3 actions, listener_0 has 11",
        ),
        (
            COIN,
            {"algorithm__name": "sac"},
            "algorithm.name sac trains one agent, .*coin_game/parallel_env has 2: use ppo",
        ),
        (
            {},
            {"agents__critic": "centralised"},
            "CartPole-v1 has one agent, agents.critic = centralised needs several: set --agents.critic independent",
        ),
        (COIN, {"agents__placement": "spread"}, "agents.placement spread needs agents.sharing independent, not shared"),
        (
            COIN,
            {"agents__placement": "spread", "agents__sharing": "independent", "qpu__replicas": "2"},
            "agents.placement spread needs qpu.replicas 1",
        ),
        (COIN, {"environment__image": "3"}, "environment.image takes rows and columns"),
    ],
)
def test_what_does_not_fit_is_refused(game, flags, message):
    with pytest.raises(UserError, match=message):
        prepared(game, **flags)


def test_an_agent_that_never_acts_is_named():
    run = prepared({"environment.id": "games/Idle"}, "independent")
    with pytest.raises(
        Refused, match="games/Idle: agent b has not acted in 12 episodes: leave it out of possible_agents"
    ):
        updates.update(run, [])


def test_groups_of_equal_spaces():
    run = prepared({"environment.id": "games/Relay"}, "shared_circuit", agents__heads="group")
    assert run.policies.roles == [("a", "b", "c")]
    run = prepared({"environment.id": "games/Mixed"}, "shared_circuit", agents__heads="group")
    assert run.policies.roles == [("a",), ("b",)]
    assert run.policies.names == ["a", "b"]
    updates.update(run, [])


def test_blocks_of_ranks_and_roles():
    class Rank(Serial):
        def __init__(self, rank, size):
            self.rank, self.size = rank, size

    assert [blocks(2, Rank(r, 4)) for r in range(4)] == [([0], [0, 1])] * 2 + [([1], [2, 3])] * 2
    assert [blocks(3, Rank(r, 2)) for r in range(2)] == [([0, 1], [0]), ([2], [1])]
    assert [blocks(3, Rank(r, 3)) for r in range(3)] == [([k], [k]) for k in range(3)]


def test_policies_of_integers_are_programs_of_their_own(tmp_path):
    flags = {"quantize__aware": "true", "quantize__core_bits": "3", "quantize__warmup": "1"}
    result = train.train(prepared(TALK, "independent", **flags), tmp_path)
    policies = policy_file.team(tmp_path)
    assert all(policy.trained is not None for policy in policies)
    envs = Environments(
        config.Environment(**policies[0].environment), range(3), 0, "evaluation", 0, [p.agents for p in policies]
    )
    returns_B, _ = play(envs, envs.acting([policy.act for policy in policies]))
    assert returns_B.mean() == pytest.approx(result["evaluation"]["mean"])


def test_a_circuit_is_the_same_wherever_it_is_held():
    """Also where the other agents' policies are larger, and need more qubits."""
    run = prepared(TALK, "independent", mapping__chunk="2")
    speaker, listener = run.policies.learners
    assert speaker.architecture.num_weights < listener.architecture.num_weights / 1.5
    layers = [r.architecture.layers for r in run.policies.learners]
    for learner in run.policies.learners:
        (alone,) = generator.several(run.config, layers, [learner.number], Ranks())
        alone.set_precision(torch.float64)
        torch.testing.assert_close(alone(), learner.weights())


def test_on_one_rank_spread_is_all(tmp_path):
    states = []
    for placement in ("all", "spread"):
        run = prepared(TALK, "independent", agents__placement=placement)
        updates.update(run, [])
        states.append(np.concatenate([flat(learner.parameters) for learner in run.policies.learners]))
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("sharing", SHARING)
def test_a_centralised_critic_has_its_own_inputs(sharing):
    run = prepared(COIN, sharing, agents__critic="centralised")
    for learner in run.policies.learners:
        assert isinstance(learner, PolicyGradient)
        assert learner.num_states == 36 + (2 if sharing == "shared" else 0)
        assert learner.value[0].in_features == learner.num_states
    assert prepared(COIN, sharing).learner.value[0].in_features == 36 + (2 if sharing == "shared" else 0)


def test_agents_that_are_no_names_of_files(tmp_path, capfd):
    odder = {"environment.id": "games/Odder", "environment.kwargs": "{}", "agents.sharing": "independent"}
    words = as_words(TINY, odder, {"train.precision": "float32"})
    run = tmp_path / "a run"
    assert cli.main(["train", "coin-game", "--run", str(run), *words]) == 0
    said = capfd.readouterr().out.splitlines()
    files = [
        Path(line.partition("  ")[2].strip().partition(" ")[2].strip()) for line in said if line.startswith("  policy")
    ]
    assert files == policy_file.files(run)
    assert len(files) == 4
    play, export = (shlex.split(line)[1:] for line in said[-2:])
    assert play[:2] == ["distqtrl", "evaluate"]
    assert cli.main([*play[1:], "--episodes", "2", "--json", TRUST]) == 0
    assert set(json.loads(capfd.readouterr().out)["agents"]) == set(games.Odder.names)
    assert cli.main([*export[1:], "--target", "c", "--vectors", "100", "--episodes", "2", TRUST]) == 0


@pytest.mark.parametrize("names", [(1, "1"), ("a", ""), ("a", "b", "a")])
def test_agents_have_names_of_their_own(names):
    with pytest.raises(UserError, match=r"called ('1'|''|'a') as text: give every agent a name of its own in possible"):
        roles.roles(Agents(), [str(name) for name in names], [()] * len(names), "games/Odd")


def test_commands_of_a_run_with_a_policy_per_agent(tmp_path, capfd):
    words = as_words(TINY, TALK, {"train.precision": "float32"})
    run = tmp_path / "run"
    assert cli.main(["train", "simple-speaker-listener", "--run", str(run), "--json", *words]) == 0
    trained = json.loads(capfd.readouterr().out)
    found = []
    for place in (run, run / "policy-listener_0.safetensors"):  # a file brings those beside it
        assert cli.main(["evaluate", str(place), "--episodes", "3", "--json"]) == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0]["mean"] == found[1]["mean"] == pytest.approx(trained["evaluation"]["mean"], abs=1e-5)
    assert found[0]["agents"] == pytest.approx(trained["agents"], abs=1e-5)

    assert cli.main(["export", str(run), "-o", str(tmp_path / "x")]) == 2
    assert "has several policies: give one of policy-listener_0.safetensors, policy-s" in capfd.readouterr().err
    made = tmp_path / "exported"
    quick = ["--target", "c", "--vectors", "2000", "--episodes", "2"]
    assert cli.main(["export", str(run / "policy-listener_0.safetensors"), "-o", str(made), *quick]) == 0
    assert "closed loop" in capfd.readouterr().out
    assert cli.main(["verify", str(made), "--vectors", "2000", "--episodes", "2"]) == 0
    assert "2 episodes of mpe2/simple_speaker_listener_v4 driven by C" in capfd.readouterr().out

    (run / "policy-speaker_0.safetensors").unlink()
    assert cli.main(["evaluate", str(run)]) == 2
    assert "do not play each agent once, see speaker_0" in capfd.readouterr().err
