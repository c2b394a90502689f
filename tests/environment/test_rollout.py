"""Rollouts: what followed a step is kept apart from what the next episode begins with."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from distqtrl.config import stages as config
from distqtrl.environment.rollout import AT_LEAST, AT_ONCE, BLOCK, collect, evaluation, play, summary
from distqtrl.environment.vector import Environments
from distqtrl.errors import Foreign

UNTIL = "distqtrl/Until-v0"


class Until(gymnasium.Env):
    """Observes k, the number of steps; step k pays k; action 1 terminates."""

    observation_space, action_space = Box(0, np.inf, (1,)), Discrete(2)

    def __init__(self):
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        self.k, self.episodes = 0, self.episodes + 1
        assert self.episodes < 100, "a rollout without end"
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.k += 1
        return np.array([self.k], dtype=np.float32), float(self.k), bool(action), False, {}


gymnasium.register(UNTIL, Until)


def environments(num, **settings):
    return Environments(config.Environment(id=UNTIL, **settings), range(num), 0, "episode")


def noise(steps):
    return np.zeros((steps, 2))


def until(*length_B):
    """An act function that ends environment b's episodes at length_B[b]."""
    return lambda obs_BO, noise_B: 2 * ((obs_BO[:, 0] + 1 >= length_B).astype(np.int64),)


def test_shapes_and_the_two_kinds_of_actions():
    envs = Environments(config.Environment(id="Pendulum-v1"), range(2), 0, "episode")
    scaled = np.float32([[0.5], [-2.0]])
    rollout = collect(envs, lambda obs_BO, noise_B: (obs_BO[:, :1], scaled), noise, 7)
    assert rollout.obs_TBO.shape == rollout.next_obs_TBO.shape == (7, 2, 3)
    assert rollout.obs_TBO.dtype == rollout.next_obs_TBO.dtype == np.float32
    np.testing.assert_array_equal(rollout.actions, rollout.obs_TBO[:, :, :1])
    np.testing.assert_array_equal(envs.actions, np.broadcast_to(scaled[:, np.newaxis], (2, 7, 1)))
    flags = (rollout.terminated_TB, rollout.truncated_TB, rollout.valid_TB)
    assert [x.shape for x in (rollout.rewards_TB, *flags)] == [(7, 2)] * 4
    assert [x.dtype for x in flags] == [np.bool_] * 3
    assert rollout.valid_TB.all()
    np.testing.assert_array_equal(rollout.next_obs_TBO[:-1], rollout.obs_TBO[1:])


@pytest.mark.parametrize("ending", ["truncated", "terminated"])
def test_the_next_observation_of_an_ended_episode_is_the_final_one(ending):
    envs = environments(1, max_episode_steps=3 if ending == "truncated" else None)
    rollout = collect(envs, until(3 if ending == "terminated" else 99), noise, 5)
    assert rollout.obs_TBO.ravel().tolist() == [0, 1, 2, 0, 1]
    assert rollout.next_obs_TBO.ravel().tolist() == [1, 2, 3, 1, 2]
    assert rollout.rewards_TB.ravel().tolist() == [1, 2, 3, 1, 2]
    third = [False, False, True, False, False]
    assert rollout.terminated_TB.ravel().tolist() == [x and ending == "terminated" for x in third]
    assert rollout.truncated_TB.ravel().tolist() == [x and ending == "truncated" for x in third]


def test_the_next_rollout_goes_on_where_the_last_one_stopped():
    envs = environments(1)
    parts = [collect(envs, until(5), noise, 3).obs_TBO.ravel().tolist() for _ in range(2)]
    assert parts == [[0, 1, 2], [3, 4, 0]]


def test_a_rollout_of_episodes_marks_the_steps_of_one_episode_each():
    envs = environments(2)
    for _ in range(2):  # the second one starts anew, whatever environment 0 was doing
        rollout = collect(envs, until(3, 4), noise, None)
        assert rollout.valid_TB.tolist() == [[True, True]] * 3 + [[False, True]]
        assert rollout.obs_TBO[0].tolist() == [[0], [0]]
        assert rollout.terminated_TB.tolist() == [[False, False]] * 2 + [[True, False], [False, True]]


def test_an_environment_that_waits_uses_up_no_episode():
    envs = environments(2)
    collect(envs, until(2, 5), noise, None)
    assert envs.finished == [(3.0, 2), (15.0, 5)]
    assert (envs.episode_B.tolist(), envs.return_B.tolist(), envs.obs_BO.tolist()) == ([1, 1], [0, 0], [[0], [0]])


def test_a_rollout_of_episodes_ends_with_truncation_too():
    rollout = collect(environments(1, max_episode_steps=2), until(99), noise, None)
    assert rollout.valid_TB.tolist() == [[True], [True]]
    assert rollout.truncated_TB.tolist() == [[False], [True]]


def test_rollouts_of_episodes_do_not_depend_on_how_indices_are_split():
    def act(obs_BO, noise_B):
        return 2 * ((obs_BO[:, 0] * obs_BO[:, 2] < 0).astype(np.int64),)

    starts = []
    for indices in ([0, 1], [0], [1]):
        envs = Environments(config.Environment(), indices, 0, "episode")
        starts.append([collect(envs, act, noise, None).obs_TBO[0] for _ in range(3)])
    np.testing.assert_array_equal(starts[0], np.concatenate(starts[1:], axis=1))


@pytest.mark.parametrize("num_steps", [1, BLOCK, 2 * BLOCK + 2])
def test_noise_is_used_in_order_and_whatever_the_block(num_steps):
    given, used = iter(range(10 * BLOCK)), []

    def act(obs_BO, noise_B):
        used.append(int(noise_B[0]))
        return 2 * (np.zeros(1, dtype=np.int64),)

    collect(environments(1), act, lambda steps: np.array([[next(given)] for _ in range(steps)]), num_steps)
    assert used == list(range(num_steps))


def test_play_is_one_episode_of_each_from_its_start():
    envs = environments(3)
    envs.step(np.array([0, 0, 0]))
    return_B, length_B = play(envs, lambda obs_BO: until(2, 4, 1)(obs_BO, None)[0])
    assert (return_B.tolist(), length_B.tolist()) == ([3, 10, 1], [2, 4, 1])


def test_summary():
    expected = {"mean": 3.0, "std": 2.0, "min": 1.0, "max": 5.0, "episodes": 2}
    assert summary(np.array([1.0, 5.0])) == expected


class Held(Until):
    """Counts the copies that are open; each episode lasts as many steps as its seed says, or for ever."""

    now = most = 0

    def __init__(self, endless=False, broken=False):
        super().__init__()
        self.endless, self.broken = endless, broken
        Held.now += 1
        Held.most = max(Held.most, Held.now)

    def reset(self, *, seed=None, options=None):
        self.ends = 1 + seed % 50
        return super().reset()

    def step(self, action):
        assert not self.broken, "a broken environment"
        obs_O, reward, *_ = super().step(action)
        return obs_O, reward, self.k == self.ends and not self.endless, False, {}

    def close(self):
        Held.now -= 1


gymnasium.register("distqtrl/Held-v0", Held)


def held(num, max_steps=None, limit=None, **kwargs):
    Held.now = Held.most = 0
    cfg = config.Environment(id="distqtrl/Held-v0", max_episode_steps=limit, kwargs=kwargs)
    zeros = [lambda obs_BO: np.zeros(len(obs_BO), np.int64)]
    return evaluation(cfg, range(num), 0, "evaluation", zeros, [()], 0, max_steps)


def test_an_evaluation_opens_some_environments_at_a_time_and_closes_them_all():
    found = held(2 * AT_ONCE + 3)
    assert (Held.most, Held.now) == (AT_ONCE, 0)
    envs = Environments(config.Environment(id="distqtrl/Held-v0"), range(2 * AT_ONCE + 3), 0, "evaluation")
    return_B, length_E = play(envs, lambda obs_BO: np.zeros(len(obs_BO), np.int64))  # as if all were open at once
    np.testing.assert_array_equal(found.returns_EG[:, 0], return_B)
    np.testing.assert_array_equal(found.length_E, length_E)
    assert len(set(length_E)) > 10
    assert not found.cut_E.any()
    with pytest.raises(Foreign, match="AssertionError: a broken environment"):
        held(3, broken=True)
    assert Held.now == 0
    assert held(0).returns_EG.shape == (0, 1)


def test_an_episode_without_an_end_is_cut():
    found = held(2, endless=True)
    assert (found.max_steps, found.length_E.tolist(), found.cut_E.all()) == (AT_LEAST, [AT_LEAST] * 2, True)
    found = held(9, 20)
    assert (found.length_E <= 20).all()
    np.testing.assert_array_equal(found.cut_E, held(9).length_E > 20)
    found = held(2, limit=AT_LEAST + 7, endless=True)  # Gymnasium's own time limit is no cut
    assert (found.max_steps, found.length_E.tolist(), found.cut_E.any()) == (None, [AT_LEAST + 7] * 2, False)
