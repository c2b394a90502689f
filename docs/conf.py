"""The site: `make docs`. Its source is the whole repository, so that a page's links are the same here and in an editor.

Links that lead nowhere and names that are not there are errors. Links to other hosts are not fetched: building asks
nothing of a network.
"""

import re
from pathlib import Path

import generated
import preset_gallery
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from distqtrl import __version__
from distqtrl.config.run import field_names

ROOT = Path(__file__).parents[1]

project = "distqtrl"
copyright = "the authors of distqtrl, Apache-2.0"
release = __version__
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/results/**", "launch/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "runs", "distqtrl", "tests", "**/.ipynb_checkpoints"]

extensions = ["myst_nb", "sphinx.ext.autodoc"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # outputs as they are committed; a test runs the notebooks
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
highlight_language = "none"  # most blocks are commands, pictures and formulas
nitpick_ignore_regex = [(r"py:class", r".*")]  # types in signatures: other packages' and internal ones
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"distqtrl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False

TABLES = "docs/tables"
PLACE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
START = '<!doctype html><meta charset="utf-8"><title>distqtrl</title>'


def setup(app: Sphinx) -> None:
    """What Sphinx is asked to do besides."""
    app.connect("source-read", filled)
    app.connect("doctree-read", linked)
    app.connect("build-finished", front_door)


def filled(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put what is generated in the place of the line that asks for it."""
    makers = {
        "configuration": generated.configuration,
        "commands": generated.commands,
        "papers": generated.papers,
        "presets": lambda: preset_gallery.gallery(ROOT / "build" / "curves", "../build/curves"),
    }
    source[0] = PLACE.sub(lambda match: makers[match[1]](), source[0])


def linked(app: Sphinx, doctree: nodes.document) -> None:
    """Make every `stage.field` a link to what is said of it, and lead links to the folder of results to its list."""
    for link in doctree.findall(pending_xref):
        if link["reftarget"].rstrip("/").endswith("benchmarks/results"):
            link["refdomain"], link["reftarget"], link["reftargetid"] = "doc", TABLES, None
    names = set(field_names())
    for literal in list(doctree.findall(nodes.literal)):
        key = literal.astext().removeprefix("--").partition(" ")[0]
        if key in names and not isinstance(literal.parent, nodes.reference | pending_xref):
            place = {"refdoc": app.env.docname, "refdomain": "std", "reftype": "confval", "reftarget": key}
            link = pending_xref("", refexplicit=True, refwarn=True, **place)
            literal.replace_self(link)
            link += literal


def front_door(app: Sphinx, error: Exception | None) -> None:
    """The site's own address leads to its first page, which lies in a folder as the pages do."""
    if error is None and app.builder.format == "html":
        line = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(f"{START}{line}\n")
