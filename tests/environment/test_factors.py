"""Several choices at once, and masks: what the environment receives, where masks stand in rows, what is refused."""

import numpy as np
import pytest
from choices import ACTIONS

from distqtrl.config import stages as config
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.environment.world import make
from distqtrl.errors import UserError
from distqtrl.policy.distribution import Categorical, Factored


def environments(name, roles=(), frames=1, num=2, **settings):
    cfg = config.Environment(id=name, frames=frames, **settings)
    return Environments(cfg, range(num), 0, "episode", 0, roles)


def head(spaces):
    if spaces.factors:
        return Factored(spaces.factors, spaces.starts, spaces.masked)
    return Categorical(spaces.num_actions, spaces.action_start, spaces.masked)


@pytest.mark.parametrize(("action", "factors"), [("levers", (3, 2, 4)), ("switches", (2,) * 4), ("one", (3,))])
def test_an_action_arrives_in_the_spaces_type_and_shape(action, factors):
    envs = environments("choices:Levers-v0", kwargs={"action": action})
    (spaces,) = envs.envs[0].spaces
    assert (spaces.factors, spaces.num_actions, spaces.masked) == (factors, None, False)
    assert f"{len(factors)} choices among {factors[0]}" in spaces.words
    wanted_BF = np.array([np.ravel(env.env.unwrapped.wanted[env.env.unwrapped.picture]) for env in envs.envs])
    assert envs.step(wanted_BF.astype(np.int64)).rewards_B.tolist() == [1, 1]  # which asserts type and shape


def test_several_agents_rows_are_padded_to_the_widest():
    envs = environments("choices/Crew", [("a",), ("b",), ("c",)])
    actions_BF = envs.merged([np.array([[1, 6], [0, 4]]), np.array([[1, 0, 1], [0, 0, 1]]), np.array([1, 0])])
    assert actions_BF.tolist() == [[1, 6, 0], [1, 0, 1], [1, 0, 0], [0, 4, 0], [0, 0, 1], [0, 0, 0]]
    assert envs.step(actions_BF).rewards_B.tolist() == [7, 2, 1, 4, 1, 0]
    a, b = Factored((2, 3), (0, 4)), Factored((2,) * 3, (0,) * 3)
    assert a.unpadded(actions_BF[np.newaxis, ::3]).tolist() == [[[1, 6], [0, 4]]]
    assert b.unpadded(actions_BF[np.newaxis, 1::3]).tolist() == [[[1, 0, 1], [0, 0, 1]]]


@pytest.mark.parametrize("action", sorted(ACTIONS))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"observation": "observation"},
        {"kwargs": {"part": "two"}, "observation": "observation"},
        {"kwargs": {"mask": "binary"}, "frames": 3},
    ],
    ids=["whole", "named", "chosen", "frames"],
)
def test_masks_stand_behind_observations(action, settings):
    kwargs = {"action": action, **settings.get("kwargs", {})}
    envs = environments("choices:Doors-v0", **{**settings, "kwargs": kwargs})
    (spaces,) = envs.envs[0].spaces
    num = 2 * settings.get("frames", 1)
    assert (spaces.num_observations, spaces.num_masks, spaces.masked) == (num, head(spaces).num_outputs, True)
    assert envs.widths == [num + spaces.num_masks]
    for step in range(5):
        for env, row_O in zip(envs.envs, envs.obs_BO, strict=True):
            assert row_O[num - 2 : num].tolist() == [step, 1]  # the newest frame
            assert row_O[num:].tolist() == np.concatenate(env.env.unwrapped.allowed).tolist()  # and no frames of masks
        chosen = head(spaces).greedy(np.where(envs.obs_BO[:, num:] > 0, 0.0, -1.0))
        envs.step(head(spaces).to_environment(chosen))  # which refuses what the mask does


def test_tuples_of_masks_are_one_after_the_other():
    envs = environments("choices:Doors-v0", kwargs={"action": "levers", "mask": "tuple"})
    assert envs.obs_BO[0, 2:].tolist() == np.concatenate(envs.envs[0].env.unwrapped.allowed).tolist()


def test_the_first_actions_have_the_first_masks():
    envs = environments("choices:Doors-v0", num_actions=2)
    assert envs.widths == [4]
    assert envs.envs[0].spaces[0].num_masks == 2


def test_agents_that_share_a_policy_have_masks_behind_their_numbers():
    envs = environments("choices/Guarded", [("a", "b")])
    assert envs.widths == [2 + 2 + 4]
    assert envs.obs_BO.tolist() == [[0, 0, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0, 0, 0]] * 2
    step = envs.step(np.array([3, 0, 1, 0]))
    assert step.obs_BO.tolist() == [[1, 0, 1, 0, 1, 0, 1, 1], [1, 1, 0, 1, 0, 1, 0, 0]] * 2


@pytest.mark.parametrize("running", [None, np.array([True, False])])
def test_a_state_holds_masks_and_rows_of_actions(running):
    """Restoring replays to the same observation, which the masks are part of."""
    envs, again = (environments("choices:Doors-v0", kwargs={"action": "levers"}) for _ in range(2))
    chooser = head(envs.envs[0].spaces[0])
    for _ in range(3):
        chosen = chooser.greedy(np.where(envs.obs_BO[:, 2:] > 0, 0.0, -1.0))
        envs.step(chooser.to_environment(chosen), running)
    assert again.restore(envs.state()) == []
    np.testing.assert_array_equal(again.obs_BO, envs.obs_BO)


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        (
            "choices:Doors-v0",
            {"stuck": 0},
            r"environment 4 \(reset with seed \d+\), at its start: action_mask",
        ),
        (
            "choices:Doors-v0",
            {"stuck": 2},
            r"environment 4 \(reset with seed \d+\), step 2 of its episode: action_mask",
        ),
        ("choices:Doors-v0", {"stuck": 1, "action": "levers"}, "step 1 of its episode: action_mask allows no action"),
        ("choices/Stuck", {}, r"environment 4 .*, step 2 of its episode: agent b's action_mask allows no action: fix"),
        ("choices:Doors-v0", {"mask": "short"}, "action_mask has 4 numbers, Discrete.* has 5 choices: make it one"),
        ("choices:Doors-v0", {"mask": "lies"}, r"environment 4 .*action_mask is \[.*\]: give 5 numbers, each 0 or 1"),
    ],
)
def test_a_mask_that_allows_nothing_or_does_not_fit_is_one_line(name, kwargs, says):
    cfg = config.Environment(id=name, kwargs=kwargs)

    def played():
        envs = Environments(cfg, [4, 6], 0, "episode")
        chooser = head(next(iter(envs.spaces.values())))
        num = envs.widths[0] - chooser.num_outputs
        play(envs, lambda obs_BO: chooser.to_environment(chooser.greedy(np.where(obs_BO[:, num:] > 0, 0.0, -1.0))))

    with pytest.raises(UserError, match=says) as error:
        played()
    assert "\n" not in str(error.value)


def test_masks_of_bounded_numbers_are_observations():
    """They say nothing about an action that is not chosen."""
    from choices import Doors
    from gymnasium.spaces import Box

    from distqtrl.environment.factors import unmasked

    space = Doors().observation_space
    assert unmasked(space, Box(-1, 1, (5,)), None, "x") == (space, None)
    assert unmasked(space["observation"], Doors().action_space, None, "x") == (space["observation"], None)


def test_make_says_what_the_spaces_are():
    assert make(config.Environment(id="choices:Doors-v0")).spaces[0].words == "2 observations, 5 actions and a mask"
