"""Blocks of commands and code on the pages, and what stands above them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launch" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAM = re.compile(r"(?:[A-Z_]+=\S* )*(?:mpirun|distqtrl|make|pip|python3?|launch/\S+|sbatch|srun|cat|\. )(?:\s|$)")
BEFORE = re.compile(r"(?:[A-Z_]+=\S* )*(?:mpirun .*?)?(?=distqtrl )")
UNRUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A block of a page: its language ("" where it is indented), its text, and why no test runs it, if none does."""

    page: str
    language: str
    text: str
    unrun: str

    def commands(self) -> list[str]:
        """Lines that call a program, without their comments."""
        return [] if self.language else [line for line in self.text.splitlines() if PROGRAM.match(line)]


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order; a directive is none."""
    name = page.name if page.parent.name == "docs" else str(page.relative_to(ROOT))
    text, above, at = page.read_text().splitlines(), "", 0
    while at < len(text):
        line = text[at]
        fence = re.match(r"(`{3,})(\S*)", line)
        if fence:
            end = text.index(fence[1], at + 1)
            if not fence[2].startswith("{"):
                yield _block(name, fence[2] or "text", text[at + 1 : end], above)
            at = end
        elif line.startswith("    ") and not text[at - 1].strip():
            end = at
            while end < len(text) and (text[end].startswith("    ") or not text[end].strip()):
                end += 1
            yield _block(name, "", [part[4:] for part in text[at:end]], above)
            at = end - 1
        above = text[at] if text[at].strip() else above
        at += 1


def _block(page: str, language: str, lines: list[str], above: str) -> Block:
    why = UNRUN.fullmatch(above)
    return Block(page, language, "\n".join(lines).strip("\n") + "\n", why[1] if why else "")


def words(line: str) -> list[str]:
    """The words of a distqtrl command after its name, without variables, launcher, comment and redirection."""
    found = shlex.split(BEFORE.sub("", line, count=1), comments=True)
    return found[1 : found.index(">")] if ">" in found else found[1:]
