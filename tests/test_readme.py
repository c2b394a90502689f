"""README's commands work: each is run with a small budget; and what it says of files and counts is true."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import runs

from distqtrl.cli import main as cli
from distqtrl.config.sources import presets

README = (Path(__file__).parents[1] / "README.md").read_text()
SEARCH = ["--widths", "4", "--core-bits", "3", "--input-bits", "8", "--seeds", "0-1"]
EXPORT = ["--target", "c,onnx", "--vectors", "2000", "--episodes", "3"]  # cores have tests of their own
LINES = re.findall(r"^    ((?:mpirun|distqtrl) .*?) *(?:#.*)?$", README, re.M)
ELSEWHERE = (Path(__file__).parents[1] / "docs" / "language.md").read_text()  # test_language_page.py runs what is there
COMMANDS = [shlex.split(line) for line in LINES if f"    {line}\n" not in ELSEWHERE]


@pytest.fixture(scope="module")
def made(tmp_path_factory, small):
    """A run directory; not to be changed."""
    return runs.trained(tmp_path_factory.mktemp("readme") / "run", *small)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """Its export; not to be changed."""
    folder = tmp_path_factory.mktemp("readme") / "exported"
    assert cli.main(["export", str(made), "-o", str(folder), *EXPORT]) == 0
    return folder


@pytest.fixture
def run_directory(made, tmp_path, monkeypatch):
    """A copy of it, in a working directory that has README's files."""
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text("[circuit]\nlayers = 2\n")
    return str(shutil.copytree(made, tmp_path / "runs" / "made"))


def test_there_are_commands():
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "mpirun"], ids=" ".join)
def test_command(request, words, run_directory, small):
    words = [run_directory if word.startswith("runs/") else word for word in words]
    if "train" in words and "--resume" not in words:
        words += small
        words += ["--algorithm.rollout_steps", "16"] if "hopper" in words else []  # it has as many minibatches
    if words[1] == "search-bits":
        words += [*small, *SEARCH, *EXPORT]
    if words[1] == "verify":
        shutil.copytree(request.getfixturevalue("exported"), words[2])
        words += EXPORT
    if words[1] == "export":
        words += EXPORT
    assert cli.main(words[1:]) == 0


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "mpirun"], ids=" ".join)
def test_command_of_ranks(words, tmp_path, forked_ranks, small):
    words = [*words[words.index("distqtrl") + 1 :], *small, "--run", tmp_path / "run"]
    code, out, err = forked_ranks(2, ["-m", "distqtrl", *words])
    assert code == 0, out + err


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
