"""docs/design.md is true: its layout names the modules that are there and no other, its floors are the tested ones."""

import re
from pathlib import Path

from test_layers import LAYERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text()


def laid_out():
    """Every file and folder of the package that the layout names, as a path in distqtrl/."""
    block = PAGE.partition("    distqtrl/\n")[2].partition("    launch/")[0]
    outer, room, found = "", "", set()
    for line in filter(None, block.splitlines()):
        if head := re.match(r"( +)(\w+/) +\S", line):
            nested = len(head[1]) > 6
            outer, room = (outer, outer + head[2]) if nested else (head[2], head[2])
            found.add(room.rstrip("/"))
        else:
            found |= {f"{room}{module.strip()}.py" for module in re.sub(r"\([^)]*\)", "", line).split("·")}
    return found


def there():
    """The package's modules, and its folders; a folder's __init__ goes without saying."""
    package = ROOT / "distqtrl"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    folders = {str(Path(module).parent) for module in modules} | {"presets"}
    return {m for m in modules if m == "__init__.py" or not m.endswith("/__init__.py")} | folders - {"."}


def test_the_layout_is_what_is_there():
    assert sorted(there() - laid_out()) == [], "docs/design.md does not name these"
    assert sorted(laid_out() - there()) == [], "docs/design.md names these, which are not there"


def test_the_floors_are_those_of_the_imports():
    block = PAGE.partition("## Direction of imports")[2].split("\n\n")[1]
    floors = [set(floor.split(", ")) for floor in " ".join(block.split()).split(" ─▶ ")]
    assert floors == LAYERS[1:-1][::-1]


def test_docstrings_name_their_subject():
    dangling = re.compile(r'^ *"""(?:Of|That run|As of)\b.*', re.MULTILINE)
    files = {path: dangling.findall(path.read_text()) for path in (ROOT / "distqtrl").rglob("*.py")}
    assert {str(path): found for path, found in files.items() if found} == {}
