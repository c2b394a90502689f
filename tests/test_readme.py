"""README's commands work: each is run with a small budget; and what it says of files and counts is true."""

import json
import re
import shlex
from pathlib import Path

import pytest

from distqtrl.cli import main as cli
from distqtrl.config.sources import presets

README = (Path(__file__).parents[1] / "README.md").read_text()
SEARCH = ["--widths", "4", "--core-bits", "3", "--input-bits", "8", "--seeds", "0-1"]
EXPORT = ["--target", "c,onnx", "--vectors", "2000", "--episodes", "3"]  # cores have tests of their own
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^    ((?:mpirun|distqtrl) .*)$", README, re.M)]


@pytest.fixture
def run_directory(tmp_path, monkeypatch, capfd, small):
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text("[circuit]\nlayers = 2\n")
    assert cli.main(["train", "cartpole", "--json", *small]) == 0
    return json.loads(capfd.readouterr().out)["run"]


def test_there_are_commands():
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command(words, run_directory, mpirun, small):
    words = [run_directory if word.startswith("runs/") else word for word in words]
    if "train" in words and "--resume" not in words:
        words += small
        words += ["--algorithm.rollout_steps", "16"] if "hopper" in words else []  # it has as many minibatches
    if words[1] == "search-bits":
        words += [*small, *SEARCH, *EXPORT]
    if words[1] == "verify":
        assert cli.main(["export", run_directory, "-o", words[2], *EXPORT]) == 0
        words += EXPORT
    if words[1] == "export":
        words += EXPORT
    if words[0] == "mpirun":
        code, out, err = mpirun(2, ["-m", "distqtrl", *words[words.index("distqtrl") + 1 :]])
        assert code == 0, out + err
        return
    assert cli.main(words[1:]) == 0


def test_presets_are_the_ones_named():
    named = re.search(r"Presets: (.*?);", README, re.S)
    assert set(re.findall(r"`([\w-]+)`", named[1])) == set(presets())


def test_parameter_counts(capfd):
    cli.main(["describe", "cartpole", "--json"])
    facts = json.loads(capfd.readouterr().out)
    said = re.search(r"(\d+) qubits, (\d+) angles \+ (\d+) mapping parameters generate the (\d+)", README)
    keys = ("qubits", "circuit_parameters", "mapping_parameters", "policy_weights")
    assert [int(x) for x in said.groups()] == [facts[key] for key in keys]


def test_files_of_a_run(run_directory):
    section = README[README.index("### A run directory") : README.index("### Another MPI")]
    named = re.findall(r"^\| `([\w.]+)/?` \|", section, re.M)
    assert set(named) == {path.name for path in Path(run_directory).iterdir()}
