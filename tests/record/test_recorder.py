"""Records: one JSON object per line, by rank 0 only, and cut back where a run resumes."""

import errno
import json
import os
import time
from contextlib import closing

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from distqtrl.errors import UserError
from distqtrl.files import reading
from distqtrl.record import recorder as recording
from distqtrl.record.history import keep_events, keep_updates, rows
from distqtrl.record.profile import PHASES, Profile
from distqtrl.record.recorder import Recorder


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
    with closing(Recorder(tmp_path, 0, 3, 20)) as recorder:
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


@pytest.mark.parametrize("line", ["", "{}", "[1]", "7", "\0\0", '{"update": "x"}', '{"update": true}', "[" * 100_000])
def test_damaged_updates_are_kept_beside(tmp_path, line):
    path, written = tmp_path / "metrics.jsonl", [json.dumps(metrics(update)) for update in range(4)]
    path.write_text("\n".join([written[0], line, *written[2:]]) + "\n")
    before = path.read_bytes()
    said = keep_updates(path, 4)
    assert said.startswith(f"{path} holds 3 of 4 updates that were made (what it held is in metrics.jsonl.damaged)")
    assert path.read_text().splitlines() == [written[0], *written[2:]]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before


def test_an_emptied_file_of_updates_is_noticed(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").touch()
    Recorder(tmp_path, 0, 4, 30).close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"distqtrl: {tmp_path}/metrics.jsonl holds 0 of 4 updates that were made: training is unaffected"
    )


def test_keep_updates_ends_a_last_line_that_lacks_only_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(metrics(0)))
    keep_updates(path, 1)
    assert path.read_text() == json.dumps(metrics(0)) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "metrics.jsonl is empty"),
        (json.dumps(metrics(0)) + "\n", ""),
        (f"{json.dumps(metrics(0))}\n{{\n{json.dumps(metrics(2))}\n", "metrics.jsonl cannot be read from line 2 on"),
        ("".join(json.dumps(metrics(n)) + "\n" for n in (0, 2)), "metrics.jsonl: line 2 is not update 1"),
        (json.dumps(metrics(0, wall_s=True)), "metrics.jsonl: line 1: wall_s = True: Input should be a valid number"),
        ("[" * 200_000, "metrics.jsonl cannot be read from line 1 on"),
    ],
)
def test_damaged_rows_are_named(tmp_path, text, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert rows(path)[1] == reason
    assert "of 3 updates that were made" in keep_updates(path, 3)


def test_keep_updates_of_nothing(tmp_path):
    keep_updates(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_events_hold_every_number(tmp_path):
    with closing(Recorder(tmp_path, 0, 0)) as recorder:
        recorder.write(metrics(2), 0.2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "return_mean", "steps_per_s", "wall_s", "profile_s/rollout"}
    assert [event.step for event in events.Scalars("loss")] == [20]


def raw_steps(folder):
    """The steps of every point of loss in TensorBoard's files."""
    events = (e for path in sorted(folder.glob("*")) for e in EventFileLoader(str(path)).Load())
    return [event.step for event in events for value in event.summary.value if value.tag == "loss"]


def test_events_of_a_run_that_was_killed_do_not_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "EVENTS_EVERY_S", -1)
    folder = tmp_path / "tensorboard"
    with closing(Recorder(tmp_path, 0)) as recorder:
        for update in range(1, 6):
            recorder.write(metrics(update), 0.2)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for garbage in (
        whole[:-3],
        whole + b"\xff" * 9,
        whole + (5).to_bytes(8, "little") + b"1234hello1234",
        whole + whole,
    ):
        file.write_bytes(garbage)
        keep_events(folder, 30)
        assert raw_steps(folder) == [10, 20, 30]
    pipe = folder / "events.out.tfevents.pipe"
    os.mkfifo(pipe)
    keep_events(folder, 30)  # a pipe would hold who opens it
    pipe.unlink()
    with closing(Recorder(tmp_path, 0, 4, 30)) as recorder:
        for update in range(4, 7):
            recorder.write(metrics(update), 0.2)
    assert raw_steps(folder) == [10, 20, 30, 40, 50, 60]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30, 40, 50, 60]
    with closing(Recorder(tmp_path, 0)) as recorder:  # begun again
        recorder.write(metrics(1), 0.2)
    assert raw_steps(folder) == [10]


def test_a_checkpoint_is_not_ahead_of_its_events(tmp_path):
    with closing(Recorder(tmp_path, 0)) as recorder:
        for update in (1, 2):  # the second comes too soon to be shown
            recorder.write(metrics(update), 0.2)
        recorder.sync()
        assert raw_steps(tmp_path / "tensorboard") == [10, 20]


def test_a_full_disk_names_tensorboards_folder(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = Recorder(tmp_path, 0)
    monkeypatch.setattr(recorder._events, "add_event", full)
    with pytest.raises(OSError, match=r"No space left on device: .*tensorboard'"):
        recorder.write(metrics(0), 0.2)
    with pytest.raises(OSError, match=r"No space left on device: .*tensorboard'"):
        recorder.close()
    Recorder(tmp_path, 0).close()  # it has left the directory
    monkeypatch.setattr(EventFileWriter, "__init__", full)
    with pytest.raises(OSError, match=r"No space left on device: .*tensorboard'"):
        Recorder(tmp_path, 0)


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(Recorder(tmp_path, 0, 0)) as recorder:
        recorder.write(metrics(0), 0.2)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*metrics.jsonl'"):
            recorder.sync()


def test_a_phase_inside_another_counts_once():
    profile = Profile()
    with profile("rollout"):
        with profile("generate"):
            time.sleep(0.2)
        time.sleep(0.05)
    seconds = profile.take()
    assert seconds["generate"] >= 0.2
    assert 0.05 <= seconds["rollout"] < seconds["generate"]


def test_profile_counts_a_phase_that_failed_and_starts_anew():
    profile = Profile()
    with pytest.raises(KeyError), profile("loss"):
        raise KeyError
    seconds = profile.take()
    assert tuple(seconds) == PHASES
    assert seconds.pop("loss") > 0
    assert set(seconds.values()) == set(profile.take().values()) == {0.0}


def test_a_history_of_any_length_is_read_and_cut(tmp_path, monkeypatch):
    """A line may not be longer than so much; the file may."""
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    written = [json.dumps(metrics(k)) for k in range(99)]
    path.write_text("\n".join(written) + "\n")
    found, ends = rows(path)
    assert ([row["update"] for row in found], ends) == ([*range(99)], "")
    assert keep_updates(path, 50) == ""
    assert path.read_text().splitlines() == written[:50]
    monkeypatch.setattr(reading, "MOST_OF_A_LINE", 10)
    with pytest.raises(UserError, match="it has a line longer than 10 bytes"):
        keep_updates(path, 50)
