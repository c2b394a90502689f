"""README is short, its commands of several ranks work, and what it says of counts is true."""

import json
import re
import shlex
from pathlib import Path

import pytest

from distqtrl.cli import main as cli

README = (Path(__file__).parents[1] / "README.md").read_text()
LINES = re.findall(r"^    (mpirun .*?) *(?:#.*)?$", README, re.M)  # the others: test_docs.py


def test_it_is_a_screen_and_a_half():
    assert len(README.splitlines()) <= 100


@pytest.mark.parametrize("line", LINES)
def test_command_of_ranks(line, tmp_path, forked_ranks, small):
    words = shlex.split(line)
    words = [*words[words.index("distqtrl") + 1 :], *small, "--run", tmp_path / "run"]
    code, out, err = forked_ranks(2, ["-m", "distqtrl", *words])
    assert code == 0, out + err


def test_parameter_counts(capfd):
    cli.main(["describe", "cartpole", "--json"])
    facts = json.loads(capfd.readouterr().out)
    said = re.search(r"\(preset `cartpole`\) \| (\d+) \| (\d+) angles \|", README)
    assert [int(x) for x in said.groups()] == [facts["policy_weights"], facts["circuit_parameters"]]
    assert facts["mapping_parameters"] == 0


def test_what_it_points_to_is_in_docs():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", README))
    kept = {page.name for page in (Path(__file__).parents[1] / "docs").glob("*.md")}
    behind = {"index.md", "api.md", "commands.md", "tables.md"}  # the site's own, reached from there
    assert linked == kept - behind
