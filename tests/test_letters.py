"""Letters of shapes: one legend, the same in the package's docstring and docs/design.md, and no letter outside it."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import distqtrl

ROOT = Path(distqtrl.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "design.md"
ENTRY = re.compile(r"^    ([a-z, ]+): ((?:\w(?: = [^·\n]*)? [^·\n]+)(?: · [^·\n]+)*)$", re.MULTILINE)
SHAPED = re.compile(r"^_?[a-z][a-z0-9_]*_([A-Zc0-9]*[A-Z][A-Zc0-9]*)$")


def legend(text):
    """Folder (or "everywhere") -> letter -> meaning; a folder's letter goes before everywhere's."""
    found = defaultdict(dict)
    for folders, entries in ENTRY.findall(text):
        for folder in folders.split(", "):
            for entry in entries.split(" · "):
                letter, meaning = entry.split(" ", 1)
                assert letter not in found[folder], f"{folder}: {letter} has two meanings"
                found[folder][letter] = meaning
    return found


LEGEND = legend(distqtrl.__doc__)


def names(tree):
    """The parameters of functions and the fields of dataclasses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.lineno


def unknown(source, folder):
    """Names whose shape has a letter that the folder's legend does not have."""
    letters = {*LEGEND["everywhere"], *LEGEND.get(folder, {})}
    shapes = ((name, line, SHAPED.match(name)) for name, line in names(ast.parse(source)))
    return [f"{name}, line {line}" for name, line, m in shapes if m and set(m[1]) - letters - set("0123456789")]


def test_the_page_has_the_legend_of_the_package():
    assert LEGEND["everywhere"]["P"] == "circuit parameters"
    assert legend(PAGE.read_text()) == LEGEND


def test_an_unknown_letter_is_seen():
    source = "class A:\n    x_BX: int\ndef f(p_S, q_2N, obs_BO, u_Sc, *, phi_Z): ..."
    assert unknown(source, "policy") == ["x_BX, line 2", "u_Sc, line 3", "phi_Z, line 3"]
    assert unknown(source, "mapping") == ["x_BX, line 2", "phi_Z, line 3"]


@pytest.mark.parametrize("folder", sorted({path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py")}))
def test_every_letter_of_a_shape_is_in_the_legend(folder):
    paths = sorted((ROOT / folder).rglob("*.py")) or [ROOT / folder]
    assert [f"{path}: {name}" for path in paths for name in unknown(path.read_text(), folder)] == []


@pytest.mark.parametrize("folder", sorted(LEGEND.keys() - {"everywhere"}))
def test_a_letter_of_a_folder_is_used_there(folder):
    source = "\n".join(path.read_text() for path in (ROOT / folder).rglob("*.py"))
    assert [x for x in LEGEND[folder] if not re.search(rf"_[A-Z0-9]*{x}[A-Zc0-9]*\b", source)] == []
