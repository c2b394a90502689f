"""What the scripts share: their options, where and with what numbers were made, files of results."""

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distqtrl.report import figures
from distqtrl.versions import version

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def facts(*packages: str) -> dict[str, Any]:
    """Command, machine, versions of packages, commit."""
    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in packages},
        "commit": commit(),
    }


def line(made: dict[str, Any]) -> str:
    """The same as two lines of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"`{made['command']}` at {made['commit']} on {made['machine']}.\nVersions: {versions}."


def parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every script."""
    out = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--quick", action="store_true", help="small; writes nothing unless -o is given")
    out.add_argument("-o", "--output", type=Path, help="folder of the results")
    out.add_argument("--pdf", action="store_true", help="write the figure as PDF, too")
    return out


def said(cases: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The cases, each announced."""
    for number, (name, case) in enumerate(cases.items(), 1):
        print(f"{number} of {len(cases)}: {name}", file=sys.stderr, flush=True)
        yield name, case


def save(
    args: argparse.Namespace,
    name: str,
    results: dict[str, Any],
    text: str,
    drawn: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Print the table; write NAME.json, NAME.md and the figure that is drawn of the results. NAME is question/case."""
    print(text)
    if args.quick and not args.output:
        return
    place = (args.output or RESULTS) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_name(f"{place.name}.json").write_text(_json(results))
    place.with_name(f"{place.name}.md").write_text(text + "\n")
    if drawn:
        with figures.styled():
            figures.save(drawn(results), place, pdf=args.pdf)


def _json(results: dict[str, Any]) -> str:
    """Indented, and a list of numbers or words in one line."""
    text = json.dumps(_finite(results), indent=1)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r"\n\s*", " ", m[1]) + "]", text) + "\n"


def _finite(x: Any) -> Any:
    """The same with null for infinity, for which JSON has no word."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def mpirun(ranks: int, hosts: Path | None = None) -> list[str]:
    """The start of a command line that runs this Python on several ranks; hosts: mpirun's machine file."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun") or sys.exit("mpirun not found")
    where = [] if hosts is None else ["--machinefile", str(hosts)]
    return [found, *where, "-n", str(ranks), sys.executable]


def commit() -> str:
    """The commit of this checkout, and whether its code was changed since."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    code = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results"]
    changed = " (changed since)" if subprocess.run(code, cwd=ROOT, stderr=subprocess.DEVNULL).returncode else ""
    return (head.stdout.strip() or "unknown") + changed


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), "unknown")
