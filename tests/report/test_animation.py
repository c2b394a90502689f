"""GIFs: the first episode of an evaluation, at the environment's pace, in one piece or not at all."""

import io
import os

import numpy as np
import pytest
from drawn import SHADE
from PIL import Image, ImageSequence

from distqtrl.config import stages as config
from distqtrl.environment.rollout import play
from distqtrl.environment.vector import Environments
from distqtrl.errors import UserError
from distqtrl.report import animation

PACES = {"CartPole-v1": 20, "mpe2/simple_spread_v3": 100, "distqtrl.environment.coin_game/parallel_env": 250}  # ms


def stand(obs_BO):
    return np.zeros(len(obs_BO), np.int64)


def recorded(path, name="drawn:Drawn-v0", seed=0, **kwargs):
    return animation.record(path, config.Environment(id=name, kwargs=kwargs), seed, [], [stand])


def frames(path):
    """(pictures, milliseconds of each)."""
    with Image.open(path) as gif:
        every = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0
    return [picture for picture, _ in every], [duration for _, duration in every]


def shades(pictures):
    return [round(picture[0, 0, 0] / SHADE) for picture in pictures]


@pytest.mark.parametrize(
    ("fps", "shown", "ms"),
    [
        (None, [0, 1, 2, 3], 100),
        ("30", [0, 1, 2, 3], 100),
        (4, [0, 1, 2, 3], 250),
        (50, [0, 1, 2, 3], 20),
        (125, [0, 3], 20),
        (75, [0, 2, 3], 30),
    ],
)
def test_an_episode_at_its_pace(tmp_path, fps, shown, ms):
    assert recorded(tmp_path / "a.gif", fps=fps) == 6.0
    pictures, durations = frames(tmp_path / "a.gif")
    assert (shades(pictures), durations) == (shown, [ms] * len(shown))


@pytest.mark.parametrize(
    ("shape", "size"), [((300, 960, 3), (150, 480)), ((7, 480, 3), (7, 480)), ((1, 1000, 3), (1, 480))]
)
def test_wide_pictures_are_made_smaller(tmp_path, shape, size):
    recorded(tmp_path / "a.gif", shape=shape)
    pictures, _ = frames(tmp_path / "a.gif")
    assert {picture.shape for picture in pictures} == {(*size, 3)}
    assert shades(pictures) == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "pace"), PACES.items())
def test_it_is_the_first_episode_of_an_evaluation(tmp_path, name, pace, capfd):
    returned = recorded(tmp_path / "a.gif", name, seed=3)
    returns_B, length_E = play(Environments(config.Environment(id=name), range(2), 3, "evaluation"), stand)
    assert returned == returns_B.reshape(2, -1)[0].mean()
    pictures, durations = frames(tmp_path / "a.gif")
    assert np.ptp(pictures[0]) > 0  # not blank
    assert sum(durations) == pace * (length_E[0] + 1)  # equal frames in a row are one
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.png", "a.png does not end in .gif"),
        ("nowhere/a.gif", "nowhere/a.gif cannot be written: there is no folder "),
        ("folder.gif", "folder.gif cannot be written: it is a folder"),
    ],
)
def test_a_bad_path_is_refused(tmp_path, path, message):
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UserError) as refused:
        recorded(tmp_path / path)
    assert message in str(refused.value)


def test_whole_or_not_at_all_and_nothing_left_behind(tmp_path):
    before, path = dict(os.environ), tmp_path / "a.gif"
    with pytest.raises(UserError, match="cannot be drawn"):
        recorded(path, broken="raises")
    assert list(tmp_path.iterdir()) == []
    path.write_text("older")
    with pytest.raises(UserError, match="cannot be drawn"):
        recorded(path, broken="raises")
    assert path.read_text() == "older"
    recorded(path)
    assert path.read_bytes().startswith(b"GIF89a")
    assert ([file.name for file in tmp_path.iterdir()], dict(os.environ)) == (["a.gif"], before)


def test_a_single_frame():
    file = io.BytesIO(animation.gif([Image.new("P", (3, 2))], fps=10))
    with Image.open(file) as gif:
        assert (gif.size, gif.n_frames) == ((3, 2), 1)
