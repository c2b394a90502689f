"""Environments: samples belong to global indices, and a saved state comes back bit for bit."""

import itertools
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Text

from distqtrl.config import stages as config
from distqtrl.config.sources import preset
from distqtrl.environment.single import Single
from distqtrl.environment.spaces import Spaces, spaces
from distqtrl.environment.vector import Environments
from distqtrl.errors import UserError

NAMES = ["CartPole-v1", "FrozenLake-v1", "Acrobot-v1", "Pendulum-v1"]
TOY = "distqtrl/Toy-v0"
UNSEEDED = itertools.count()


class Toy(gymnasium.Env):
    """Observes k, the number of steps; step k pays 10 k + action; every third step terminates."""

    def __init__(self, action=Discrete(2, start=1), observation=Box(0, np.inf, (1,)), drift=False):  # noqa: B008
        self.action_space, self.observation_space, self.drift, self.offset = action, observation, drift, 0

    def reset(self, *, seed=None, options=None):
        self.k, self.offset = 0, next(UNSEEDED) if self.drift else 0
        return self.observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        assert self.k < 3, "a step after the end"
        self.k += 1
        return self.observation(), float(10 * self.k + action), self.k == 3, False, {}

    def observation(self):
        return np.array([self.k + self.offset], dtype=np.float32)


gymnasium.register(TOY, Toy)


def environments(name, indices, seed=0, purpose="episode", episode=0, **settings):
    return Environments(config.Environment(id=name, **settings), indices, seed, purpose, episode)


def random_actions(name, indices, num_steps):
    space, columns = gymnasium.make(name).action_space, []
    for index in indices:
        space.seed(index)
        columns.append([space.sample() for _ in range(num_steps)])
    return np.stack(columns, axis=1)


def play(envs, actions):
    """Everything to be seen while the actions are taken, as arrays (T, B, ...)."""
    seen = []
    for actions_B in actions:
        step = envs.step(actions_B)
        own = (envs.obs_BO, envs.return_B.copy(), envs.episode_B.copy())
        seen.append((step.obs_BO, step.rewards_B, step.terminated_B, step.truncated_B, *own))
    return [np.array(column) for column in zip(*seen, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_depend_on_how_indices_are_split(name):
    actions, parts = random_actions(name, range(4), 60), []
    for indices in ([0, 1, 2, 3], [0, 1], [2, 3]):
        envs = environments(name, indices, max_episode_steps=25)
        parts.append([envs.obs_BO[np.newaxis], *play(envs, actions[:, indices])])
    for whole, first, second in zip(*parts, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate([first, second], axis=1))


def test_every_key_has_its_own_episode():
    keys = itertools.product([0, 1], ["episode", "validation"], [0, 1])
    starts = [environments("CartPole-v1", [0, 1], seed, purpose, episode).obs_BO for seed, purpose, episode in keys]
    assert len(np.unique(np.concatenate(starts), axis=0)) == 16


@pytest.mark.parametrize("num_steps", [0, 55])
@pytest.mark.parametrize("name", NAMES)
def test_restore_is_bitwise(name, num_steps):
    actions = random_actions(name, [3, 5], 105)
    saved, restored = (environments(name, [3, 5], max_episode_steps=40) for _ in range(2))
    play(saved, actions[:num_steps])
    play(restored, actions[50:57])
    state = saved.state()
    assert num_steps == 0 or state["length_B"].any()
    assert restored.restore(state) == []
    assert (restored.obs_BO.tobytes(), restored.return_B.tobytes()) == (
        saved.obs_BO.tobytes(),
        saved.return_B.tobytes(),
    )
    saved.finished, restored.finished = [], []
    for a, b in zip(play(saved, actions[-50:]), play(restored, actions[-50:]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert saved.finished == restored.finished != []
    assert {key: x.tobytes() for key, x in saved.state().items()} == {
        key: x.tobytes() for key, x in restored.state().items()
    }


def test_discrete_observations_are_one_hot():
    assert environments("FrozenLake-v1", [0]).obs_BO.tolist() == [[1.0] + 15 * [0.0]]
    assert Single(config.Environment(id="FrozenLake-v1")).spaces == (Spaces(16, 4, 0, (), ()),)


def test_an_episode_that_cannot_be_replayed_is_left_for_the_next():
    saved, restored = (environments(TOY, [4, 7], kwargs={"drift": True}) for _ in range(2))
    play(saved, [[1, 1]] * 4)
    state = saved.state()
    assert restored.restore(state) == [4, 7]
    assert restored.episode_B.tolist() == [2, 2]
    play(restored, [[1, 2]] * 3)
    assert restored.finished == [(63.0, 3), (66.0, 3)]


def test_only_the_environment_that_differs_restarts():
    saved, restored = (environments(TOY, [4, 7]) for _ in range(2))
    play(saved, [[1, 2]] * 2)
    state = saved.state()
    state["obs_BO"][1] += 1
    assert restored.restore(state) == [7]
    assert restored.obs_BO.tolist() == [[2], [0]]
    assert (restored.episode_B.tolist(), restored.return_B.tolist()) == ([0, 1], [32.0, 0.0])


def test_a_replay_that_ends_too_early_is_left_for_the_next_episode():
    envs = environments(TOY, [4, 7])
    play(envs, [[1, 1]] * 2)
    state = envs.state() | {"length_B": np.array([4, 2]), "actions": np.ones(6, dtype=np.int64)}
    assert envs.restore(state) == [4]


def test_finished_episodes_and_the_final_observation():
    envs = environments(TOY, [0, 1])
    obs, rewards, terminated, truncated, seen, _, episode = play(envs, [[1, 2]] * 7)
    assert envs.finished == [(63.0, 3), (66.0, 3)] * 2
    assert obs[:, 0, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert seen[:, 0, 0].tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert rewards[:, 1].tolist() == [12, 22, 32, 12, 22, 32, 12]
    assert terminated[:, 0].tolist() == [False, False, True] * 2 + [False]
    assert not truncated.any()
    assert episode[-1].tolist() == [2, 2]


def test_a_time_limit_truncates():
    envs = environments(TOY, [0], max_episode_steps=2)
    obs, _, terminated, truncated, *_ = play(envs, [[1]] * 4)
    assert (obs.ravel().tolist(), envs.finished) == ([1, 2, 1, 2], [(32.0, 2)] * 2)
    assert truncated.ravel().tolist() == [False, True] * 2
    assert not terminated.any()


def test_restart_leaves_only_what_was_begun():
    envs = environments(TOY, [0, 1])
    envs.restart()
    assert envs.episode_B.tolist() == [0, 0]
    play(envs, [[1, 1]])
    envs.restart()
    assert (envs.episode_B.tolist(), envs.obs_BO.tolist(), envs.return_B.tolist()) == ([1, 1], [[0], [0]], [0, 0])
    assert envs.finished == []


def test_those_that_wait_stay_where_they_are():
    envs = environments(TOY, [0, 1])
    envs.step(np.array([1, 1]))
    step = envs.step(np.array([1, 1]), np.array([True, False]))
    assert (step.obs_BO.tolist(), step.rewards_B.tolist()) == ([[2], [1]], [21.0, 0.0])
    assert (envs.obs_BO.tolist(), envs.return_B.tolist()) == ([[2], [1]], [32.0, 11.0])
    assert [len(history) for history in envs.actions] == [2, 1]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("CartPol-v1", {}, "unknown environment 'CartPol-v1': did you mean 'CartPole-v1'"),
        ("CartPole-v1", {"nope": 1}, "unexpected keyword argument 'nope'"),
        ("FrozenLake-v1", {"map_name": "nope"}, "nope"),
        ("nowhere:Toy-v0", {}, "No module named 'nowhere'"),
        ("not an id", {}, "Malformed"),
        ("ALE/Pong-v5", {}, "unknown environment .* pass module:ALE/Pong-v5"),
        (TOY, {"observation": Text(5)}, "observation space Text is not a vector of fixed length: wrap the environment"),
        (TOY, {"observation": Sequence(Box(0, 1))}, "observation space Sequence is not a vector"),
        (TOY, {"observation": Discrete(10**9)}, "is 1,000,000,000 numbers, one to 10,000,000 can be read"),
        (TOY, {"observation": Box(0, 1, (0,))}, "is 0 numbers"),
        (TOY, {"action": Box(0, 2**31 - 1, (1,), np.int64)}, "has integers beyond 16777216, .* scale it itself"),
        (TOY, {"action": Text(3)}, "action space Text"),
        (TOY, {"action": Box(0, np.inf, (1,))}, "action space Box"),
        (TOY, {"action": Box(0, 1, (1, 1))}, "action space Box"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(name, kwargs, message):
    with pytest.raises(UserError, match=message) as error:
        Single(config.Environment(id=name, kwargs=kwargs))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_minigrid_shows_its_image_and_takes_the_first_actions():
    pytest.importorskip("minigrid")
    cfg = preset("qtrl-minigrid").environment
    env = Single(cfg)
    assert env.spaces == (Spaces(147, 3, 0, (), (), image=(1, 7, 7, 3)),)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, env.env.unwrapped.gen_obs()["image"].ravel())
    rewards = [env.step(np.int64(action))[1] for action in (2, 2, 1, 2, 2)]  # forward, forward, right, forward, forward
    assert rewards == [0, 0, 0, 0, pytest.approx(0.955)]  # the ceiling: 1 - 0.9 * 5 / 100
    lost = Environments(cfg, [0], 0, "episode")
    steps = [lost.step(np.array([0])) for _ in range(100)]
    assert [bool(s.truncated_B[0]) for s in steps] == [False] * 99 + [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": "b"}, "environment.observation = 'b' is not there: known: a"),
        ({"kwargs": {}, "observation": "a"}, "environment.observation = 'a' is not there: it observes Box"),
        ({"observation": "a", "num_actions": 9}, "environment.num_actions = 9 does not fit its actions, Discrete"),
    ],
)
def test_parts_that_are_not_there_are_named(changes, message):
    values = {"id": TOY, "kwargs": {"observation": Dict(a=Box(0, 1))}, **changes}
    with pytest.raises(UserError, match=message):
        Single(config.Environment(**values))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(UserError, match=r"minigrid.*pip install 'distqtrl\[minigrid\]'"):
        Single(preset("qtrl-minigrid").environment)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Discrete(2, start=1), Spaces(1, 2, 1, (), ())),
        (Box(np.float32([-1, 0]), np.float32([1, 3])), Spaces(1, None, 0, (-1.0, 0.0), (1.0, 3.0))),
    ],
)
def test_spaces(action, expected):
    assert spaces(Toy().observation_space, action, "") == expected


def test_a_rank_without_environments_leaves_none_open(monkeypatch):
    made, closed = [], []
    monkeypatch.setattr(Single, "__init__", counted(made, Single.__init__))
    monkeypatch.setattr(Single, "close", counted(closed, Single.close))
    Environments(config.Environment(id="CartPole-v1"), [], seed=0, purpose="train").close()
    assert len(made) == len(closed) == 1


@pytest.mark.parametrize("how", ["raises", "no space", "reset"])
def test_environments_that_cannot_all_be_had_are_closed(monkeypatch, how):
    opened, closed = [], []

    class Third(Toy):
        def __init__(self):
            super().__init__(action=Text(3) if how == "no space" and len(opened) == 2 else Discrete(2))
            if how == "raises" and len(opened) == 2:
                raise RuntimeError("no more seats")
            opened.append(self)

        def reset(self, **kwargs):
            if how == "reset" and self is opened[2]:
                raise RuntimeError("no more seats")
            return super().reset(**kwargs)

        def close(self):
            closed.append(self)

    monkeypatch.setitem(gymnasium.registry, "Third-v0", gymnasium.envs.registration.EnvSpec("Third-v0", Third))
    with pytest.raises(UserError):
        Environments(config.Environment(id="Third-v0"), range(4), seed=0, purpose="evaluation")
    assert len(opened) >= 2
    assert set(closed) == set(opened)


def counted(calls, function):
    def call(*args, **kwargs):
        calls.append(function)
        return function(*args, **kwargs)

    return call
