"""Compiled code has a folder wherever something can be written, and one process of several compiles it."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numba
from needs import need, soon

from distqtrl.circuit import compiled

ROOT = Path(__file__).parents[2]
COMPILING = """
import os, sys, time
from pathlib import Path
from distqtrl.circuit import compiled

folder = Path(sys.argv[1])
def compile():
    if not compiled.ready("code"):
        (folder / f"compiles-{os.getpid()}").touch()
        while not (folder / "finish").exists():
            time.sleep(0.02)
(folder / f"starts-{os.getpid()}").touch()
compiled.once("code", compile)
"""


def test_one_of_several_processes_compiles_and_the_next_does_when_that_is_killed(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILING, tmp_path]
    processes = {p.pid: p for p in (subprocess.Popen(command, env=env) for _ in range(3))}
    compiling = lambda: [int(path.name.split("-")[1]) for path in tmp_path.glob("compiles-*")]  # noqa: E731
    try:
        assert soon(lambda: len(list(tmp_path.glob("starts-*"))) == 3 and compiling(), 30)
        time.sleep(0.2)
        (first,) = compiling()
        processes[first].send_signal(signal.SIGKILL)
        assert soon(lambda: len(compiling()) == 2, 10)
        (tmp_path / "finish").touch()
        codes = sorted(process.wait(10) for process in processes.values())
    finally:
        for process in processes.values():
            process.kill()
    assert codes == [-signal.SIGKILL, 0, 0]
    assert len(compiling()) == 2  # the third found it on disk


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    monkeypatch.setattr(compiled, "WAIT_S", 0.1)
    monkeypatch.setattr(compiled, "seconds", [])
    done = []
    with (tmp_path / "lock").open("w") as held:
        assert compiled._taken(held.fileno())
        compiled.once("code", lambda: done.append(True))
    assert done == [True]
    assert compiled.told().startswith("compiled the circuit's kernels in 0.1 s")


def test_the_folder_is_the_first_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    no, yes = tmp_path / "file" / "below", tmp_path / "yes"
    monkeypatch.setattr(compiled, "_key", lambda: "key")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for choice, here, cache, found in (
        (yes, yes, yes, yes / "key"),
        (no, yes, no, yes / "__pycache__" / "key"),
        (no, no, yes, yes / "distqtrl" / "key"),
        (no, no, no, tmp_path / f"distqtrl-{os.getuid()}" / "key"),
    ):
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(choice))
        monkeypatch.setattr(compiled, "HERE", here)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert compiled._place() == (found, yes not in found.parents)
        shutil.rmtree(yes, ignore_errors=True)
    (tmp_path / f"distqtrl-{os.getuid()}").chmod(0o777)  # anyone could put code there
    assert compiled._place() == (None, True)
    monkeypatch.setattr(tempfile, "tempdir", str(no))
    assert compiled._place() == (None, True)


def test_a_home_that_is_nowhere(tmp_path, monkeypatch):
    """As of a user without HOME who is missing in /etc/passwd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert list(compiled._homes())[-1] == compiled.HERE / "__pycache__"


def test_what_is_temporary_is_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert stat.S_IMODE(compiled._temporary().stat().st_mode) == 0o700


def test_a_read_only_package_and_home(tmp_path, small):
    """In a mount namespace of its own, where even root cannot write them."""
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        need("root and unshare are needed for a read-only mount")
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && export HOME="$0" && exec "$@"'
    env = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    train = [sys.executable, "-m", "distqtrl", "train", "cartpole", *small, "--train.directory", str(tmp_path / "runs")]
    command = ["unshare", "-m", "bash", "-c", script, str(ROOT), *train]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("compiled"))
    assert f"kept in {tmp_path}/distqtrl-0 only: set NUMBA_CACHE_DIR" in line
