"""Where and with what the numbers of a benchmark were made; shared by the scripts beside it."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def setting(*packages: str) -> dict[str, Any]:
    """Command, machine, versions of packages, commit."""
    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in packages},
        "commit": _commit(),
    }


def line(facts: dict[str, Any]) -> str:
    """The same as two lines of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"`{facts['command']}` at {facts['commit']} on {facts['machine']}.\nVersions: {versions}."


def mpirun(ranks: int) -> list[str]:
    """The start of a command line that runs this Python on several ranks."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun") or sys.exit("mpirun not found")
    return [found, "-n", str(ranks), sys.executable]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    code = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results"]
    changed = " (changed since)" if subprocess.run(code, cwd=ROOT, stderr=subprocess.DEVNULL).returncode else ""
    return (commit.stdout.strip() or "unknown") + changed


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), "unknown")
