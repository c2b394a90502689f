"""All commands: help, exit codes, one line per mistake, nothing left behind, and the libraries that are not loaded."""

import importlib
import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from distqtrl.allreduce.communicator import Serial
from distqtrl.cli import parser
from distqtrl.cli.commands import COMMANDS
from distqtrl.cli.main import explain
from distqtrl.config.run import field_names
from distqtrl.config.sources import presets

HEAVY = ("torch", "matplotlib", "numba", "mpi4py", "pennylane", "qiskit")


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS)])
def test_help_is_complete(command, argv):
    code, out, _ = command(*argv, "--help")
    assert code == 0
    if not argv:
        assert all(f"\n    {name} " in out for name in COMMANDS)
    if argv == ["train"]:
        assert all(f"--{name} " in out for name in field_names())
        assert all(name in "".join(out.split()) for name in presets())  # lines break at hyphens


@pytest.mark.parametrize(
    "words",
    [
        ("train", "cartpole", "--print-config"),
        ("describe", "cartpole"),
        ("describe", "cartpole", "--suggest", "200"),
        ("slurm", "cartpole", "--dry-run"),
        ("search-bits", "pendulum-sac", "--dry-run", "-o", "nowhere"),
        ("completion", "bash"),
        ("doctor",),
    ],
)
def test_json_is_all_that_a_program_reads(command, words):
    code, out, _ = command(*words, "--json")
    assert code == 0
    assert isinstance(json.loads(out), dict)


def test_a_run_directory_is_a_configuration(command, small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ("cartpole", "--generator.source", "direct", *small, "--run=~/run", "--train.steps", "1e2")
    code, _, err = command("train", *words)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 100
    code, out, _ = command("train", "--config", "run", "--print-config")
    assert (code, json.loads(out)) == (0, json.loads((tmp_path / "run" / "config.json").read_text()))


def test_json_beside_an_environment_that_prints(command, small, tmp_path):
    run = tmp_path / "run"
    words = ("cartpole", "--environment.id", "drawn:Drawn-v0", "--generator.source", "direct", *small)
    trusted = (run, "--import-environment", "--episodes", "1")
    said = [command("train", *words, "--run", run, "--json"), command("evaluate", *trusted, "--json")]
    quick = ("--target", "c", "--vectors", "10")
    said.append(command("export", *trusted, "-o", tmp_path / "out", *quick, "--json"))
    for code, out, err in said:
        assert code == 0, err
        assert isinstance(json.loads(out), dict)
        assert "a new episode\n" in err
    assert "a new episode\n" in command("evaluate", *trusted)[1]


def test_help_and_mistakes_load_no_heavy_library():
    program = f"""
import sys
from distqtrl.cli.main import main
for argv in (["--help"], ["--version"], *([name, "--help"] for name in {list(COMMANDS)}), ["export"], ["train", "--x"]):
    main(argv)
print([name for name in sys.modules if name in {HEAVY}], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_command_is_a_module_and_one_entry(command, monkeypatch):
    def add(sub: ArgumentParser) -> None:
        sub.add_argument("--times", type=int, default=1)

    def run(args, flags, comm):
        print("hello " * args.times, flags, comm.size)
        return 3

    dummy = SimpleNamespace(TEXT="Say hello.", SHARED=False, add=add, run=run)
    monkeypatch.setitem(COMMANDS, "hello", dummy)
    parser.parser.cache_clear()
    assert command("hello", "--times", 2) == (3, "hello hello  {} 1\n", "")
    dummy.SHARED = True
    assert command("hello") == (3, "hello  {} 1\n", "")
    assert "Say hello." in command("--help")[1]
    assert command("hello", "--time", 2)[2] == "distqtrl: unknown key 'time': did you mean 'times'?\n"
    parser.parser.cache_clear()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "train takes one of PRESET, --config FILE, --resume RUN"),
        (["train", "cartpol"], "unknown preset 'cartpol': did you mean 'cartpole'?"),
        (["train", "cartpole", "--config", "x"], "train takes one of"),
        (["train", "cartpole", "--run", ""], "argument --run: an empty path, as of a variable that is not set: name a"),
        (["report", ""], "argument RUN: an empty path, as of a variable that is not set: name a file or folder"),
        (["train", "cartpole", "surplus"], "unexpected argument 'surplus'"),
        (["train", "cartpole", "--circuit.layer", "3"], "unknown key 'circuit.layer': did you mean 'circuit.layers'?"),
        (["train", "cartpole", "--environment.id", "CartPol-v1"], "unknown environment 'CartPol-v1': did you mean"),
        (["train", "cartpole", "--environment.id", "minigrid:MiniGrid-Empty-5x5-v0"], "observation space MissionSpace"),
        (["train", "cartpole", "--environment.kwargs", '{"no": 1}'], "environment.id = 'CartPole-v1'"),
        (["train", "cartpole", "--qpu.backend", "statevectr"], "unknown qpu.backend 'statevectr': did you mean"),
        (["train", "cartpole", "--circuit.ansatz", "ry_cnt"], "unknown ansatz 'ry_cnt': did you mean 'ry_cnot'?"),
        (
            ["train", "acrobot", "--policy.hidden", "10000", "10000", "--mapping.chunk", "1"],
            "take 27 qubits and about",
        ),
        (["train", "cartpole", "--resum", "x"], "unknown key 'resum': did you mean 'resume'?"),
        (
            ["export", "x", "-o", "y", "--core", "folded"],
            "unknown key 'core': known: bits, calibration, ",
        ),
        (["train", "--resume", "nowhere"], "No such file or directory: give the directory of a run, or begin one"),
        (["train", str(Path(__file__).parent)], "is the name of a file or folder: use --config "),
        (["describe", __file__], "is the name of a file or folder: use --config "),
        (["evaluate", "nowhere"], "cannot read nowhere"),
        (["evaluate", "x", "--episodes", "0"], "argument --episodes: '0' is not a whole number from 1 to 1000000000"),
        (["describe", "nowhere"], "unknown preset 'nowhere'"),
        (["launch"], "invalid choice: 'launch'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 6.71 GiB"), RuntimeError("CPUAllocator: can't allocate memory: 9 bytes")]
)
def test_memory_that_is_not_there_is_no_bug(capfd, error):
    assert explain(error, Serial()) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"distqtrl: not enough memory ({error}): give this process more")


def test_a_library_that_does_not_load_is_no_bug(tmp_path, monkeypatch, capfd):
    (tmp_path / "fussy.py").write_text("raise ValueError('\\nthreads must be > 0\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FUSSY_THREADS", "0")
    with pytest.raises(ValueError, match="threads") as refusal:
        importlib.import_module("fussy")
    assert explain(refusal.value, Serial()) == 1
    assert capfd.readouterr().err == (
        "distqtrl: fussy does not load (threads must be > 0): unset FUSSY_THREADS=0, or install distqtrl again\n"
    )
