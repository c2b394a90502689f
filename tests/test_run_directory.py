"""One run directory: made or gone on with, written by one job, never damaged by what does not fit."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from distqtrl import cli, tensorfile
from distqtrl.checkpoint import FORMAT

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


def test_a_folder_of_something_else_is_refused(tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is no run directory" in refused(capfd, "train", "cartpole", "--run", tmp_path, *FLAGS)
    assert contents(tmp_path) == {tmp_path / "thesis.tex": b"years of work"}


def test_resume_and_run_exclude_each_other(tmp_path, capfd):
    assert "remove --run" in refused(capfd, "train", "--resume", tmp_path, "--run", tmp_path)


def test_a_second_job_in_the_same_directory_is_refused(tmp_path, capfd):
    run = tmp_path / "run"
    assert cli.main(["train", "cartpole", "--run", str(run), *FLAGS]) == 0
    (run / "result.json").unlink()
    capfd.readouterr()
    hold = "import sys, time; from pathlib import Path; from distqtrl.record import Recorder;"
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
