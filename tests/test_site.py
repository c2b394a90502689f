"""What the site is generated from is complete: no key, name, module's source or message without its sentence.

Building it is `make docs`, whose warnings are errors; here is what needs no Sphinx.
"""

import ast
import doctest
import importlib
import inspect
import re

import generated
import pages
import preset_gallery as gallery
import pytest

import distqtrl
from distqtrl.cli.commands import COMMANDS
from distqtrl.config.run import Config, field_names, stages
from distqtrl.config.sources import presets

DOCS = pages.ROOT / "docs"
FIELD = "…"  # what differs from case to case in a message


def page(name):
    return (DOCS / f"{name}.md").read_text()


def test_every_key_has_its_sentence_type_and_default():
    text = generated.configuration()
    for name, model in stages().items():
        assert model.__doc__, name
        for field, info in model.model_fields.items():
            words = (info.description or "").split()
            assert len(words) >= 3, f"{name}.{field} = {info.description!r}: too short for a sentence"
            assert words[0] not in ("see", "as"), f"{name}.{field}: say it, and do not point at it"
    entries = re.findall(r"^```\{confval\} ([\w.]+)\n:type: .+\n:default: .+\n\n.+\n```$", text, re.MULTILINE)
    assert entries == field_names()
    assert "true or false" in text
    assert Config().train.steps == 100_000
    assert (
        "{confval} train.steps\n:type: whole number from 1 to 1,000,000,000,000,000, or none\n:default: 100,000" in text
    )


def test_examples_of_what_is_generated():
    assert doctest.testmod(generated) == (0, 4)
    assert doctest.testmod(gallery) == (0, 3)


def test_every_command_and_flag_has_its_sentence():
    text = generated.commands()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"^\* `[^`]*`: ?$", text, re.MULTILINE) == []
    assert "`--resume RUN`: resume a run directory" in text


def documented(text):
    """Whole names of what the page of the API shows by autodoc."""
    found, module = set(), ""
    for word, name in re.findall(r"^\.\. (currentmodule|auto\w+|py:class):: ([\w.]+)", text, re.MULTILINE):
        module = name if word == "currentmodule" else module
        if word != "currentmodule":
            found.add(name if name.startswith("distqtrl.") else f"{module}.{name}")
    return found


def test_every_public_name_has_its_sentence_and_is_on_the_page():
    names = {getattr(distqtrl, name) for name in distqtrl.__all__} - {distqtrl.nn, distqtrl.export}
    names |= {getattr(distqtrl.nn, name) for name in distqtrl.nn.__all__} | {
        importlib.import_module("distqtrl.api").export
    }
    promised = re.findall(r"^\| `(\w+)\(", page("python").partition("| key of the result")[0], re.MULTILINE)
    names |= {getattr(importlib.import_module("distqtrl.api"), name) for name in promised}
    shown = {path.rpartition(".") for path in documented(page("api"))}
    shown = {getattr(importlib.import_module(module), name) for module, _, name in shown}
    assert names <= shown
    for thing in shown:
        assert inspect.getdoc(thing), thing
        if inspect.isclass(thing) and thing.__module__.startswith("distqtrl"):
            assert not inspect.getdoc(thing).startswith(f"{thing.__name__}("), f"{thing} has dataclass's own docstring"
    for method in ("act", "save"):
        assert inspect.getdoc(getattr(distqtrl.Policy, method))


def test_every_paper_that_a_module_cites_has_a_title_and_is_on_the_page():
    citing, text = generated.cited_in_modules(), generated.papers()
    assert citing.keys() <= generated.PAPERS.keys()
    pages_cite = {n for each in DOCS.glob("*.md") for n in generated.CITED.findall(each.read_text())}
    assert pages_cite <= generated.PAPERS.keys()
    assert generated.PAPERS.keys() <= citing.keys() | pages_cite, "titles that nothing cites"
    assert {number for number in generated.PAPERS if f"arxiv.org/abs/{number}" not in text} == set()
    for modules in citing.values():
        for module, sentence in modules:
            assert sentence, f"{module} cites a paper and has no docstring"
            assert f"* `{module}`: {generated.escaped(sentence)}" in text


def test_the_gallery_shows_every_preset_and_draws_what_is_committed(tmp_path):
    text, told = gallery.gallery(tmp_path, "curves"), gallery.short()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(presets())
    drawn = gallery.CURVES.keys() | {name for name, entry in told.items() if "curve" in entry}
    assert {path.stem for path in tmp_path.iterdir()} == drawn
    assert text.count("No learning curve of this preset is committed.") == len(presets()) - len(drawn)
    assert gallery.CURVES.keys() | gallery.TABLES.keys() | told.keys() <= presets().keys()
    films = [name for name in presets() if "film" in told.get(name, {})]
    assert re.findall(r"results/gallery/([\w-]+)\.gif\)$", text, re.MULTILINE) == films
    assert text.count("\nNo film") == len(presets()) - len(films)


def test_every_preset_has_a_film_or_a_reason_why_not():
    told, folder = gallery.short(), gallery.RESULTS / "gallery"
    missing = [name for name in presets() if told.get(name, {}).keys().isdisjoint({"film", "reason"})]
    assert missing == [], "python benchmarks/gallery.py makes what is missing"
    films = {name: entry["film"] for name, entry in told.items() if "film" in entry}
    assert {path.stem: path.stat().st_size for path in folder.glob("*.gif")} == {
        name: film["bytes"] for name, film in films.items()
    }
    assert all(film["bytes"] <= 60_000 and 0 < film["shown"] <= film["steps"] for film in films.values())


def templates():
    """Every text in the package, with … for what is filled in."""
    for path in (pages.ROOT / "distqtrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else FIELD for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def plain(text):
    return re.sub(f"{FIELD}+", FIELD, " ".join(text.split()))


QUOTED = re.findall(r"^`(.+)`\n: ", page("troubleshooting"), re.MULTILINE)
KNOWN = [plain(text) for text in templates()]


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_of_the_page_is_one_of_the_package(message):
    assert len(message.replace(FIELD, "").strip(" :;,'()")) >= 10, "too little to find"
    assert any(plain(message) in text for text in KNOWN), message


def test_troubleshooting_quotes_messages():
    assert len(QUOTED) >= 40
    assert not any("no message of ours says this" in text for text in KNOWN)


def test_the_site_shows_every_page():
    """As Sphinx finds it out too, later."""
    trees = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", page("index") + page("tables"), re.DOTALL))
    lines = [line for line in trees.splitlines() if line and not line.startswith(":")]
    entries = {re.sub(r".*<(.*)>", r"\1", line) for line in lines}
    assert {each.stem for each in DOCS.glob("*.md")} - {"index"} <= entries
    shown = {path for entry in entries if "*" in entry for path in DOCS.glob(entry)}
    assert set((pages.ROOT / "benchmarks" / "results").rglob("*.md")) <= {path.resolve() for path in shown}
