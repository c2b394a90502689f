"""distqtrl train: what a run leaves behind, and what it says where it cannot start."""

import json
import os
import subprocess
import sys

from distqtrl.config.sources import preset, with_flags


def test_a_run_leaves_everything_it_promises(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "policy.safetensors", "result.json",
        "learning_curve.png", "lock",
    }  # fmt: skip
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [32, 64]
    assert set(rows[0]["profile_s"]) >= {"rollout", "generate", "loss", "allreduce", "write"}
    assert list((trained / "tensorboard").glob("events*"))
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_complete_run_is_not_trained_again(trained, command):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    code, out, _ = command("train", "--resume", trained, "--json")
    assert code == 0
    assert json.loads(out)["status"] == "complete"
    assert "nothing was trained: this run was complete" in command("train", "--resume", trained)[1]
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_print_config_is_the_resolved_one(command):
    code, out, _ = command("train", "cartpole", "--circuit.layers", 7, "--print-config")
    assert code == 0
    assert json.loads(out) == with_flags(preset("cartpole"), {"circuit.layers": "7"}).model_dump(mode="json")


def test_a_directory_that_cannot_be_made(command, tmp_path, small):
    (tmp_path / "file").touch()
    code, _, err = command("train", "cartpole", "--train.directory", tmp_path / "file", *small)
    assert code == 2
    assert err.startswith(f"distqtrl: Not a directory: {tmp_path}/file/")


def test_compilation_is_shown_once(tmp_path, small):
    """The kernels' first use on a machine takes seconds; the next process finds them on disk."""
    command = [sys.executable, "-m", "distqtrl", "train", "cartpole", "--train.directory", tmp_path / "runs", *small]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first, second = (subprocess.run(command, env=env, capture_output=True, text=True, check=True) for _ in range(2))
    assert "compiled the circuit's kernels in " in first.stdout
    assert "compiled" not in second.stdout


def test_no_room_for_compiled_code(tmp_path, small):
    command = ["bash", "-c", 'ulimit -f 5; exec "$@"', "-", sys.executable, "-m", "distqtrl", "train", "cartpole"]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([*command, *small], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("distqtrl: cannot keep compiled code on disk ([Errno 27] File too large): set NUMBA_CACHE")
