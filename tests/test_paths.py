"""Whatever path, link or field a page or a docstring names exists: nothing is called by the place it moved from."""

import re
from pathlib import Path

import pytest

from distqtrl.config.run import field_names, stages

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").iterdir()]
SOURCES = [path for folder in ("distqtrl", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
PATH = re.compile(r"(?<![\w/.-])(?:distqtrl|benchmarks|docs|launch|tests)/[\w./*-]*\w")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
FIELD = re.compile(rf"`(?:--)?((?:{'|'.join(stages())})\.[a-z_]+)`")
EXTENSIONS = (
    "c",
    "cu",
    "h",
    "json",
    "md",
    "onnx",
    "png",
    "py",
    "safetensors",
    "v",
)  # `search.json` is a file, not a field of a stage


def missing(text):
    """Paths that do not exist; what a benchmark writes needs a folder to be written to."""
    named = (match[0] for match in PATH.finditer(text))
    return [path for path in named if not exists(path)]


def exists(path):
    return any(ROOT.glob(path)) or (path.startswith("benchmarks/results/") and (ROOT / path).parent.is_dir())


def test_a_path_that_moved_is_seen():
    assert missing("see distqtrl/sampling.py, `distqtrl/circuit/qpu.py` and https://a.b/docs/x.md") == [
        "distqtrl/sampling.py"
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page):
    text = page.read_text()
    assert missing(text) == []
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
    fields = [field for field in FIELD.findall(text) if field.rpartition(".")[2] not in EXTENSIONS]
    assert [field for field in fields if field not in field_names()] == []


def test_sources_name_what_exists():
    assert [f"{path}: {name}" for path in SOURCES for name in missing(path.read_text())] == []
