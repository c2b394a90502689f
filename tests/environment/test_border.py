"""The border to an environment: what crosses it is a copy that fits its space, or refused by name."""

import decimal
import itertools
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple, flatten

from distqtrl.config import stages as config
from distqtrl.environment.border import number, taker
from distqtrl.environment.parallel import is_parallel
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.environment.world import make
from distqtrl.errors import Foreign, UserError

GIVEN = "distqtrl/Given-v0"
UNVERSIONED = "distqtrl/Plain"
BOX = Box(-10, 10, (2,), np.float32)


class Given(gymnasium.Env):
    """Observes ``seen`` (or calls it with the number of the step), and says ``said`` of its second step."""

    def __init__(self, seen=None, observation=BOX, action=Discrete(2), said=None, fault=None, closes=True):  # noqa: B008
        self.observation_space, self.action_space = observation, action
        self.seen, self.said, self.fault, self.closes = seen, said or {}, fault, closes

    def reset(self, *, seed=None, options=None):
        self.k = 0
        return self.observes(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.k, self.action = self.k + 1, action
        if self.k == 2 and self.fault is not None:
            raise self.fault
        found = {"reward": 1.0, "terminated": False, "truncated": self.k == 4} | (self.said if self.k == 2 else {})
        return self.observes(), *found.values(), {}

    def observes(self):
        if self.seen is None:
            return np.full(2, self.k, np.float32)
        return self.seen(self.k) if callable(self.seen) else self.seen

    def close(self):
        if not self.closes:
            raise OSError("the port is stuck")


gymnasium.register(GIVEN, Given)
gymnasium.register(UNVERSIONED, Given)


def environments(name=GIVEN, num=1, settings=None, central=False, **kwargs):
    cfg = config.Environment(id=name, kwargs=kwargs, **(settings or {}))
    return Environments(cfg, range(num), 0, "episode", central=central)


def refused(envs, steps=2):
    """What stops it in step ``steps``."""
    actions_B = np.zeros(len(envs.obs_BO), np.int64)
    for _ in range(steps - 1):
        envs.step(actions_B)
    with pytest.raises(UserError) as error:
        envs.step(actions_B)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [GIVEN, "games/Buffer"])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_buffer_that_is_written_over_is_copied(name, frames):
    buffer = np.zeros(2, np.float32)

    def overwritten(k):
        buffer[:] = k
        return buffer

    envs = environments(name, settings={"frames": frames}, **({"seen": overwritten} if name == GIVEN else {}))
    seen = [envs.step(np.zeros(len(envs.obs_BO), np.int64)).obs_BO[0, : 2 * frames].tolist() for _ in range(3)]
    assert seen == [[float(max(0, k - back)) for back in range(frames)[::-1] for _ in range(2)] for k in (1, 2, 3)]


SPACE = Dict(
    robot=Dict(position=Box(-1, 1, (2,), np.float64), gear=Discrete(3, start=-1)),
    buttons=MultiBinary(2),
    dials=MultiDiscrete([2, 3]),
    pair=Tuple([Discrete(2), Box(0, 255, (1, 2), np.uint8)]),
)
SAMPLE = {
    "robot": {"position": np.array([0.25, -0.5]), "gear": 1},
    "buttons": np.array([1, 0], np.int8),
    "dials": np.array([1, 0]),
    "pair": (1, np.array([[200, 7]], np.uint8)),
}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, flatten(SPACE, SAMPLE)),
        ("robot", [0.25, -0.5, 0, 0, 1]),
        ("robot.position", [0.25, -0.5]),
        ("robot.gear", [0, 0, 1]),
        ("buttons", [1, 0]),
        ("dials", [0, 1, 1, 0, 0]),
        ("pair", [0, 1, 200, 7]),
        ("pair.1", [200, 7]),
    ],
)
def test_observations_are_flattened_as_gymnasium_does(key, expected):
    for frames in (1, 2):
        settings = {"observation": key, "frames": frames}
        envs = environments(settings=settings, observation=SPACE, seen=SAMPLE)
        assert envs.obs_BO.tolist() == [list(expected) * frames]
        assert envs.step(np.zeros(1, np.int64)).obs_BO.tolist() == [list(expected) * frames]


@pytest.mark.parametrize(
    ("settings", "space", "message"),
    [
        ({"observation": "position"}, SPACE, "'position' is not there: did you mean 'robot.position'"),
        ({"observation": "zzz"}, SPACE, "is not there: known: buttons, dials, pair, pair.0, pair.1, robot, robot.gear"),
        ({}, Dict(a=Dict(b=Text(3)), c=BOX), "Text at a.b is not a vector of fixed length: .* to one of c"),
        ({"observation": "a"}, Dict(a=Dict(b=Text(3)), c=BOX), "Text at a.b is not a vector .* to one of c"),
        ({"image": (1, 1)}, SPACE, "environment.image = .* needs an image"),
        ({"image": (1, 1)}, Box(0, np.inf, (2, 2)), "needs an image of bounded brightness"),
    ],
)
def test_parts_that_cannot_be_seen_are_refused_with_a_remedy_that_works(settings, space, message):
    with pytest.raises(UserError, match=message) as error:
        environments(settings=settings, observation=space, seen=SAMPLE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "good", "bad", "said"),
    [
        (BOX, [1, 2], np.zeros(1, np.float32), "observes shape (1,), its space said shape (2,)"),
        (BOX, [1, 2], 5.0, "observes 5.0 (float), its space said shape (2,)"),
        (BOX, [1, 2], None, "observes None (NoneType), its space said shape (2,)"),
        (BOX, [1, 2], [[1], [2, 3]], "observes [[1], [2, 3]] (list), its space said shape (2,)"),
        (BOX, [1, 2], ["a", "b"], "observes ['a', 'b'] (list), its space said shape (2,)"),
        (BOX, [1, 2], [1, np.nan], "observes [1.0, nan] (list), which is not finite"),
        (BOX, [1, 2], [1, 1e300], "observes [1.0, inf] (list), which is not finite"),
        (Box(-1, 1, (1, 2)), [[1, 2]], [[1], [2]], "observes shape (2, 1), its space said shape (1, 2)"),
        (Discrete(3), 2, 3, "observes 3 (int), its space said Discrete(3)"),
        (Discrete(3), np.array([1]), -1, "observes -1 (int), its space said Discrete(3)"),
        (Discrete(3), np.int64(1), 0.5, "observes 0.5 (float), its space said Discrete(3)"),
        (MultiDiscrete([2, 2]), [1, 1], [1, 2], "observes [1, 2] (list), its space said MultiDiscrete([2 2])"),
        (MultiBinary(2), [1.0, 0.0], [1, 300], "observes [1, 300] (list), its space said MultiBinary(2)"),
        (Dict(a=BOX), {"a": [1, 2]}, {"b": 1}, "observes {'b': 1} (dict), in which there is no a"),
        (
            Dict(a=Dict(b=BOX)),
            {"a": {"b": [1, 2]}},
            {"a": {"b": 1}},
            "observes 1 (int), its space said shape (2,) at a.b",
        ),
        (Tuple([BOX]), ([1, 2],), ([1, 2], 3), "its space said Tuple of 1"),
    ],
)
def test_an_observation_that_does_not_fit_is_named_with_where_it_was(space, good, bad, said):
    envs = environments(observation=space, num=2, seen=lambda k: bad if k == 2 else good)
    assert said in (text := refused(envs))
    assert text.startswith(f"environment 0 (reset with seed {envs._seed(0)}), step 2 of its episode: {GIVEN} observes ")
    with pytest.raises(UserError, match=r"environment 0 \(reset with seed \d+\), at its start: ") as error:
        environments(observation=space, seen=lambda k: bad)
    assert said in str(error.value)


ONES = [np.array([1.5]), np.array(1.5), np.float32(1.5), [1.5], decimal.Decimal("1.5"), np.array([[1.5]], np.float16)]


@pytest.mark.parametrize("given", ONES)
def test_a_reward_of_one_element_is_a_number(given):
    assert type(number(given, "")) is float
    envs, game = environments(said={"reward": given}), environments("games/Faulty", what=1, given=given)
    for _ in range(2):
        reward, rewards_G = (e.step(np.zeros(len(e.obs_BO), np.int64)).rewards_B for e in (envs, game))
    assert (reward.tolist(), rewards_G.tolist()) == ([1.5], [0, 1.5])


@pytest.mark.parametrize("given", [None, "1.0", np.ones(2), [], np.nan, np.inf, 1j, object()])
def test_other_rewards_are_refused_by_name(given):
    said = refused(environments(said={"reward": given}))
    assert f"step 2 of its episode: {GIVEN}: the reward is " in said
    said = refused(environments("games/Faulty", what=1, given=given))
    assert "step 2 of its episode: games/Faulty: the reward of agent: b is " in said
    assert "fix the environment" in said


@pytest.mark.parametrize(
    ("what", "given", "whole", "said"),
    [
        (0, np.zeros(3), False, "games/Faulty, agent b observes shape (3,), its space said shape (2,)"),
        (0, [1, np.nan], False, "agent b observes [1.0, nan] (list), which is not finite"),
        (0, [1, 2], True, "observations are [1, 2] (list) instead of a dictionary by agent"),
        (1, {"z": 1.0}, True, "rewards name agent z, which is not in possible_agents"),
        (2, "no", False, "terminated of agent b is 'no' (str)"),
        (3, None, False, "truncated of agent b is None (NoneType)"),
        (3, [[1], [1, 2]], False, "truncated of agent b is [[1], [1, 2]] (list)"),
        ("state", None, False, "state() gives None (NoneType) instead of an array of numbers: .*agents.critic"),
        ("state", [1.0, 2.0], False, "state() gives 2 numbers, 3 were expected"),
        ("state", [1.0, 2.0, np.inf], False, "state() is not finite"),
    ],
)
def test_what_several_agents_are_told_is_checked(what, given, whole, said):
    envs = environments("games/Faulty", central=True, what=what, given=given, whole=whole)
    head, _, tail = said.partition(": .*")
    text = refused(envs)
    assert head in text
    assert tail in text
    assert f"environment 0 (reset with seed {envs._seed(0)}), step 2 of its episode: " in text


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"terminated": None}, "terminated is None (NoneType): fix the environment, it is True or False"),
        ({"truncated": "yes"}, "truncated is 'yes' (str)"),
        ({"more": 1}, "step() gives (array"),
    ],
)
def test_what_a_step_says_is_checked(said, message):
    assert message in refused(environments(said=said))


def test_flags_of_numpy_are_flags():
    envs = environments(said={"terminated": np.array([1])})
    envs.step(np.zeros(1, np.int64))
    assert envs.step(np.zeros(1, np.int64)).terminated_B.tolist() == [True]


@pytest.mark.parametrize(
    ("space", "actions", "taken"),
    [
        (Box(-0.1, 0.1, (1,), np.float64), [0.1, -0.1, 0.05], [0.1, -0.1, float(np.float32(0.05))]),
        (Box(0, 5, (1,), np.int32), [0.4, 2.6, 5.0], [0, 3, 5]),
        (Box(0, 255, (1,), np.uint8), [254.7, -3.0, 300.0], [255, 0, 255]),
        (Box(-1, 1, (1,), np.float16), [1.0, -0.33, 0.1], [1.0, float(np.float16(-0.33)), float(np.float16(0.1))]),
        (Box(np.float32([0.3]), np.float32([0.3])), [0.3, 0.29, 0.31], [float(np.float32(0.3))] * 3),
    ],
)
def test_actions_are_in_the_space(space, actions, taken):
    envs = environments(action=space)
    for action, expected in zip(actions, taken, strict=True):
        envs.step(np.float32([[action]]))
        assert space.contains(envs.envs[0].env.unwrapped.action)
        assert envs.envs[0].env.unwrapped.action.tolist() == [expected]


def test_an_action_is_a_copy():
    envs = environments(action=Box(-1, 1, (1,), np.float32))
    envs.step(actions_BA := np.float32([[0.5]]))
    envs.envs[0].env.unwrapped.action[0] = 9
    assert (actions_BA.tolist(), envs.actions[0][0].tolist()) == ([[0.5]], [0.5])


@pytest.mark.parametrize("space", [Discrete(1), Discrete(3, start=-1), Discrete(2, dtype=np.int8)])
def test_discrete_actions_are_of_the_space_s_type(space):
    take = taker(space, "lab")
    for action in range(int(space.start), int(space.start + space.n)):
        for given in (np.int64(action), np.float32([action, 0])):
            assert take(given).dtype == space.dtype
            assert take(given) == action
    with pytest.raises(UserError, match=r"lab: action 7 is not in Discrete"):
        take(np.int64(7))


class Panic(BaseException):
    """As Rust's, which is no Exception."""


class Robot(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ValueError("two\nlines"), "ValueError: two lines"),
        (KeyError("robot"), "KeyError: 'robot'"),
        (SystemExit(0), "SystemExit: 0"),
        (Robot(), "Robot: <exception str() failed>"),
        (Panic("index out of bounds"), "Panic: index out of bounds"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 300}..."),
    ],
)
def test_what_an_environment_raises_is_said_in_one_line_and_its_own_frames(fault, said):
    envs = environments(fault=fault)
    assert refused(envs).endswith(f"step 2 of its episode: {GIVEN} raised: {said}")
    assert envs.envs[0].env.unwrapped.k == 2


def test_the_frames_are_those_of_the_environment_s_code_alone():
    def deep(k):
        return 1 / 0 if k == 0 else deep(k - 1)

    def calls(k):
        return deep(40) if k else np.zeros(2)

    with pytest.raises(Foreign) as error:
        environments(seen=calls).step(np.zeros(1, np.int64))
    trace = error.value.trace.splitlines()
    assert len(trace) < 25
    assert trace[0].startswith(f'  File "{__file__}", line ')
    assert sum("gymnasium" in line or "/distqtrl/environment/" in line.split("tests")[0] for line in trace) == 0


class Unmade(gymnasium.Env):
    def __init__(self):
        raise TypeError("no such motor")


class Bare(gymnasium.Env):
    metadata: ClassVar[dict] = {"render_modes": []}


gymnasium.register("distqtrl/Unmade-v0", Unmade)
gymnasium.register("distqtrl/Bare-v0", Bare)


def test_what_does_not_close_is_told_once_and_undoes_nothing(capfd):
    for _ in range(2):
        environments(closes=False, num=3).close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distqtrl: warning: ")
    assert line.endswith(" did not close: OSError: the port is stuck")


def test_what_cannot_be_made_says_so_in_one_line():
    with pytest.raises(UserError, match=r"Unmade-v0' .* cannot be made: TypeError: no such motor$") as error:
        make(config.Environment(id="distqtrl/Unmade-v0"))
    assert error.value.trace.splitlines()[-1].strip() == 'raise TypeError("no such motor")'
    with pytest.raises(UserError, match=r"distqtrl/Bare-v0 cannot be made: AttributeError: .*observation_space"):
        make(config.Environment(id="distqtrl/Bare-v0"))


def test_copies_that_differ_are_refused():
    spaces = iter([BOX, Box(-1, 1, (3,), np.float32)])
    gymnasium.register("distqtrl/Varied-v0", lambda: Given(observation=next(spaces)))
    with pytest.raises(UserError, match="environment 1 has other agents or spaces than environment 0"):
        environments("distqtrl/Varied-v0", 2)
    del gymnasium.registry["distqtrl/Varied-v0"]


def test_gymnasium_s_registry_decides_first():
    assert not is_parallel(UNVERSIONED)
    assert is_parallel("lab/plain_v0")
    assert environments(UNVERSIONED).agents == ("",)


def test_evaluation_refuses_what_is_not_finite():
    envs = environments(seen=lambda k: [0, np.inf] if k == 3 else [0, 0])
    with pytest.raises(UserError, match="step 3 of its episode"):
        play(envs, lambda obs_BO: np.zeros(1, np.int64))


def test_an_observation_of_another_kind_of_numbers_is_named():
    said = refused(environments("games/Faulty", what=0, given=np.zeros(2, np.complex64)))
    assert "agent b observes an array of shape (2,) and type complex64, its space said float32" in said


@pytest.mark.parametrize(("key", "value"), [("id", "Acrobot-v1"), ("max_episode_steps", 5)])
def test_what_has_a_key_of_its_own_is_no_argument(key, value):
    with pytest.raises(UserError, match=f"environment.kwargs has {key}, which environment.{key} sets: give it there"):
        Environments(config.Environment(kwargs={key: value}), [0], 0, "episode")


class Setting(Given):
    """Sets torch's defaults for all of the process, as a simulator with a network may."""

    def __init__(self, when, what):
        super().__init__()
        self.when, self.what = when, what
        self.now("make")

    def now(self, when):
        if when == self.when:
            {
                "dtype": lambda: torch.set_default_dtype(torch.float64),
                "grad": lambda: torch.set_grad_enabled(False),
                "device": lambda: torch.set_default_device("meta"),
            }[self.what]()

    def reset(self, *, seed=None, options=None):
        self.now("reset")
        return super().reset()

    def step(self, action):
        self.now("step")
        return super().step(action)


gymnasium.register("distqtrl/Setting-v0", Setting)


@pytest.mark.parametrize(
    ("when", "what"),  # looking at the device takes longer than a step: it is put right at the next reset
    [*itertools.product(["make", "reset"], ["dtype", "grad", "device"]), ("step", "dtype"), ("step", "grad")],
)
def test_torchs_defaults_are_ours_after_an_environments_code(when, what):
    try:
        made = environments("distqtrl/Setting-v0", when=when, what=what)
        made.step([np.array([0])])
        found = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device().type
    finally:
        torch.set_default_dtype(torch.float32), torch.set_grad_enabled(True), torch.set_default_device(None)
    assert found == (torch.float32, True, "cpu")


def test_tensors_with_a_graph_are_observations_and_rewards():
    made = environments(
        seen=lambda k: torch.ones(2, requires_grad=True), said={"reward": torch.ones((), requires_grad=True)}
    )
    for _ in range(2):
        seen = made.step([np.array([0])])
    assert seen.rewards_B.tolist() == [1.0]


def test_a_masked_number_is_no_reward():
    with pytest.raises(UserError, match="a reward is one number"):
        number(np.ma.masked, "the reward")


@pytest.mark.parametrize(
    ("space", "given", "said"),
    [
        (MultiDiscrete([3, 4]), np.array([3, 0]), r"\[3, 0\] \(list\), its space said MultiDiscrete\(\[3 4\]\): fix"),
        (Discrete(5), 5, r"5 \(int\), its space said Discrete\(5\): fix the environment"),
        (BOX, np.zeros(3), "its space said shape .*: spaces must stay as they are at the start; pad"),
    ],
)
def test_an_observation_that_does_not_fit_has_its_own_remedy(space, given, said):
    with pytest.raises(UserError, match=said):
        environments(seen=given, observation=space)
