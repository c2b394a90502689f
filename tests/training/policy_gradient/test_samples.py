"""From rollouts to samples: bootstrapping worked out by hand, and independence of how environments are spread."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from distqtrl.allreduce.communicator import Serial
from distqtrl.config.run import Config
from distqtrl.config.sources import preset, with_flags
from distqtrl.environment.rollout import play
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Environments
from distqtrl.policy.distribution import Categorical, Gaussian
from distqtrl.policy.network import Architecture
from distqtrl.training.algorithms import ALGORITHMS
from distqtrl.training.build import prepare
from distqtrl.training.evaluation import greedy_episodes
from distqtrl.training.plan import spec
from distqtrl.training.player import player
from distqtrl.training.policy_gradient import samples as samples_module
from distqtrl.training.policy_gradient.learner import STATISTICS, step
from distqtrl.training.policy_gradient.samples import normalise_episodes

CHAIN = "distqtrl/Chain-v0"
LIMITS = {"terminated": {"kwargs": {"length": 2}}, "truncated": {"max_episode_steps": 2}}


class Chain(gymnasium.Env):
    """Observes k, the number of steps; step k pays 4 k; step `length` terminates."""

    observation_space, action_space = Box(0, np.inf, (1,)), Discrete(2, start=1)

    def __init__(self, length=99):
        self.length, self.episodes = length, 0

    def reset(self, *, seed=None, options=None):
        self.k, self.episodes = 0, self.episodes + 1
        assert self.episodes < 100, "a rollout without end"
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.k += 1
        return np.array([self.k], dtype=np.float32), 4.0 * self.k, self.k == self.length, False, {}


gymnasium.register(CHAIN, Chain)


def made(algorithm, **environment):
    """A linear policy with weights of its own, in double precision."""
    config = Config.model_validate(
        {
            "train": {"precision": "float64"},
            "generator": {"source": "direct"},
            "policy": {"hidden": []},
            "environment": environment,
            "algorithm": {"gamma": 0.5, "gae_lambda": 0.5, **algorithm},
        }
    )
    return prepare(config, Serial()).learner


def rolled(learner, envs, update):
    return samples_module.rollout(learner.config, envs, update, [player(learner, learner.weights().detach())])


def environments(learner, indices):
    return Environments(learner.config.environment, indices, 0, "episode")


# V(s) = s, gamma = lambda = 1/2; observations 0 1 | 0, what followed 1 2 | 1, rewards 4 8 | 4.
# delta_0 = 4 + V(1)/2 - V(0) = 4.5
# delta_1 = 8 - V(1) = 7 when terminated; 8 + V(2)/2 - V(1) = 8 when truncated
# delta_2 = 4 + V(1)/2 - V(0) = 4.5: the rollout ends, its episode does not
# A_0 = delta_0 + delta_1/4, A_1 = delta_1, A_2 = delta_2; the returns are A + V.
@pytest.mark.parametrize(
    ("limit", "adv", "returns"),
    [("terminated", [6.25, 7, 4.5], [6.25, 8, 4.5]), ("truncated", [6.5, 8, 4.5], [6.5, 9, 4.5])],
)
def test_truncation_is_bootstrapped_and_termination_is_not(limit, adv, returns):
    learner = made({"rollout_steps": 3}, id=CHAIN, **LIMITS[limit])
    learner.value = torch.nn.Identity()
    samples = samples_module.samples(
        learner,
        rolled(learner, environments(learner, [0]), 0),
        learner.weights().detach(),
    )
    assert samples.obs_NO.ravel().tolist() == [0, 1, 0]
    assert samples.adv_N.tolist() == adv
    assert samples.returns_N.tolist() == returns


# REINFORCE uses lambda = 1. Without a baseline: returns-to-go 4 + 8/2 = 8 and 8, however the episode ended.
# With V(s) = s: terminated 8 - V(0) = 8 and 8 - V(1) = 7; truncated 8 + V(2)/4 - V(0) = 8.5 and 8 + V(2)/2 - V(1) = 8.
@pytest.mark.parametrize(
    ("limit", "baseline", "adv"),
    [
        ("terminated", False, [8, 8]),
        ("truncated", False, [8, 8]),
        ("terminated", True, [8, 7]),
        ("truncated", True, [8.5, 8]),
    ],
)
def test_reinforce_over_whole_episodes(limit, baseline, adv):
    algorithm = {"name": "reinforce", "rollout": "episodes", "baseline": baseline}
    learner = made(algorithm, id=CHAIN, **LIMITS[limit])
    assert (learner.value is not None) == baseline
    if baseline:
        learner.value = torch.nn.Identity()
    samples = samples_module.samples(
        learner,
        rolled(learner, environments(learner, [0]), 0),
        learner.weights().detach(),
    )
    assert samples.adv_N.tolist() == adv


def test_episodes_are_normalised_each_by_itself():
    learner = made({"name": "reinforce", "rollout": "episodes", "baseline": False}, id="CartPole-v1")
    rollout = rolled(learner, environments(learner, [0, 1, 2]), 0)
    samples = samples_module.samples(learner, rollout, learner.weights().detach())
    before, after = (np.full(rollout.valid_TB.shape, np.nan) for _ in range(2))
    before[rollout.valid_TB] = samples.adv_N
    normalise_episodes(samples, rollout, 1e-8)
    after[rollout.valid_TB] = samples.adv_N
    for b, valid_T in enumerate(rollout.valid_TB.T):
        returns = torch.from_numpy(before[valid_T, b])
        expected = (returns - returns.mean()) / (returns.std() + 1e-8)  # as the authors' code has it
        np.testing.assert_allclose(after[valid_T, b], expected, rtol=1e-12)


def test_an_episode_of_one_step_has_no_deviation():
    learner = made({"name": "reinforce", "rollout": "episodes", "baseline": False}, id=CHAIN, kwargs={"length": 1})
    rollout = rolled(learner, environments(learner, [0]), 0)
    samples = samples_module.samples(learner, rollout, learner.weights().detach())
    normalise_episodes(samples, rollout, 1e-8)
    assert samples.adv_N.tolist() == [0.0]


def test_summed_loss_is_the_mean_over_environments_of_sums():
    norms, statistics = {}, {}
    for loss in ("mean", "sum"):
        algorithm = {
            "name": "reinforce",
            "rollout": "episodes",
            "baseline": False,
            "loss": loss,
            "max_grad_norm": "none",
        }
        learner = made(algorithm, id="CartPole-v1", local_num=3)
        samples = samples_module.samples(
            learner,
            rolled(learner, environments(learner, [0, 1, 2]), 0),
            learner.weights().detach(),
        )
        (statistics[loss],), (norms[loss],) = step([learner], [samples], [len(samples.adv_N)], "")
    np.testing.assert_allclose(norms["sum"], norms["mean"] * len(samples.adv_N) / 3, rtol=1e-12)
    np.testing.assert_allclose(statistics["sum"], statistics["mean"], rtol=1e-12)  # per sample, whatever the loss


@pytest.mark.parametrize(("limit", "clipped"), [("none", False), (1e-3, True)])
def test_gradients_are_clipped_only_when_asked(limit, clipped):
    learner = made({"rollout": "episodes", "max_grad_norm": limit}, id="CartPole-v1")
    samples = samples_module.samples(
        learner,
        rolled(learner, environments(learner, [0]), 0),
        learner.weights().detach(),
    )
    _, (norm,) = step([learner], [samples], [len(samples.adv_N)], "")
    applied = torch.cat([p.grad.flatten() for p in learner.parameters]).norm().item()
    assert applied == pytest.approx(1e-3 if clipped else norm)


@pytest.mark.parametrize(("name", "hidden", "total"), [("qtrl-cartpole", 93, 651), ("qtrl-minigrid", 17, 2529)])
def test_the_equal_mlp_has_as_many_weights_as_the_circuit_trains_numbers(name, hidden, total):
    cfg = with_flags(preset(name), {"generator.source": "equal_mlp"})
    o, a = (4, 2) if name == "qtrl-cartpole" else (147, 3)
    architecture = spec(cfg, ALGORITHMS["ppo"], ("",), Spaces(o, a, 0, (), ())).architecture
    assert architecture.hidden == (hidden,)
    assert abs(architecture.num_weights - total) <= (o + 1 + a) / 2


def test_samples_of_whole_episodes_are_the_valid_steps():
    learner = made({"rollout": "episodes"}, id="CartPole-v1")
    rollout = rolled(learner, environments(learner, [0, 1, 2]), 0)
    samples = samples_module.samples(learner, rollout, learner.weights().detach())
    assert not rollout.valid_TB.all()
    np.testing.assert_array_equal(samples.obs_NO, rollout.obs_TBO[rollout.valid_TB])
    np.testing.assert_array_equal(samples.actions, rollout.actions[rollout.valid_TB])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_samples_do_not_depend_on_how_indices_are_split(name):
    learner = made({"rollout_steps": 80}, id=name)
    parts = []
    for indices in ([0, 1, 2, 3], [0, 1], [2, 3]):
        envs = environments(learner, indices)
        rollouts = [rolled(learner, envs, update) for update in range(2)]
        parts.append([rollout.obs_TBO for rollout in rollouts] + [rollout.actions for rollout in rollouts])
    for whole, first, second in zip(*parts, strict=True):
        np.testing.assert_allclose(whole, np.concatenate([first, second], axis=1), rtol=1e-9, atol=1e-9)


def test_every_update_and_environment_draws_its_own_actions():
    learner = made({"rollout_steps": 60}, id=CHAIN, kwargs={"length": 1})  # always in doubt
    rollouts = [rolled(learner, environments(learner, [0, 1]), update) for update in (0, 1)]
    np.testing.assert_array_equal(rollouts[0].obs_TBO, rollouts[1].obs_TBO)
    actions_TB = np.concatenate([rollout.actions for rollout in rollouts], axis=1)
    assert len(np.unique(actions_TB, axis=1).T) == 4


@pytest.mark.parametrize("name", [CHAIN, "CartPole-v1", "Pendulum-v1"])
def test_old_probabilities_are_those_of_the_policy_that_acted(name):
    learner = made({"rollout_steps": 20}, id=name)
    samples = samples_module.samples(
        learner,
        rolled(learner, environments(learner, [0, 1]), 0),
        learner.weights().detach(),
    )
    (statistics,), _ = step([learner], [samples], [40.0], "")
    first = dict(zip(STATISTICS, statistics, strict=True))
    assert (first["approx_kl"], first["clip_fraction"]) == pytest.approx((0, 0), abs=1e-14)
    assert first["policy_loss"] == pytest.approx(-samples.adv_N.mean().item())
    (statistics,), _ = step([learner], [samples], [40.0], "")
    assert dict(zip(STATISTICS, statistics, strict=True))["approx_kl"] > 0


@pytest.mark.parametrize(
    ("found", "architecture", "head"),
    [
        (Spaces(4, 2, 0, (), ()), Architecture(4, (8,), 2, "tanh"), Categorical(2)),
        (Spaces(1, 3, 1, (), ()), Architecture(1, (8,), 3, "tanh"), Categorical(3, start=1)),
        (Spaces(3, None, 0, (-2.0,), (2.0,)), Architecture(3, (8,), 1, "tanh"), Gaussian((-2.0,), (2.0,))),
    ],
)
def test_policy_for(found, architecture, head):
    config = Config.model_validate({"policy": {"hidden": [8], "activation": "tanh"}})
    made = spec(config, ALGORITHMS["ppo"], ("",), found)
    assert (made.architecture, made.head) == (architecture, head)


def test_the_policy_is_the_replica_s():
    learner = made({}, id="CartPole-v1")
    policy = learner.deployed(7, learner.deployed_weights())
    assert policy.w_M.tolist() == learner.weights().float().tolist()
    assert policy.origin == {"source": "direct", "env_steps": 7, "seed": 0}
    assert policy.environment["id"] == "CartPole-v1"


def test_greedy_episodes_belong_to_their_index():
    learner = made({}, id="CartPole-v1")
    policy = learner.deployed(0, learner.deployed_weights())
    found = greedy_episodes(learner.config, Serial(), [policy], "evaluation", 3, 4)
    returns = found.returns
    assert found.returns_GE.tolist() == [returns.tolist()]
    assert found.cut == 0
    alone = [Environments(learner.config.environment, [index], 0, "evaluation", 3) for index in range(4)]
    assert returns.tolist() == [play(envs, policy.act)[0].item() for envs in alone]
    assert returns.sum() == found.steps
    assert len(set(returns.tolist())) > 1
