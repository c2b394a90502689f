"""One run directory: made or gone on with, written by one job, never damaged by what does not fit."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from distqtrl.cli import main as cli
from distqtrl.files import tensors as tensorfile
from distqtrl.policy import policy_file
from distqtrl.record.checkpoint import FORMAT

FLAGS = """--mapping.kind mlp --mapping.chunk 4 --policy.hidden 4 --algorithm.value_hidden 8 --train.steps 96
    --algorithm.rollout_steps 8 --environment.local_num 4 --evaluate.episodes 2 --evaluate.every none
    --evaluate.target none --train.checkpoint_every 1"""
FLAGS = FLAGS.split()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capfd, *words):
    assert cli.main([str(word) for word in words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distqtrl: ")
    return line


def test_a_run_is_made_gone_on_with_and_left_when_complete(tmp_path, capfd):
    whole, run = tmp_path / "deep" / "whole", tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(whole), *FLAGS]) == 0
    shutil.copytree(whole, run)
    for path in (run / "result.json", run / "policy.safetensors", run / "learning_curve.png"):
        path.unlink()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    newest.unlink()  # as if it had been killed before it
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    assert (run / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3

    (run / "learning_curve.png").unlink()  # killed just before its end
    before = contents(run)
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    assert (run / "learning_curve.png").exists()
    assert {path: data for path, data in contents(run).items() if path in before} == before


def test_killed_before_the_first_checkpoint_it_starts_again(tmp_path):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    policy = (run / "policy.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    (run / "result.json").unlink()
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    assert (run / "policy.safetensors").read_bytes() == policy
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_another_configuration_is_refused(tmp_path, capfd):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    before = contents(run)
    capfd.readouterr()
    line = refused(capfd, "train", "cartpole", "--run", run, *FLAGS, "--train.seed", "1")
    assert f"{run} was started with train.seed = 0, not 1" in line
    assert "choose another --run" in line
    assert contents(run) == before


def test_a_run_that_met_its_target_says_why_more_steps_train_nothing(tmp_path, capfd):
    run = tmp_path / "run"
    easy = ["--evaluate.every", "1", "--evaluate.validation_episodes", "1", "--evaluate.target", "1"]
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS, *easy]) == 0
    capfd.readouterr()
    assert cli.main(["train", "--resume", str(run), "--train.steps", "320"]) == 0
    assert "nothing is trained: the target is reached already; evaluate.target none" in capfd.readouterr().err
    updates = len((run / "metrics.jsonl").read_text().splitlines())
    assert cli.main(["train", "--resume", str(run), "--evaluate.target", "none"]) == 0
    assert "nothing is trained" not in capfd.readouterr().err
    assert len((run / "metrics.jsonl").read_text().splitlines()) > updates


def test_a_complete_run_is_extended(tmp_path, capfd):
    """To what it would be had it had that budget from the start; and not complete while it is not."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert cli.main(["train", "cartpole", "--run", str(whole), *FLAGS, "--train.steps", "160"]) == 0
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    first, result = (run / "policy.safetensors").read_bytes(), (run / "result.json").read_bytes()
    capfd.readouterr()
    line = refused(capfd, "train", "--resume", run, "--train.steps", "160", "--policy.hidden", "5")
    assert "policy.hidden = [4], not [5]" in line
    assert (run / "result.json").read_bytes() == result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distqtrl.training.updates.update", lambda *_: sys.exit(9))  # it dies in the middle
        assert cli.main(["train", "--resume", str(run), "--train.steps", "160"]) != 0
    assert not (run / "result.json").exists()
    assert (run / "result-000003.json").read_bytes() == result
    assert (run / "policy.safetensors").read_bytes() == first
    capfd.readouterr()
    code = cli.main(["train", "--resume", str(run), "--train.checkpoint_every", "2", "--evaluate.episodes", "3"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert f"run directory {run}, 1 rank, resumes after 3 updates\n" in out
    assert f"distqtrl: {run} resumes with train.checkpoint_every 1 -> 2\n" in err
    assert f"distqtrl: {run} resumes with evaluate.episodes 2 -> 3\n" in err
    made, wanted = (policy_file.load(place / "policy.safetensors") for place in (run, whole))
    assert made.w_M.tolist() == wanted.w_M.tolist()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 5
    settings = json.loads((run / "config.json").read_text())
    assert (settings["train"]["steps"], settings["train"]["checkpoint_every"]) == (160, 2)
    assert json.loads((run / "result.json").read_text())["evaluation"]["episodes"] == 3

    same = ["train", "cartpole", "--run", str(run), *FLAGS, "--train.steps", "160", "--train.checkpoint_every"]
    before = contents(run)
    assert cli.main([*same, "7", "--evaluate.episodes", "3"]) == 0  # output alone: nothing is to be done
    changed = {path.name for path, data in contents(run).items() if before.get(path) != data}
    assert changed == {"config.json", "lock"} or changed == {"config.json"}
    shutil.rmtree(run / "checkpoints")
    capfd.readouterr()
    assert "has no checkpoint to resume from" in refused(capfd, "train", "--resume", run, "--train.steps", "170")


def test_a_target_that_was_reached_stays_reached(tmp_path, capfd):
    """Also for a run that was killed in its evaluation, and one whose evaluation alone is to change."""
    run, flags = tmp_path / "run", [*FLAGS, "--train.steps", "6400", "--evaluate.every", "1"]
    assert cli.main(["train", "cartpole", "--run", str(run), *flags, "--evaluate.target", "1"]) == 0
    (run / "result.json").unlink()
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert cli.main(["train", "--resume", str(run), "--evaluate.episodes", "4"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["update"], result["target_reached"], result["evaluation"]["episodes"]) == (1, True, 4)
    assert cli.main(["train", "--resume", str(run), "--evaluate.target", "501", "--train.steps", "64"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["update"], result["target_reached"]) == (2, False)


def test_what_cannot_run_owns_no_directory(tmp_path, capfd):
    run = tmp_path / "run"
    refused(capfd, "train", "cartpole", "--run", run, *FLAGS, "--environment.id", "CartPol-v1")
    assert not run.exists()
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0


def test_damaged_records_are_noticed(tmp_path, capfd):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    good = (run / "result.json").read_text()
    for bad in ("", "[1]", "{}", "\0", "[" * 100_000, '{"status": "complete"}', good.replace('"mean"', '"n"')):
        (run / "result.json").write_text(bad)
        capfd.readouterr()
        assert f"{run}/result.json" in refused(capfd, "train", "--resume", run)
        assert "remove it, and distqtrl train --resume" in refused(capfd, "train", "cartpole", "--run", run, *FLAGS)
    (run / "result.json").unlink()
    (run / "metrics.jsonl").write_text("")
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert f"distqtrl: {run}/metrics.jsonl holds 0 of 3 updates" in capfd.readouterr().err
    assert json.loads((run / "result.json").read_text())["evaluation"] == json.loads(good)["evaluation"]
    (run / "learning_curve.png").unlink()
    (run / "metrics.jsonl").write_text("{")
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert f"distqtrl: warning: {run}/learning_curve.png is not drawn" in capfd.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not a run directory" in refused(capfd, "train", "cartpole", "--run", tmp_path, *FLAGS)
    assert contents(tmp_path) == {tmp_path / "thesis.tex": b"years of work"}


def test_resume_and_run_exclude_each_other(tmp_path, capfd):
    assert "remove --run" in refused(capfd, "train", "--resume", tmp_path, "--run", tmp_path)


def test_a_second_job_in_the_same_directory_is_refused(tmp_path, capfd):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    (run / "result.json").unlink()
    capfd.readouterr()
    hold = "import sys, time; from pathlib import Path; from distqtrl.record.recorder import Recorder;"
    hold += "held = Recorder(Path(sys.argv[1]), 0, 3, 96); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)],
        stdout=subprocess.PIPE,
        env={**os.environ, "SLURM_JOB_ID": "77"},
    ) as other:
        assert other.stdout.readline() == b"held\n"
        before = contents(run)
        line = refused(capfd, "train", "--resume", run)
        assert f"{run} is being written by process {other.pid} on host " in line
        assert "job 77" in line
        assert contents(run) == before
        other.kill()
    assert cli.main(["train", "--resume", str(run)]) == 0  # the lock is gone with the process


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting takes root and unshare")
@pytest.mark.parametrize("size", ["48k", "104k"])
def test_a_filesystem_that_is_full(tmp_path, size):
    """One line, and every checkpoint that is there is whole."""
    run, kept = tmp_path / "small" / "run", tmp_path / "kept"
    run.parent.mkdir()
    train = shlex.join([sys.executable, "-m", "distqtrl", "train", "cartpole", "--run", str(run), *FLAGS])
    mount = f"mount -t tmpfs -o size={size} none {run.parent}"
    script = f"{mount} && {{ {train} --train.steps 64000; code=$?; cp -r {run} {kept}; exit $code; }}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("distqtrl: ")]
    assert "No space left on device" in line
    assert str(run) in line
    assert not list(kept.rglob("*.partial"))
    for path in kept.glob("checkpoints/*"):
        tensorfile.read(path, FORMAT, "")
    updates = [json.loads(text)["update"] for text in (kept / "metrics.jsonl").read_text().splitlines()[:-1]]
    assert updates == list(range(len(updates)))


def test_a_budget_that_is_spent_is_refused(tmp_path, capfd):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    before = contents(run)
    capfd.readouterr()
    line = refused(capfd, "train", "--resume", run, "--train.steps", "32")
    assert f"train.steps = 32: {run} has 96 already: give more, or leave it out" in line
    assert contents(run) == before


def test_a_policy_that_is_gone_comes_back_as_the_message_says(tmp_path, capfd):
    run = tmp_path / "a run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    kept = (run / "policy.safetensors").read_bytes()
    (run / "policy.safetensors").unlink()
    capfd.readouterr()
    line = refused(capfd, "train", "--resume", run)
    assert "its policy.safetensors is gone: remove result.json, and distqtrl train --resume" in line
    (run / "result.json").unlink()
    line = refused(capfd, "evaluate", run)
    words = shlex.split(line.partition("distqtrl train ")[2])[:2]
    assert words == ["--resume", str(run)]
    assert cli.main(["train", *words]) == 0
    assert (run / "policy.safetensors").read_bytes() == kept


@pytest.mark.parametrize("words", [["--resume", "RUN"], ["cartpole", "--run", "RUN"]])
def test_a_damaged_configuration_is_to_be_restored(tmp_path, capfd, words):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    (run / "config.json").write_text("")
    capfd.readouterr()
    line = refused(capfd, "train", *(str(run) if word == "RUN" else word for word in words))
    assert line.endswith("restore it, or choose another --run")
