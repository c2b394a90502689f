"""PettingZoo's environments: agents that come and go, unequal spaces, rows and roles, what is refused and how."""

import numpy as np
import pytest
from games import Game

from distqtrl.config import stages as config
from distqtrl.environment.parallel import Parallel
from distqtrl.environment.rollout import collect, play
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Environments
from distqtrl.environment.world import make
from distqtrl.errors import Foreign, UserError
from distqtrl.policy.distribution import Categorical, Gaussian

COIN = "distqtrl.environment.coin_game/parallel_env"
SPREAD = "mpe2/simple_spread_v3"


def environments(name, num=1, roles=(), central=False, **settings):
    return Environments(config.Environment(id=name, **settings), range(num), 0, "episode", 0, roles, central)


def rolled(envs, num_steps, actions_B):
    """A rollout in which every row always acts alike."""
    actions_B = np.array(actions_B)
    return collect(envs, lambda obs_BO, noise: (actions_B, actions_B), lambda steps: [None] * steps, num_steps)


# What presets train on passes PettingZoo's own tests, and so does a game that agents leave and join.
@pytest.mark.parametrize(
    "name", [SPREAD, "mpe2/simple_speaker_listener_v4", "pettingzoo.butterfly/cooperative_pong_v6", "games/Relay"]
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_environments_pass_pettingzoo_s_own_tests(name):
    from pettingzoo.test import parallel_api_test, parallel_seed_test  # warns where it is imported

    settings = {"kwargs": {"render_ratio": 8}} if "pong" in name else {}
    cfg = config.Environment(id=name, **settings)
    parallel_api_test(Parallel(cfg).env, num_cycles=60)
    parallel_seed_test(lambda: Parallel(cfg).env, num_cycles=20)


def test_agents_come_and_go():
    envs = environments("games/Relay")
    rollout = rolled(envs, 5, [0, 1, 2])
    assert rollout.valid_TB.astype(int).tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 0]]
    assert rollout.terminated_TB.astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert rollout.truncated_TB.astype(int).tolist() == [[0, 0, 0]] * 3 + [[0, 0, 1], [0, 0, 0]]
    assert rollout.rewards_TB.tolist() == [[0, 1, 0], [0, 1, 2], [0, 0, 2], [0, 0, 2], [0, 1, 0]]
    # zeros where nothing is said of an agent, here b after its end; the index is one-hot behind the observation
    assert rollout.obs_TBO[:, 1].tolist() == [[k, k < 3, 0, 1, 0] for k in range(3)] + [
        [0, 0, 0, 1, 0],
        [0, 1, 0, 1, 0],
    ]
    assert rollout.next_obs_TBO[3, 2].tolist() == [4, 2, 0, 0, 1]  # final, although the episode is over
    assert envs.finished == [((0 + 2 + 6) / 3, 4)]
    assert [x.tolist() for x in envs.agent_returns] == [[0, 2, 6]]


def test_who_leaves_without_a_word_has_terminated():
    rollout = rolled(environments("games/Silent"), 3, [0, 0])
    assert rollout.valid_TB.tolist() == [[True, True], [True, False], [True, False]]
    assert rollout.terminated_TB.tolist() == [[False, True], [False, False], [True, False]]


def test_a_time_limit_truncates_those_who_act():
    envs = environments("games/Relay", max_episode_steps=3)
    rollout = rolled(envs, 4, [0, 0, 0])
    assert rollout.truncated_TB[2].tolist() == [True, False, True]
    assert rollout.valid_TB[3].tolist() == [True, True, False]  # the next episode
    assert [length for _, length in envs.finished] == [3]


def test_unequal_spaces_have_roles_and_rows_of_their_own():
    envs = environments("games/Mixed", 2, [("a",), ("b",)])
    assert envs.envs[0].spaces == (Spaces(2, 2, 1, (), ()), Spaces(4, None, 0, (0.0, 0.0), (2.0, 2.0)))
    assert envs.widths == [2, 4]
    assert [rows.tolist() for rows in envs.rows] == [[0, 2], [1, 3]]
    assert envs.obs_BO.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]] * 2
    actions_B = envs.merged([np.array([1, 2]), np.float32([[0.5, 2.0], [0.0, 1.0]])])
    assert actions_B.tolist() == [[1, 0], [0.5, 2], [2, 0], [0, 1]]
    step = envs.step(actions_B)
    assert step.rewards_B.tolist() == [1, 2.5, 2, 1]
    assert step.obs_BO.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]] * 2
    rollout = rolled(envs, 2, actions_B)
    number, vector = (
        rollout.of(envs.rows[0], 2, Categorical(2).unpadded),
        rollout.of(envs.rows[1], 4, Gaussian((0.0, 0.0), (2.0, 2.0)).unpadded),
    )
    assert number.actions.dtype == np.int64
    assert number.actions.tolist() == [[1, 2]] * 2
    assert vector.actions.tolist() == [[[0.5, 2.0], [0.0, 1.0]]] * 2
    assert vector.obs_TBO.shape == (2, 2, 4)


def test_rows_are_numbered_by_environment_and_agent():
    cfg = config.Environment(id="games/Game")
    envs = Environments(cfg, [3, 5], 0, "episode", 0, [("a", "b")])
    assert envs.numbers(0) == [6, 7, 10, 11]
    envs = Environments(cfg, [3, 5], 0, "episode", 0, [("b",), ("a",)])
    assert (envs.numbers(0), envs.numbers(1)) == ([7, 11], [6, 10])


@pytest.mark.parametrize(("name", "central"), [(SPREAD, True), (COIN, True), ("games/Game", True)])
def test_a_centralised_critic_sees_the_state(name, central):
    envs = environments(name, 2, central=central)
    first = envs.states_ES.copy()
    num = envs.num_agents
    rollout = rolled(envs, 4, [1] * 2 * num)
    assert rollout.states_TES.shape == rollout.next_states_TES.shape == (4, 2, first.shape[1])
    np.testing.assert_array_equal(rollout.states_TES[0], first)
    np.testing.assert_array_equal(rollout.states_TES[1:3], rollout.next_states_TES[:2])
    if name == "games/Game":  # it has no state: all observations, whose third is that of the next episode
        assert rollout.states_TES[:, 0, 0].tolist() == [0, 1, 2, 0]
        assert rollout.next_states_TES[:, 0, 0].tolist() == [1, 2, 3, 1]
    else:
        np.testing.assert_array_equal(envs.states_ES[1], envs.envs[1].state())


@pytest.mark.parametrize(("name", "num_actions"), [(SPREAD, 5), (COIN, 4), ("games/Relay", 3)])
@pytest.mark.parametrize("num_steps", [0, 7, 60])
def test_restore_is_bitwise(name, num_actions, num_steps):
    saved, restored = (environments(name, 3, central=True, max_episode_steps=20) for _ in range(2))
    rng = np.random.default_rng(0)
    actions_TB = rng.integers(num_actions, size=(num_steps + 20, len(saved.obs_BO)))
    for actions_B in actions_TB[:num_steps]:
        saved.step(actions_B)
    assert restored.restore(saved.state()) == []
    saved.finished, saved.agent_returns = [], []
    for actions_B in actions_TB[num_steps:]:
        for envs in (saved, restored):
            envs.seen = envs.step(actions_B)
        for field, x in vars(saved.seen).items():
            np.testing.assert_array_equal(x, getattr(restored.seen, field), field)
        np.testing.assert_array_equal(saved.acts_B, restored.acts_B)
    assert saved.finished == restored.finished
    np.testing.assert_array_equal(saved.agent_returns, restored.agent_returns)


def test_play_counts_every_agent():
    envs = environments("games/Relay", 2)
    returns_B, length_E = play(envs, lambda obs_BO: np.array([0, 1, 2] * 2))
    assert returns_B.tolist() == [0, 2, 6] * 2
    assert length_E.tolist() == [4, 4]


def test_pictures_are_averaged_and_frames_stacked():
    envs = environments("games/Screen", roles=[("a",), ("b",)], image=(2, 2), frames=2)
    left, right = [1, 0, 1, 0], [0, 1, 0, 1]
    assert envs.widths == [8, 8]
    seen = [envs.obs_BO[0].tolist()]
    for _ in range(3):
        envs.step(np.array([0, 0]))
        seen.append(envs.obs_BO[0].tolist())
    assert seen == [left + left, left + right, right + left, left + left]  # the last is the next episode's first
    odd = environments("games/Screen", roles=[("a",), ("b",)], image=(4, 3))  # blocks of unequal sizes
    np.testing.assert_allclose(odd.obs_BO[0], [1, 2 / 3, 0] * 4, rtol=1e-6)


def test_pictures_of_gymnasium_are_averaged_too():
    cfg = config.Environment(id="minigrid:MiniGrid-Empty-5x5-v0", observation="image", image=(2, 2), frames=2)
    pytest.importorskip("minigrid")
    (spaces,) = make(cfg).spaces
    assert spaces.num_observations == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "games/turns"}, "games/turns.* is an AEC environment, whose agents take turns: .*aec_to_parallel"),
        ({"id": "pettingzoo.classic/connect_four_v3"}, "connect_four_v3.* is an AEC environment"),
        ({"id": "pettingzoo.butterfly/pong_v9"}, "pong_v9.* is not in PettingZoo's registry"),
        ({"id": "games/nothing"}, "makes a object, not a PettingZoo ParallelEnv"),
        ({"id": "games/Tabled"}, "not a PettingZoo ParallelEnv: it has no method observation_space"),
        (
            {"id": "games/Seedless"},
            r"reset\(\) does not take .* 'seed'\): make it reset\(self, seed=None, ",
        ),
        ({"id": "games/Deaf"}, r"step\(\) does not take .*: make it step\(self, actions\)"),
        ({"id": "games/Alike"}, r"observation_space\(\) does not take .*: make it observation_space\(self, agent\)"),
        ({"id": "games/Lettered"}, r"possible_agents has 'a.udcff' \(str\): name it by at most 1000 printable letters"),
        ({"id": "games/Listed"}, r"possible_agents has \['a'\] \(list\)"),
        ({"id": "games/Gamee"}, "games has no function Gamee: did you mean 'Game'"),
        ({"id": "games/__doc__"}, "games has no function __doc__: "),  # not "did you mean '__doc__'?"
        ({"id": "games/np"}, "games has no function np: "),
        ({"id": "mpe2/simple_spred_v3"}, "mpe2 has no function simple_spred_v3: did you mean 'simple_spread_v3'"),
        ({"id": "nowhere/game_v0"}, "cannot be imported .*nowhere.*: install it.* is module:nowhere/game_v0"),
        ({"id": "./games.py"}, "'./games.py' looks like a file: .*PYTHONPATH.*module:Name-v0"),
        ({"id": "games.py:Game"}, "looks like a file"),
        ({"id": "/a/games"}, "looks like a file"),
        ({"id": "games/SetOfAgents"}, "possible_agents is a set, whose order differs from process to process: make it"),
        ({"id": "games/Twins"}, "possible_agents names agents alike, 1 and '1'"),
        ({"id": "games/Nobody"}, "possible_agents is empty"),
        ({"id": "games/Nameless"}, "has an agent without a name, ''"),
        ({"id": "games/Game", "kwargs": {"nope": 1}}, r"games/Game' \(kwargs {'nope': 1}\) cannot be made: .*nope"),
        ({"id": "games/Still"}, "games/Still, agent b has no action"),
        (
            {"id": "games/Unbounded"},
            "games/Unbounded, agent a: action space Box.* use Discrete, MultiDiscrete, MultiBinary or a bounded",
        ),
        ({"id": "games/Masked", "observation": "nope"}, "environment.observation = 'nope' is not there"),
        ({"id": "games/Game", "image": (2, 2)}, r"environment.image = \(2, 2\) needs an image"),
        ({"id": "games/Game", "num_actions": 2}, "environment.num_actions is for Gymnasium's environments"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_trained_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        make(config.Environment(**settings))
    assert "\n" not in str(error.value)


def test_a_part_of_an_observation_and_the_whole():
    assert make(config.Environment(id="games/Masked", observation="view")).spaces[0].num_observations == 3
    assert make(config.Environment(id="games/Masked")).spaces[0].num_observations == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("games/Empty", "environment 0 .*: games/Empty: no agent acts after reset"),
        ("games/Odd", "agent z is not in possible_agents"),
        ("games/Once", "games/Once: agents is <list_iterator .*: make it a list of those that act"),
    ],
)
def test_agents_that_cannot_be_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        environments(name)


def test_spaces_that_change_are_refused():
    envs = environments("games/Growing")
    with pytest.raises(
        UserError, match=r"environment 0 .*agent a observes shape \(3,\), its space said shape \(2,\): spaces must stay"
    ):
        rolled(envs, 4, [0, 0])


def test_roles_play_each_agent_once():
    for roles in ([("a",)], [("a", "b"), ("b",)]):
        with pytest.raises(UserError, match="do not play each agent once, see b: give a whole run directory"):
            environments("games/Game", roles=roles)


def test_an_environment_that_raises_says_where():
    cfg = config.Environment(id="games/Failing")
    envs = Environments(cfg, [4, 9], 0, "episode")
    with pytest.raises(Foreign) as error:
        rolled(envs, 9, [0, 0] * 2)
    where = f"environment 4 (reset with seed {envs._seed(0)}), step 2 of its episode"
    assert str(error.value) == f"{where}: games/Failing raised: ZeroDivisionError: division by zero"
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    first, *rest = error.value.trace.splitlines()
    assert first.endswith("in step")
    assert rest[0].strip() == "return 1 / 0"
    assert "distqtrl/" not in error.value.trace


def test_one_agent_of_pettingzoo_is_one_agent():
    class Alone(Game):
        names = ("a",)

    import games

    games.Alone = Alone
    envs = environments("games/Alone", 2)
    assert (envs.num_agents, envs.widths, envs.obs_BO.tolist()) == (1, [2], [[0, 0]] * 2)
    step = envs.step(np.array([1, 2]))
    assert step.rewards_B.tolist() == [1, 2]
