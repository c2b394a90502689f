"""The commands and the task of docs/language.md work, one after the other, on a small base."""

import json
import re
import shlex
from pathlib import Path

import runs

from distqtrl.cli import main as cli

PAGE = (Path(__file__).parents[1] / "docs" / "language.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^    (?:mpirun -n 2 )?distqtrl (.*)$", PAGE, re.MULTILINE)
SMALL = {"train.updates": 2, "language.prompts": 2, "language.group": 2, "evaluate.episodes": 4}
MORE = {"pretrain": ["--steps", "2", "--layers", "1", "--width", "64"], "train": [*runs.as_words(SMALL), "--json"]}


def test_the_page_one_command_after_the_other(tmp_path):
    assert len(CODE.splitlines()) <= 30
    (tmp_path / "backwards.py").write_text(CODE)
    for command in COMMANDS:
        words = shlex.split(command)
        words += MORE.get(words[0], [])
        words += ["--episodes", "4"] if words[0] == "evaluate" else []
        done = runs.forked(cli.main, words, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
        if words[0] == "train":
            assert json.loads(done.stdout)["env_steps"] == 2 * 2 * 2
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
