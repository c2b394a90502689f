"""The command line: output, exit codes, one line per mistake, nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distqtrl.cli import main as cli
from distqtrl.config.run import field_names
from distqtrl.config.sources import preset, presets, with_flags

MLP = ["--mapping.kind", "mlp"]


def run(capfd, *argv):
    code = cli.main([str(a) for a in argv])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def trained(capfd, tmp_path, small):
    code, out, _ = run(capfd, "train", "cartpole", "--json", "--train.directory", tmp_path, *small, *MLP)
    assert code == 0
    return json.loads(out.splitlines()[-1])["run"]


def test_a_run_leaves_everything_it_promises(trained, tmp_path):
    names = {path.name for path in (tmp_path / trained).iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "policy.safetensors", "result.json",
        "learning_curve.png", "lock",
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [32, 64]
    assert set(rows[0]["profile_s"]) >= {"rollout", "generate", "loss", "allreduce", "write"}
    assert list((tmp_path / trained / "tensorboard").glob("events*"))
    assert (tmp_path / trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_reads_the_policy_file_alone(trained, capfd, tmp_path):
    code, out, _ = run(capfd, "evaluate", trained, "--episodes", 3, "--json")
    moved = tmp_path / "elsewhere.safetensors"
    (tmp_path / trained / "policy.safetensors").rename(moved)
    again = run(capfd, "evaluate", moved, "--episodes", 3, "--json")
    assert code == 0
    assert again == (0, out, "")
    result = json.loads((tmp_path / trained / "result.json").read_text())
    assert json.loads(out)["mean"] == result["evaluation"]["mean"]
    assert "CartPole-v1: return" in run(capfd, "evaluate", moved, "--episodes", 3)[1]


def test_evaluate_draws_its_first_episode(trained, capfd, tmp_path):
    plain = json.loads(run(capfd, "evaluate", trained, "--episodes", 2, "--json")[1])
    file = tmp_path / "first.gif"
    code, out, err = run(capfd, "evaluate", trained, "--episodes", 2, "--json", "--gif", file)
    drawn = json.loads(out)
    assert (code, err, drawn.pop("gif")["file"], drawn) == (0, "", str(file), plain)
    assert file.read_bytes().startswith(b"GIF89a")
    code, out, _ = run(capfd, "evaluate", trained, "--episodes", 1, "--gif", file)
    first = float(out.split("return ")[1].split()[0])  # the mean of one
    assert out.splitlines()[1] == f"{file} shows the first of them, return {first:.2f}"
    before = sorted(tmp_path.iterdir())
    for path in (tmp_path / "first.png", tmp_path / "nowhere" / "first.gif"):
        code, out, err = run(capfd, "evaluate", trained, "--gif", path)
        assert (code, out, err.count("\n"), sorted(tmp_path.iterdir())) == (2, "", 1, before)
        assert f"--gif {path} " in err


def test_a_complete_run_is_not_trained_again(trained, capfd):
    before = {path: path.stat().st_mtime_ns for path in Path(trained).rglob("*")}
    code, out, _ = run(capfd, "train", "--resume", trained, "--json")
    assert code == 0
    assert json.loads(out)["status"] == "complete"
    assert {path: path.stat().st_mtime_ns for path in Path(trained).rglob("*")} == before


def test_print_config_is_the_resolved_one(capfd):
    code, out, _ = run(capfd, "train", "cartpole", "--circuit.layers", 7, "--print-config")
    assert code == 0
    assert json.loads(out) == with_flags(preset("cartpole"), {"circuit.layers": "7"}).model_dump(mode="json")


def test_describe_a_preset_and_a_run(trained, capfd):
    code, out, _ = run(capfd, "describe", "cartpole", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["policy_weights"] == 898
    assert facts["total_parameters"] == facts["circuit_parameters"] + facts["mapping_parameters"]
    assert facts["effective_parameters"] <= facts["total_parameters"]
    assert "policy weights" in run(capfd, "describe", trained)[1]


def test_doctor(capfd):
    code, out, _ = run(capfd, "doctor", "--json")
    assert code == 0
    assert json.loads(out)["ranks"][0]["rank"] == 0
    assert "rank 0 of 1" in run(capfd, "doctor")[1]


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["describe"], ["doctor"], ["search-bits"]])
def test_help_is_complete(capfd, command):
    code, out, _ = run(capfd, *command, "--help")
    assert code == 0
    if command == ["train"]:
        assert all(f"--{name} " in out for name in field_names())
        assert all(name in "".join(out.split()) for name in presets())  # lines break at hyphens


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "train takes one of PRESET, --config FILE, --resume RUN"),
        (["train", "cartpol"], "unknown preset 'cartpol': did you mean 'cartpole'?"),
        (["train", "cartpole", "--config", "x"], "train takes one of"),
        (["train", "cartpole", "surplus"], "unexpected argument 'surplus'"),
        (["train", "cartpole", "--circuit.layer", "3"], "unknown key 'circuit.layer': did you mean 'circuit.layers'?"),
        (["train", "cartpole", "--environment.id", "CartPol-v1"], "unknown environment 'CartPol-v1': did you mean"),
        (["train", "cartpole", "--environment.id", "Blackjack-v1"], "Blackjack-v1: observation space Tuple"),
        (["train", "cartpole", "--environment.kwargs", '{"no": 1}'], "environment.id = 'CartPole-v1'"),
        (["train", "cartpole", "--qpu.backend", "statevectr"], "unknown qpu.backend 'statevectr': did you mean"),
        (["train", "cartpole", "--circuit.ansatz", "ry_cnt"], "unknown ansatz 'ry_cnt': did you mean 'ry_cnot'?"),
        (
            ["train", "cartpole", "--policy.hidden", "10000", "10000", "--mapping.chunk", "1"],
            "take 27 qubits and about",
        ),
        (["train", "--resume", "nowhere"], "cannot read configuration nowhere/config.json"),
        (["evaluate", "nowhere"], "cannot read nowhere"),
        (["evaluate", "x", "--episodes", "0"], "argument --episodes: '0' is no whole number from 1 to 1000000000"),
        (["describe", "nowhere"], "unknown preset 'nowhere'"),
        (["launch"], "invalid choice: 'launch'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capfd, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, *argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(capfd, tmp_path, small):
    (tmp_path / "file").touch()
    code, _, err = run(capfd, "train", "cartpole", "--train.directory", tmp_path / "file", *small, *MLP)
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
