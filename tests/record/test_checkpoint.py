"""Checkpoint files: a damaged or unfitting one is refused in one line, a save that fails leaves the old ones."""

import errno
import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from runs import as_words, tiny
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

from distqtrl.allreduce.communicator import Serial
from distqtrl.cli import main as cli
from distqtrl.config import stages as config
from distqtrl.config.run import Config
from distqtrl.config.sources import load
from distqtrl.errors import UserError
from distqtrl.files import tensors as tensorfile
from distqtrl.record import checkpoint
from distqtrl.record.directory import checkpoints
from distqtrl.training.run import Counters

TINY = as_words(tiny(train_checkpoint_every=1, train_steps=96))
TENSORS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], dtype=np.int64), "empty": np.zeros(0)}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr("distqtrl.cli.train.draw", lambda directory: None)


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distqtrl.cli.train.draw", lambda directory: None)
        assert cli.main(["train", "cartpole", *TINY, "--train.directory", str(folder)]) == 0
    (run,) = folder.iterdir()
    return run


@pytest.fixture
def run(complete_run, tmp_path):
    """A run of three updates that was killed before it wrote its result."""
    path = tmp_path / "run"
    shutil.copytree(complete_run, path)
    (path / "result.json").unlink()
    return path


def newest(run):
    return sorted((run / "checkpoints").iterdir())[-1]


def test_the_newest_is_that_of_the_greatest_number(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for number in (1_000_000, 999_980, 7):
        (tmp_path / "checkpoints" / f"update-{number:06d}.safetensors").touch()
    for copy in ("update-999980 (copy)", "update-1000001-backup", "update-", "update-x1"):
        (tmp_path / "checkpoints" / f"{copy}.safetensors").touch()
    assert [path.stem for path in checkpoints(tmp_path)] == ["update-000007", "update-999980", "update-1000000"]


def resumed(run, capfd):
    """Exit code and lines on stderr of ``train --resume``."""
    capfd.readouterr()
    code = cli.main(["train", "--resume", str(run)])
    return code, capfd.readouterr().err.splitlines()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def full_disk(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def truncate(run):
    newest(run).write_bytes(newest(run).read_bytes()[:-100])


def empty(run):
    newest(run).write_bytes(b"")


def flip_byte_of_tensor(run):
    data = bytearray(newest(run).read_bytes())
    data[-1] ^= 1
    newest(run).write_bytes(data)


def flip_byte_of_counter(run):
    data = newest(run).read_bytes()
    assert data.count(rb"\"update\": 3") == 1
    newest(run).write_bytes(data.replace(rb"\"update\": 3", rb"\"update\": 2"))


def foreign_text(run):
    newest(run).write_text("hello, this is no checkpoint\n" * 100)


def foreign_tensors(run):
    save_file(TENSORS, newest(run))


def foreign_model(run):
    torch_save_file({"x": torch.zeros(2, dtype=torch.bfloat16)}, newest(run))


def another_kind(run):
    shutil.copy(run / "policy.safetensors", newest(run))


def folder_in_its_place(run):
    path = newest(run)
    path.unlink()
    path.mkdir()


def another_seed(run):
    values = json.loads((run / "config.json").read_text())
    values["train"]["seed"] += 1
    (run / "config.json").write_text(json.dumps(values))


def another_shape(run):
    values = json.loads((run / "config.json").read_text())
    values["policy"]["hidden"] = [5]
    (run / "config.json").write_text(json.dumps(values))


def no_checkpoint(run):
    shutil.rmtree(run / "checkpoints")


def no_config(run):
    (run / "config.json").unlink()


def no_run(run):
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("damage", "what", "remedy"),
    [
        (truncate, "cannot read", "delete it to resume from the one before"),
        (empty, "cannot read", "delete it to resume from the one before"),
        (flip_byte_of_tensor, "changed after it was written", "delete it to resume from the one before"),
        (flip_byte_of_counter, "changed after it was written", "delete it to resume from the one before"),
        (foreign_text, "cannot read", "delete it to resume from the one before"),
        (foreign_tensors, "not written by distqtrl", "delete it to resume from the one before"),
        (foreign_model, "", "delete it to resume from the one before"),
        (another_kind, "is a 'distqtrl policy 1' file", "delete it to resume from the one before"),
        (folder_in_its_place, "cannot read", "delete it to resume from the one before"),
        (another_seed, "another configuration", "restore config.json"),
        (another_shape, "another configuration", "restore config.json"),
        (no_checkpoint, "has no checkpoint", "start the run again without --resume"),
        (no_config, "cannot read configuration", "config.json"),
        (no_run, "cannot read configuration", "config.json"),
    ],
)
def test_what_cannot_be_resumed_is_refused_in_one_line(run, capfd, damage, what, remedy):
    damage(run)
    code, err = resumed(run, capfd)
    assert code == 2
    (line,) = err
    assert line.startswith("distqtrl: ")
    assert str(run) in line
    assert what in line
    assert remedy in line


def test_the_remedy_for_a_damaged_checkpoint_works(run, complete_run, capfd):
    truncate(run)
    newest(run).unlink()
    code, _ = resumed(run, capfd)
    assert code == 0
    _, again = tensorfile.read(newest(run), checkpoint.FORMAT, "")
    _, first = tensorfile.read(newest(complete_run), checkpoint.FORMAT, "")
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)


@pytest.mark.parametrize(
    ("aggregation", "size", "what"),
    [
        ("mean", 5, "has 4 environments, too few for 5 ranks: use fewer ranks"),
        ("sum", 2, "was written by 1 ranks, this job has 2, and allreduce.aggregation sum depends on their number"),
        ("average", 2, "use mpirun -n 1"),
    ],
)
def test_other_ranks_that_cannot_go_on_are_refused(tmp_path, aggregation, size, what):
    settings = Config(allreduce=config.Allreduce(aggregation=aggregation))
    numbers = np.arange(4), np.zeros(4, np.int64)
    rows = {"index_B": numbers[0], "episode_B": numbers[1], "length_B": numbers[1], "actions": np.zeros(0)}
    state = checkpoint.State(
        asdict(Counters(1)), TENSORS, rows | {"obs_BO": np.zeros((4, 1), np.float32)}, numbers[1][:3]
    )
    checkpoint.save(tmp_path, settings, Serial(), state)
    comm = Serial()
    comm.size = size
    with pytest.raises(UserError, match=what):
        checkpoint.load(tmp_path, settings, comm)


def test_the_newest_checkpoints_stay(complete_run):
    names = sorted(path.name for path in (complete_run / "checkpoints").iterdir())
    assert names == ["update-000002.safetensors", "update-000003.safetensors"]


@pytest.mark.parametrize("update", [3, 4])
def test_a_save_that_fails_leaves_the_old_checkpoints(run, monkeypatch, update):
    """Also the one that it would have replaced."""
    before = contents(run / "checkpoints")
    monkeypatch.setattr(os, "fsync", full_disk)
    state = checkpoint.State({"update": update}, TENSORS, {"actions": np.zeros(0)}, np.zeros(3))
    with pytest.raises(OSError, match=f"No space left on device: .*update-00000{update}.safetensors"):
        checkpoint.save(run, load(run / "config.json"), Serial(), state)
    assert contents(run / "checkpoints") == before


@pytest.mark.parametrize(
    ("calls_that_work", "code_at_end", "file"),
    [(0, 2, "metrics.jsonl"), (1, 1, "metrics.jsonl"), (2, 1, "update-000003.safetensors")],
)
def test_a_disk_that_fills_while_training_is_one_line(run, capfd, monkeypatch, calls_that_work, code_at_end, file):
    """The first flush is that of the metrics cut back, before training; then of an update's metrics, then of its
    checkpoint."""
    newest(run).unlink()
    before, calls = contents(run / "checkpoints"), []

    def full(number):
        calls.append(number)
        if len(calls) > calls_that_work:
            full_disk(number)

    monkeypatch.setattr(os, "fsync", full)
    code, err = resumed(run, capfd)
    (line,) = [line for line in err if not line.startswith("update ")]
    assert line.startswith("distqtrl: No space left on device: ")
    assert (code, file in line) == (code_at_end, True), line
    assert contents(run / "checkpoints") == before


def test_a_half_written_file_of_a_killed_process_is_ignored(run, capfd):
    newest(run).rename(newest(run).with_suffix(".safetensors.partial"))
    code, _ = resumed(run, capfd)
    assert code == 0
    assert not list((run / "checkpoints").glob("*.partial"))


def test_a_run_killed_after_its_last_update_is_completed(run, complete_run, capfd):
    code, _ = resumed(run, capfd)
    assert code == 0
    result, expected = (json.loads((path / "result.json").read_text()) for path in (run, complete_run))
    assert result["evaluation"] == expected["evaluation"]
    assert (run / "metrics.jsonl").read_text() == (complete_run / "metrics.jsonl").read_text()


def test_a_complete_run_is_only_reported(complete_run, capfd):
    before = contents(complete_run / "checkpoints")
    code, err = resumed(complete_run, capfd)
    assert (code, err) == (0, [])
    assert contents(complete_run / "checkpoints") == before


def test_tensors_come_back_as_they_were(tmp_path):
    path = tmp_path / "file"
    tensorfile.write(path, {"format": "x", "n": 3}, TENSORS)
    about, tensors = tensorfile.read(path, "x", "")
    assert about == {"format": "x", "n": 3}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(tensors[name], tensor)


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path):
    path = tmp_path / "file"
    tensorfile.write(path, {"format": "x"}, TENSORS)
    data = path.read_bytes()
    damaged = [data[:size] for size in range(0, len(data), 7)]
    for number in range(len(data)):
        changed = bytearray(data)
        changed[number] ^= 1 << number % 8
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match="mend it"):
            tensorfile.read(path, "x", "mend it")
