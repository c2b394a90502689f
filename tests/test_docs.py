"""Every command and code block of every page works, or says why no test runs it.

The commands of a page run one after the other, with small budgets, in a folder of their own. What is not run is parsed
all the same: no page has a flag that is not there.
"""

import json
import re
import shutil
from pathlib import Path

import pages
import pytest
import runs

from distqtrl.circuit.noise import Noise
from distqtrl.cli import main as cli
from distqtrl.cli.parser import parse
from distqtrl.config import sources

BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
COMMANDS = [(block, line) for block in BLOCKS for line in block.commands()]
ELSEWHERE = {"language.md": "test_language_page.py", "python.md": "nn/test_examples.py"}  # these run all of their page
MODULES = {"getting-started.md": "corridor", "multi-agent.md": "meeting"}  # an environment of one's own
RUN = {
    page: [line for block, line in COMMANDS if block.page == page and not block.unrun and "PYTHONPATH" not in line]
    for page in dict.fromkeys(block.page for block, _ in COMMANDS if block.page not in ELSEWHERE)
}
SEARCH = ["--widths", "4", "--core-bits", "3", "--input-bits", "8", "--seeds", "0-1"]
PROOF = ["--vectors", "2000", "--episodes", "3"]
EXPORT = ["--target", "c,onnx", *PROOF]  # cores have tests of their own


@pytest.fixture(scope="module")
def made(tmp_path_factory, small):
    """A run directory; not to be changed."""
    return runs.trained(tmp_path_factory.mktemp("pages") / "run", *small)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files that pages name."""
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text("[circuit]\nlayers = 2\n")
    return tmp_path


def affordable(words, made, small):
    """The words of a command with a small budget, and with a run there is in place of one that stands for any."""
    words = [
        there(word, made) if before != "--run" else word for before, word in zip(["", *words], words, strict=False)
    ]
    if words[0] == "train" and "--resume" in words:
        return [*words, "--train.steps", "128"]
    if words[0] == "train":
        least = ["--algorithm.rollout_steps", "16"] if "hopper" in words else []  # it has as many minibatches
        return [*words, *small, *least]
    more = {"search-bits": [*small, *SEARCH, *EXPORT], "verify": PROOF}
    more["export"] = PROOF if "--target" in words else EXPORT
    return [*words, *more.get(words[0], [])]


def there(word, made):
    """A copy of the run where the word is a path below runs/ that does not exist."""
    if not word.startswith("runs/") or Path(word).exists():
        return word
    Path("runs").mkdir(exist_ok=True)
    return str(shutil.copytree(made, f"runs/copy{len(list(Path('runs').iterdir()))}"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page", [page for page, lines in RUN.items() if lines])
def test_the_commands_of_a_page(page, made, folder, small):
    for line in RUN[page]:
        words = pages.words(line)
        assert words, f"{line}: no command of distqtrl is run; say why not"
        assert cli.main(affordable(words, made, small)) == 0, line


def lines_of(page):
    """The lines of a page that name its module's folder."""
    return [pages.words(line) for block, line in COMMANDS if block.page == page and "PYTHONPATH=." in line]


def written(page, folder):
    """Write the module of a page; returns its text."""
    (text,) = (block.text for block in BLOCKS if block.page == page and block.language == "python")
    assert text.startswith(f'"""{MODULES[page]}.py: ')
    (folder / f"{MODULES[page]}.py").write_text(text)
    return text


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_environment_of_several_agents(tmp_path, monkeypatch):
    from pettingzoo.test import parallel_api_test

    assert len(written("multi-agent.md", tmp_path).splitlines()) <= 40
    monkeypatch.syspath_prepend(tmp_path)
    import meeting

    parallel_api_test(meeting.Meeting(), num_cycles=50)
    (words,) = lines_of("multi-agent.md")
    done = runs.forked(cli.main, [*words, "--json", "--train.directory", "runs"], cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluation"]["mean"] == 1  # they meet in every episode


def test_an_environment_of_ones_own(tmp_path, monkeypatch):
    written("getting-started.md", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for words in lines_of("getting-started.md"):
        done = runs.forked(cli.main, [*words, "--json"], cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mean"] > 0.5  # the way from a drawn place returns 0.65 in the mean, at best


def test_every_block_is_run_or_says_why_not():
    unknown = [b for b in BLOCKS if b.language not in ("", "python", "toml", "json", "text")]
    assert unknown == []
    python = {block.page for block in BLOCKS if block.language == "python" and not block.unrun}
    assert python == {*ELSEWHERE, *MODULES, "runs.md"}
    others = [line for block, line in COMMANDS if not block.unrun and "distqtrl " not in line]
    assert others == ["OMP_NUM_THREADS=1 mpirun -n 2 python mine.py"]  # nn/test_examples.py


def test_no_page_has_a_flag_that_is_not_there():
    for block, line in COMMANDS:
        if "distqtrl " in line:
            args, flags = parse(pages.words(line))
            if getattr(args, "preset", None) in sources.presets():
                sources.with_flags(sources.preset(args.preset), flags), (block.page, line)


def test_targets_of_make_and_extras_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for _, line in COMMANDS if line.startswith("make ")}
    assert named <= targets
    extras = set(
        re.findall(r"^(\w+) =", (pages.ROOT / "setup.cfg").read_text().partition("extras_require]")[2], re.MULTILINE)
    )
    text = "\n".join(page.read_text() for page in pages.PAGES)
    assert {word for group in re.findall(r"(?:\.|distqtrl)\[([a-z,]+)\]", text) for word in group.split(",")} <= extras


def test_files_that_pages_show_are_read(folder):
    shown = {block.language: block.text for block in BLOCKS if block.language in ("toml", "json")}
    Path("mine.toml").write_text(shown["toml"])
    assert sources.load(Path("mine.toml")).policy.hidden == (64, 64)
    assert Noise.model_validate(json.loads(shown["json"])).readout is not None


def test_files_of_a_run(made):
    files = (pages.ROOT / "docs" / "runs.md").read_text().partition("## Metrics")[0]
    named = re.findall(r"^\| `([\w.]+)/?` \|", files, re.MULTILINE)
    assert set(named) == {path.name for path in made.iterdir()}


def test_metrics_of_a_run(made, folder):
    metrics = (pages.ROOT / "docs" / "runs.md").read_text().partition("## Metrics")[2]
    keys = {key for row in re.findall(r"^\| (`.*?`) \|", metrics, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    shutil.copytree(made, "runs/mine")
    (block,) = (block for block in BLOCKS if block.page == "runs.md" and block.language == "python")
    found = {}
    exec(block.text, found)
    assert len(found["rows"]) == 2
    assert {key for row in found["rows"] for key in row} <= keys
