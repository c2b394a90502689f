"""What benchmarks commit: results of presets as they are, and films that are small and end as their episodes do."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from lib import compared, films
from PIL import Image, ImageSequence

from distqtrl.config import sources
from distqtrl.config.run import validated
from distqtrl.report import animation

ROOT = Path(__file__).parents[2]


def test_a_film_is_made_small_enough(tmp_path):
    """Noise, which no GIF can store: of 6 seconds as many are shown as there is room for, at their pace."""
    pictures = np.random.default_rng(0).integers(0, 256, (8, 60, 60, 3), np.uint8)
    frames = [Image.fromarray(pictures[k % 8]).quantize(64) for k in range(300)]
    (tmp_path / "long.gif").write_bytes(animation.gif(frames, 50))
    made, share = films.small(tmp_path / "long.gif")
    assert 0 < share < 1
    assert len(made) <= films.MOST_BYTES < (tmp_path / "long.gif").stat().st_size
    with Image.open(io.BytesIO(made)) as gif:
        shown_ms = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert shown_ms == [100] * round(60 * share - 1) + [1000]


def test_a_film_ends_as_the_episode_does(tmp_path):
    frames = [Image.fromarray(np.full((4, 6, 3), 60 * k, np.uint8)).quantize(4) for k in range(4)]
    (tmp_path / "short.gif").write_bytes(animation.gif(frames, 20))
    made, share = films.small(tmp_path / "short.gif")
    with Image.open(io.BytesIO(made)) as gif:
        shades = [frame.convert("RGB").getpixel((0, 0))[0] for frame in ImageSequence.Iterator(gif)]
    assert (share, shades) == (1.0, [0, 180])  # of 50 ms each, one in two and the last


@pytest.mark.parametrize(("preset", "seeds"), [("cartpole", 10), ("acrobot", 3), ("frozenlake", 3), ("pendulum", 3)])
def test_committed_results_are_of_the_preset_as_it_is(preset, seeds):
    results = json.loads((ROOT / "benchmarks" / "results" / "solve" / f"{preset}.json").read_text())
    assert validated(results["config"], preset) == sources.preset(preset)  # keys added since have their default
    assert len(results["seeds"]) == seeds


def test_two_seeds_have_no_verdict():
    cases = {
        name: {"scores": list(scores)}
        for name, scores in (("a", (1, 2)), ("b", (1, 2, 3, 4, 5)), ("c", (6, 7, 8, 9, 10)))
    }
    few, enough = compared.verdicts(cases, [("a", "b"), ("c", "b")])
    assert few == "**a** (2 seeds) and **b** (5): too few for a verdict"
    assert "is better than" in enough
