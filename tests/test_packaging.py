"""What a user installs holds everything, and metadata says nothing that is not so."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from needs import need

import distqtrl
from distqtrl.cli.parser import parse

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source distribution of a copy of this tree, and the wheel that is built of that alone."""
    folder = tmp_path_factory.mktemp("built")
    kept_out = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=kept_out)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    for command in (
        [sys.executable, "-W", "ignore", "-c", code, folder],
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "distqtrl-0.1.0.tar.gz"],
    ):
        done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, timeout=300, check=False)
        if done.returncode and os.environ.get("CI") != "true":
            pytest.skip(f"pip cannot build a wheel here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_presets_types_and_licence(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "distqtrl").rglob("*")
        if path.suffix in (".py", ".toml", ".v", ".c")
    }
    assert wanted | {"distqtrl/py.typed"} <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)


def test_the_wheel_trains_without_its_sources(built, tmp_path, small):
    """Installed beside the other packages, called from another folder, with no checkout on the path."""
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    where = "import distqtrl; print(distqtrl.__file__)"
    for command in (["-c", where], ["-m", "distqtrl", "train", "cartpole", "--run", "mine", *small]):
        words = [sys.executable, *command]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "mine" in done.stdout or Path(done.stdout.strip()).is_relative_to(tmp_path / "site")
    assert (tmp_path / "mine" / "result.json").exists()


# ---- images and recipes: read and linted, not built here


def requirements():
    """The package's requirements: name and least version."""
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return dict(line.split(">=") for line in setup["options"]["install_requires"].split())


def test_the_conda_recipe_asks_for_what_the_wheel_asks_for():
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())
    asked = dict(line.split(" >=") for line in recipe["requirements"]["run"])
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    assert asked.pop("python") == "3.11"
    assert asked == {names.get(name, name): least for name, least in requirements().items()}
    assert recipe["context"]["version"] == distqtrl.__version__
    assert (ROOT / "packaging" / "conda" / recipe["source"]["path"]).resolve() == ROOT
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert f"    {entry}\n" in (ROOT / "setup.cfg").read_text()


def shell_of_images():
    """The shell commands of the Dockerfile and of the Apptainer definition, as scripts."""
    text = (ROOT / "packaging" / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", " ", text)
    yield "Dockerfile", "\n".join(re.findall(r"^RUN (.*)$", joined, re.MULTILINE))
    for section in re.split(r"^%", (ROOT / "packaging" / "apptainer.def").read_text(), flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        if name in ("post", "environment", "runscript", "test"):
            yield f"apptainer {name}", body


def test_images_are_made_of_what_is_there():
    """Every file that is copied exists, every flag and preset of a call does, and shellcheck finds nothing."""
    copied = [
        *re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "packaging" / "Dockerfile").read_text(), re.MULTILINE),
        *re.findall(r"^    (\S+) /source/", (ROOT / "packaging" / "apptainer.def").read_text(), re.MULTILINE),
    ]
    files = {name for line in copied for name in line.split()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "distqtrl", "constraints.txt"} == files
    assert all((ROOT / name).exists() for name in files)
    for name, script in shell_of_images():
        calls = re.findall(r"(?:^|&& |    )distqtrl (?!\")([^&\n]*)", script, re.MULTILINE)
        for call in calls:
            if call.strip() != "--version":
                parse(shlex.split(call))
        assert calls or name not in ("Dockerfile", "apptainer test")
        if shutil.which("shellcheck") is None:
            need("there is no shellcheck: apt-get install shellcheck")
        done = subprocess.run(
            ["shellcheck", "--shell=sh", "--exclude=SC2086", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}"


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
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, [line.removeprefix(".venv/bin/") for line in done.stdout.splitlines()]

    code, (trained, exported) = make("FLAGS=--train.seed 1")
    run = trained.split()[trained.split().index("--run") + 1]
    assert (code, run.startswith("runs/cartpole-")) == (0, True)
    assert trained == f"mpirun -n 4 .venv/bin/distqtrl train cartpole --run {run} --train.seed 1"
    assert exported == f"distqtrl export {run} --target c,verilog -o {run}/exported"
    assert make("RUN=mine")[1][0].split()[-2:] == ["--run", "mine"]
    code, lines = make(CODE="3")
    assert (code, len(lines)) == (2, 1)  # what was not trained is not exported
