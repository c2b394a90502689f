"""What a user installs holds everything, and metadata says nothing that is not so."""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_presets_types_and_licence(tmp_path):
    kept_out = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "tests")
    shutil.copytree(ROOT, tmp_path / "source", ignore=kept_out)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, tmp_path / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"pip cannot build a wheel here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "distqtrl").rglob("*")
        if path.suffix in (".py", ".toml", ".v", ".c")
    }
    assert wanted | {"distqtrl/py.typed"} <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)


def test_every_dependency_has_a_tested_version():
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = setup["options"]["install_requires"].split() + [word for key in extras for word in extras[key].split()]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    names = {line.split(">=")[0].split("[")[0].lower() for line in lines if ">=" in line}
    assert names <= {name.lower() for name in pinned}
    assert pinned["torch"] == "2.13.0"


def test_make_train_needs_little_and_exports_what_it_trained(tmp_path):
    """With stand-ins for the environment's programs, and a PATH that has what the recipe itself may call."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "mpirun", "distqtrl"):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\necho "$0 $*"\nexit "${CODE:-0}"\n')
        program.chmod(0o755)
    (tmp_path / ".venv" / ".installed-mpich").touch()
    (tmp_path / "path").mkdir()
    for name in ("make", "date", "touch"):
        (tmp_path / "path" / name).symlink_to(shutil.which(name))

    def make(*words, **env):
        env["PATH"] = str(tmp_path / "path")
        command = [tmp_path / "path" / "make", "--silent", "train", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=20)
        return done.returncode, [line.removeprefix(".venv/bin/") for line in done.stdout.splitlines()]

    code, (trained, exported) = make("FLAGS=--train.seed 1")
    run = trained.split()[trained.split().index("--run") + 1]
    assert (code, run.startswith("runs/cartpole-")) == (0, True)
    assert trained == f"mpirun -n 4 .venv/bin/distqtrl train cartpole --run {run} --train.seed 1"
    assert exported == f"distqtrl export {run} --target c,verilog -o {run}/exported"
    assert make("RUN=mine")[1][0].split()[-2:] == ["--run", "mine"]
    code, lines = make(CODE="3")
    assert (code, len(lines)) == (2, 1)  # what was not trained is not exported
