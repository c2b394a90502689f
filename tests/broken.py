"""Programs that are missing or fail, and what verify says about them."""

import os
import shutil

from distqtrl.cli import main as cli

QUICK = ["--vectors", "300", "--episodes", "1"]
REAL = os.environ["PATH"]


def script(folder, name, text):
    """A program of this name, first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def links(folder, **names):
    """A PATH of these programs only: name = what it is."""
    folder.mkdir()
    for name, real in names.items():
        (folder / name).symlink_to(shutil.which(real, path=REAL))
    return str(folder)


def run(capfd, *words):
    code = cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    return code, out, err


def verdict(out, target):
    """What a check's line says behind its target."""
    return next(line[18:] for line in out.splitlines() if line.startswith(f"{target} "))
