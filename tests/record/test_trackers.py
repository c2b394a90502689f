"""Trackers: told what TensorBoard is told, by rank 0; the same run when it is resumed; never the end of a training."""

import importlib.util
import json
import os
import sqlite3
from contextlib import closing

import pytest
import runs

from distqtrl.cli import main as cli
from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.record import trackers
from distqtrl.record.trackers import Opened, Tracker, Trackers

FLAGS = runs.as_words(runs.tiny(train_steps=None, train_updates=3, train_checkpoint_every=2))


class Fake:
    """A tracker that keeps what it is told; ``fails`` names the call that raises."""

    def __init__(self, fails=""):
        self.fails, self.subjects, self.told, self.closed = fails, [], [], 0

    def _may(self, call):
        if call == self.fails:
            raise RuntimeError(f"no {call}\nhere")

    def open(self, subject):
        self._may("open")
        print("a tracker's advertisement")
        self.subjects.append(subject)
        return Opened(subject.name, self.log, self.close)

    def log(self, numbers, step):
        self._may("log")
        self.told.append((step, dict(numbers)))

    def close(self):
        self._may("close")
        self.closed += 1


@pytest.fixture
def faked(monkeypatch):
    """faked(fails) -> a tracker in wandb's place, which every update reaches."""

    def make(fails=""):
        fake = Fake(fails)
        monkeypatch.setitem(trackers.TRACKERS, "wandb", Tracker("json", "", fake.open))
        monkeypatch.setattr(trackers, "EVERY_S", -1)
        return fake

    return make


def test_standard_output_is_for_json_alone(faked, tmp_path, capsys):
    faked()
    assert train(tmp_path / "run", "--train.trackers", "wandb", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "complete"
    assert "a tracker's advertisement" in err


def train(run, *words):
    return cli.main(["train", "cartpole", "--run", str(run), *FLAGS, *words])


def test_a_tracker_is_told_what_the_metrics_hold_and_goes_on_in_the_same_run(faked, tmp_path):
    fake, run = faked(), tmp_path / "run"
    assert train(run, "--train.trackers", "wandb", "--qpu.replicas", "2") == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in fake.told] == [row["env_steps"] for row in rows]
    for row, (_, numbers) in zip(rows, fake.told, strict=True):
        assert numbers["wall_s"] == row["wall_s"]
        assert numbers["profile_s/rollout"] == row["profile_s"]["rollout"]
    assert train(run, "--train.trackers", "wandb", "--train.updates", "5", "--qpu.replicas", "2") == 0
    first, second = fake.subjects
    assert (first.known, second.known, first.name) == (False, True, second.name)
    assert json.loads((run / "trackers.json").read_text()) == {"wandb": first.name}
    assert (first.title, first.folder, first.config["train.updates"]) == ("run", tmp_path, 3)
    assert len(fake.told) == len((run / "metrics.jsonl").read_text().splitlines()) == 5
    assert fake.closed == 2


@pytest.mark.parametrize("fails", ["open", "log", "close"])
def test_a_tracker_that_fails_is_one_warning(faked, tmp_path, capsys, fails):
    fake, run = faked(fails), tmp_path / "run"
    assert train(run, "--train.trackers", "wandb") == 0
    err = capsys.readouterr().err
    warning = (
        f"warning: wandb failed and is disabled for this run (RuntimeError: no {fails} here); the training goes on"
    )
    assert err.count(warning) == err.count("wandb") == 1
    assert len(fake.told) == (3 if fails == "close" else 0)
    assert (run / "result.json").exists()


def test_a_folder_of_a_trackers_files_is_no_installation(tmp_path, monkeypatch):
    (tmp_path / "unheard_of").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Tracker("unheard_of", "unheard-of", Fake().open))
    with pytest.raises(UserError, match=r"wandb is not installed here: pip install 'unheard-of'"):
        trackers.check(("wandb",))


def test_updates_in_between_are_left_out_and_the_last_is_not(faked, tmp_path, monkeypatch):
    fake = faked()
    monkeypatch.setattr(trackers, "EVERY_S", 1000)
    monkeypatch.setattr(trackers.time, "monotonic", lambda: 5000.0)
    told = Trackers(tmp_path, Config.model_validate({"train": {"trackers": ("wandb", "wandb")}}), print)
    for step in range(5):
        told.write({"x": step}, step)
    told.close()
    told.close()
    assert fake.told == [(0, {"x": 0}), (4, {"x": 4})]
    assert (len(fake.subjects), fake.closed) == (1, 1)


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_made(monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Tracker("no_such_module", "its-package", None))
    assert train(tmp_path / "run", "--train.trackers", "wandb") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "train.trackers wandb: wandb is not installed here: pip install 'its-package'" in line
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path, capfd):
    assert train(tmp_path / "run", "--train.trackers", "wandbb") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "train.trackers" in line
    assert "'wandb', 'mlflow' or 'trackio'" in line


@pytest.mark.parametrize("text", ["", "{", "[]", '{"wandb": 7, "other": "x"}'])
def test_a_damaged_file_of_names_is_begun_again(faked, tmp_path, text):
    fake = faked()
    (tmp_path / "trackers.json").write_text(text)
    Trackers(tmp_path, Config.model_validate({"train": {"trackers": ("wandb",)}}), print).close()
    (subject,) = fake.subjects
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": subject.name}


def installed(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: it is big, and no part of the extra test")


@pytest.fixture
def apart(monkeypatch):
    """What these libraries change in the environment ends with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(trackers, "EVERY_S", -1)


@pytest.fixture
def resumed(apart, tmp_path, capsys):
    """resumed(name) -> the name that a tracker has for a run of two updates that was resumed for two more."""

    def track(name):
        installed(name)
        run, config = tmp_path / "run", Config.model_validate({"train": {"trackers": (name,)}})
        run.mkdir()
        for updates in ((0, 1), (2, 3)):
            told = Trackers(run, config, print)
            for update in updates:
                told.write({"loss": 0.5 + update, "profile_s/rollout": 0.25}, 10 * update)
            told.close()
        assert "warning" not in capsys.readouterr().out
        return json.loads((run / "trackers.json").read_text())[name]

    return track


def test_weights_and_biases_offline(resumed, tmp_path):
    name = resumed("wandb")
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2  # wandb sync makes one run of them
    assert all(b"profile_s/rollout" in file.read_bytes() for file in files)


def test_mlflows_files(resumed, tmp_path):
    name = resumed("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((tmp_path / "mlruns").as_uri())
    found = client.get_run(name)
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["circuit.layers"] == "3"
    history = client.get_metric_history(name, "loss")
    assert [(point.step, point.value) for point in history] == [(10 * n, 0.5 + n) for n in range(4)]


def test_trackios_database(resumed, tmp_path):
    name = resumed("trackio")
    with closing(sqlite3.connect(tmp_path / "trackio" / "distqtrl.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    told = [(10 * n, {"loss": 0.5 + n, "profile_s/rollout": 0.25}) for n in range(4)]
    assert [(run, step, json.loads(numbers)) for run, step, numbers in rows] == [(name, *each) for each in told]
