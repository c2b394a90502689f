"""Records: one JSON object per line, by rank 0 only, and cut back where a run resumes."""

import errno
import json
import os
import re
from contextlib import closing

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distqtrl.config import UserError
from distqtrl.record import PHASES, Profile, Recorder, keep_updates


def metrics(update, **more):
    numbers = {"update": update, "env_steps": 10 * update, "steps_per_s": 5.0, "wall_s": 5.0, "loss": 0.1 + update}
    return {**numbers, "return_mean": None if update == 0 else 3.0, "profile_s": {"rollout": 0.5}, **more}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_per_line_at_once(tmp_path, capsys):
    with closing(Recorder(tmp_path, 0, 0)) as recorder:
        for update in range(3):
            recorder.write(metrics(update, validation_return=7.0), 0.2)
            recorder.sync()
            written = lines(tmp_path / "metrics.jsonl")  # a run that is killed keeps what it wrote
            assert written == [metrics(u, validation_return=7.0) for u in range(update + 1)]
    assert "update 0  steps 0  return -  5 steps/s  validation 7.0  20 s left" in capsys.readouterr().err


def test_other_ranks_write_nothing(tmp_path, capsys):
    with closing(Recorder(tmp_path, 1, 0)) as recorder:
        recorder.write(metrics(0), 0.2)
        recorder.sync()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_writes_its_updates_anew(tmp_path):
    with closing(Recorder(tmp_path, 0, 0)) as recorder:
        for update in range(5):
            recorder.write(metrics(update), 0.2)
    with closing(Recorder(tmp_path, 0, 3)) as recorder:
        recorder.write(metrics(3, loss=-1.0), 0.2)
    assert lines(tmp_path / "metrics.jsonl") == [metrics(0), metrics(1), metrics(2), metrics(3, loss=-1.0)]


@pytest.mark.parametrize(
    ("first_update", "tail", "kept"),
    [
        (0, "", 0),
        (2, "", 2),
        (3, "", 3),
        (3, '{"update": 3, "env_st', 3),
        (3, '{"update"', 3),
        (3, "{}", 3),
        (3, "\0\0\0", 3),
        (2, '{"update": 3, "env_st', 2),
    ],
)
def test_keep_updates(tmp_path, first_update, tail, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(metrics(update)) + "\n" for update in range(3)) + tail)
    keep_updates(path, first_update)
    assert path.read_text() == "".join(json.dumps(metrics(update)) + "\n" for update in range(kept))
    assert list(tmp_path.iterdir()) == [path]


def test_keep_updates_ends_a_last_line_that_lacks_only_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(metrics(0)))
    keep_updates(path, 1)
    assert path.read_text() == json.dumps(metrics(0)) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "metrics.jsonl is empty, and the run goes on from update 3: restore the file, or remove it"),
        (json.dumps(metrics(0)) + "\n", "metrics.jsonl ends before update 3"),
        (f"{json.dumps(metrics(0))}\n{{\n{json.dumps(metrics(2))}\n", "metrics.jsonl cannot be read from line 2 on"),
        ("".join(json.dumps(metrics(n)) + "\n" for n in (0, 2)), "metrics.jsonl: line 2 is not update 1"),
        (json.dumps(metrics(0, wall_s=True)), "line 1: wall_s = True: Input should be a valid number"),
        ("[" * 200_000, "metrics.jsonl cannot be read from line 1 on"),
    ],
)
def test_updates_that_a_resumed_run_needs_and_are_not_there(tmp_path, text, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(reason)):
        keep_updates(path, 3)
    assert path.read_text() == text
    keep_updates(path, 0)
    assert path.read_text() == ""
    path.unlink()
    keep_updates(path, 3)  # the remedy


def test_keep_updates_of_nothing(tmp_path):
    keep_updates(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_events_hold_every_number(tmp_path):
    with closing(Recorder(tmp_path, 0, 0)) as recorder:
        recorder.write(metrics(2), 0.2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "return_mean", "steps_per_s", "wall_s", "profile_s/rollout"}
    assert [event.step for event in events.Tensors("loss")] == [20]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(Recorder(tmp_path, 0, 0)) as recorder:
        recorder.write(metrics(0), 0.2)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*metrics.jsonl'"):
            recorder.sync()


def test_profile_counts_a_phase_that_failed_and_starts_anew():
    profile = Profile()
    with pytest.raises(KeyError), profile("loss"):
        raise KeyError
    seconds = profile.take()
    assert tuple(seconds) == PHASES
    assert seconds.pop("loss") > 0
    assert set(seconds.values()) == set(profile.take().values()) == {0.0}
