"""Pictures: every state of an episode is seen once, its end too; what draws none is refused in one line."""

import numpy as np
import pytest
from drawn import SHADE

from distqtrl.config import stages as config
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.environment.world import make
from distqtrl.errors import UserError

COINS = "distqtrl.environment.coin_game/parallel_env"


def environment(name="drawn:Drawn-v0", **kwargs):
    return config.Environment(id=name, kwargs=kwargs)


def shades(film):
    return [int(picture[0, 0, 0]) // SHADE for picture in film]


def test_every_state_is_filmed_once():
    film = []
    environments = Environments(environment(), [4], 0, "evaluation", film=film.append)
    returns_B, _ = play(environments, lambda obs_BO: np.zeros(1, np.int64))
    assert (shades(film), returns_B.tolist()) == ([0, 1, 2, 3], [6.0])
    environments.step(np.zeros(1, np.int64))
    assert shades(film[4:]) == [0]  # the next episode's


def test_those_that_do_not_run_are_not_filmed():
    film = []
    environments = Environments(environment(), [0, 1], 0, "evaluation", film=film.append)
    environments.step(np.zeros(2, np.int64), np.array([True, False]))
    environments.step(np.zeros(2, np.int64))
    assert shades(film) == [0, 1, 0]


def test_an_environment_of_several_agents_is_filmed():
    film, cfg = [], environment(COINS, max_cycles=3)
    play(Environments(cfg, [2], 0, "evaluation", film=film.append), lambda obs_BO: np.array([0, 2]))
    own, seeded = make(cfg, render=True), Environments(cfg, [2], 0, "evaluation")
    own.reset(seeded._seed(0))
    expected = [own.render()]
    for _ in range(3):
        own.step([0, 2])
        expected.append(own.render())
    np.testing.assert_array_equal(film, expected)


@pytest.mark.parametrize("name", ["CartPole-v1", "mpe2/simple_spread_v3"])
def test_a_film_changes_no_sample(name):
    filmed, plain = (Environments(environment(name), [0], 0, "evaluation", film=film) for film in (lambda _: 0, None))
    actions_B = np.ones(filmed.num_agents, np.int64)
    for act in (filmed, plain):
        for _ in range(5):
            act.step(actions_B)
    assert filmed.obs_BO.tobytes() == plain.obs_BO.tobytes()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"modes": ["human", "ansi"]}, "draws no pictures: rgb_array is not among its render modes (human, ansi)"),
        ({"modes": []}, "draws no pictures: rgb_array is not among its render modes (none)"),
        ({"broken": "none"}, "cannot be drawn: it gives a NoneType in place of an array"),
        ({"broken": "flat"}, "cannot be drawn: it gives (4, 6) of float64, not (H, W, 3) of uint8"),
        ({"broken": "raises"}, "step 3 of its episode: drawn:Drawn-v0 cannot be drawn: RuntimeError: no screen"),
        ({"broken": "pygame"}, "cannot be drawn without pygame: pip install 'distqtrl[pictures]'"),
    ],
)
def test_what_draws_nothing_is_refused(kwargs, message):
    with pytest.raises(UserError) as refused:
        play(
            Environments(environment(**kwargs), [0], 0, "evaluation", film=lambda _: None),
            lambda obs_BO: np.zeros(1, np.int64),
        )
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
