"""Agents spread over ranks: every policy is learned by its block, plays everywhere, and leaves from rank 0."""

import json
from pathlib import Path

import numpy as np
import pytest

from distqtrl.cli import main as cli
from distqtrl.policy import policy_file

PROGRAM = Path(__file__).parent / "programs" / "several.py"

FLAGS = """--environment.max_episode_steps 8 --environment.local_num 2 --algorithm.rollout_steps 8 --train.updates 2
    --train.steps none --policy.hidden 8 --mapping.kind mlp --algorithm.value_hidden 8 --evaluate.episodes 3
    --allreduce.check_every 1 --policy.normalize_observations false --json"""


SPREAD, STILL = ["--agents.placement", "spread"], ["--algorithm.learning_rate", "1e-30"]


def words(place, *flags):
    return ["train", "simple-speaker-listener", "--run", str(place), *FLAGS.split(), *flags]


def weights(place):
    return {path.stem: policy_file.load(path).w_M.numpy() for path in policy_file.files(place)}


@pytest.mark.parametrize("ranks", [2, 3])
def test_policies_meet_on_every_rank(forked_ranks, tmp_path, ranks):
    places = [tmp_path / name for name in ("start", "same", "moved")]
    assert cli.main(words(places[0], *STILL)) == 0
    runs = [{"argv": words(places[1], *STILL, *SPREAD)}, {"argv": words(places[2], *SPREAD)}]
    code, _, err = forked_ranks(ranks, [PROGRAM, json.dumps(runs)], timeout=150)
    assert code == 0, err
    assert "Warning" not in err
    start, same, moved = map(weights, places)
    rows = [json.loads(line) for line in (places[2] / "metrics.jsonl").read_text().splitlines()]
    assert start.keys() == same.keys() == moved.keys() == {"policy-speaker_0", "policy-listener_0"}
    for name, w_M in start.items():
        np.testing.assert_allclose(same[name], w_M, rtol=1e-6, atol=1e-9)  # made by other ranks, from the same circuit
        assert (moved[name] != w_M).mean() > 0.9
    assert rows[-1]["env_steps"] == 2 * 8 * 2 * ranks
    assert rows[-1]["policies"].keys() == {"speaker_0", "listener_0"}
    # a rank runs one circuit, forward and backward, per optimizer step, and not two
    assert rows[-1]["circuits"] == 2 * 40 * ranks
    assert len(policy_file.team(places[2])) == 2


def test_another_number_of_ranks_is_refused(forked_ranks, tmp_path, capfd):
    place = tmp_path / "run"
    code, _, err = forked_ranks(2, ["-m", "distqtrl", *words(place, *SPREAD)], timeout=150)
    assert code == 0, err
    (place / "result.json").unlink()
    assert cli.main(["train", "--resume", str(place)]) == 2
    assert "agents.placement spread depends on their number: use mpirun -n 2" in capfd.readouterr().err
