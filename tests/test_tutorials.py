"""The notebooks of docs/tutorials run in an empty folder, hold what they printed, and name what exists.

Their cells run in a fork of this process, which has loaded the package, and so do their ``!distqtrl`` commands: six
kernels and their commands would import torch twenty times. ``docs/tutorials/execute.py`` runs them in real kernels.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest
import runs
from needs import need
from test_paths import FIELD, LINK, missing

from distqtrl.cli import main as cli
from distqtrl.config.run import field_names

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
EXTRAS = {"several-agents": ("marl", "pettingzoo"), "language-model-nvfp4": ("llm", "transformers")}
MACHINE = re.compile(r"/(?:tmp|root|work|usr/local|opt)/|ipykernel_\d|/home/(?!you/)")


def cells(path, kind):
    """The texts of a notebook's cells of this kind."""
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def shell(command):
    """What ! does in a cell, and more: a command that fails is an error."""
    sys.stdout.flush()
    first, *rest = command.split(" | ", 1)
    words = shlex.split(first)
    strict = os.environ.get("LENIENT") is None
    if words[0] != "distqtrl":
        return subprocess.run(command, shell=True, check=strict, timeout=120)
    done = runs.forked(cli.main, words[1:])
    print(done.stdout + done.stderr, flush=True)
    if done.returncode and strict:
        raise RuntimeError(f"{command} ended with {done.returncode}")
    if rest:
        subprocess.run(rest[0], shell=True, check=strict, input=done.stdout, text=True, timeout=120)


def play(path):
    """Execute the code cells, as a kernel does."""
    sys.path.insert(0, "")
    names = {"__name__": "__main__", "shell": shell}
    for number, text in enumerate(cells(path, "code"), 1):
        if written := re.match(r"%%writefile (\S+)\n", text):
            Path(written[1]).write_text(text[written.end() :])
        else:
            python = re.sub(r"^!(.*)$", lambda command: f"shell({command[1]!r})", text, flags=re.MULTILINE)
            try:
                exec(compile(python, f"{path.name}, code cell {number}", "exec"), names)
            except Exception:
                traceback.print_exc()
                return 1
    return 0


def test_there_are_six_and_the_index_names_them():
    index = (FOLDER / "index.md").read_text()
    assert len(BOOKS) == 6
    assert sorted(re.findall(r"\((\S+\.ipynb)\)", index)) == [path.name for path in BOOKS]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_runs_in_an_empty_folder(path, tmp_path, monkeypatch):
    extra, module = EXTRAS.get(path.stem, ("", "torch"))
    need(None if find_spec(module) else f"there is no {module}: pip install 'distqtrl[{extra}]'")
    if extra == "llm":
        from transformers import Qwen2ForCausalLM  # noqa: F401 (once here, and not in the fork of every command)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    done = runs.forked(play, path, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_its_extra_the_language_model_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LENIENT", "1")
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = runs.forked(play, FOLDER / "language-model-nvfp4.ipynb", cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[llm]" in done.stdout


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_is_short_and_holds_what_it_printed(path):
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert max(len(cell["source"]) for cell in code) <= 40
    assert outputs, "execute it: python docs/tutorials/execute.py"
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert [cell for cell in code if cell["metadata"] or cell["execution_count"]] == []
    assert MACHINE.findall(json.dumps(outputs)) == []
    assert len(path.read_bytes()) < 100_000


@pytest.mark.parametrize("path", [*BOOKS, FOLDER / "index.md"], ids=lambda path: path.name)
def test_it_names_what_exists(path):
    text = path.read_text() if path.suffix == ".md" else "\n".join(cells(path, "markdown"))
    assert missing(text) == []
    assert [link for link in LINK.findall(text) if not (FOLDER / link).exists()] == []
    assert [field for field in FIELD.findall(text) if field not in field_names()] == []
