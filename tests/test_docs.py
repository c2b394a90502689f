"""The environment of docs/multi-agent.md is short, passes PettingZoo's test, and trains by the command beside it."""

import json
import re
import shlex
from pathlib import Path

import pytest
import runs

from distqtrl.cli import main as cli

PAGE = (Path(__file__).parents[1] / "docs" / "multi-agent.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COMMAND,) = re.findall(r"^    PYTHONPATH=\. distqtrl (train .*)$", PAGE, re.MULTILINE)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_environment_of_the_page(tmp_path, monkeypatch):
    from pettingzoo.test import parallel_api_test

    assert len(CODE.splitlines()) <= 40
    (tmp_path / "meeting.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import meeting

    parallel_api_test(meeting.Meeting(), num_cycles=50)
    words = [*shlex.split(COMMAND), "--json", "--train.directory", "runs"]
    done = runs.forked(cli.main, words, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluation"]["mean"] == 1  # they meet in every episode
