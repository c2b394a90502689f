"""policy.py by itself: its cache, its compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from broken import REAL, script

from distqtrl.export import loader


def compiled(folder, cache, path=REAL, more=""):
    """What policy.py of a folder prints in a process of its own: the library, and one action."""
    code = "import policy; print(policy._built(policy.FLAGS)); print(policy.Policy().act([0.1, 0.2, 0.3]).tolist())"
    env = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(cache), "PATH": path}
    done = subprocess.run([sys.executable, "-c", more + code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_cache_knows_compiler_and_cpu(folder, tmp_path):
    """The stand-in for another node's compiler says what -march=native means there."""
    old = 'for w; do case $w in -march=native) w=-march=x86-64 ;; esac; set -- "$@" "$w"; shift; done; exec gcc "$@"'
    script(tmp_path / "bin", "cc", old)
    cache = tmp_path / "cache"
    library, action = compiled(folder, cache)
    other, same = compiled(folder, cache, f"{tmp_path / 'bin'}:{REAL}")
    assert library != other
    assert action == same
    assert {str(path) for path in (cache / "distqtrl").iterdir()} == {library, other}
    elsewhere = "import policy; policy._machine = lambda *x: b'another CPU'; "
    assert compiled(folder, cache, more=elsewhere)[0] not in (library, other)


def test_a_cache_that_is_damaged_or_cannot_be_written(folder, tmp_path):
    library, action = compiled(folder, tmp_path / "cache")
    Path(library).write_bytes(Path(library).read_bytes()[:100])
    assert compiled(folder, tmp_path / "cache") == [library, action]
    (tmp_path / "file").touch()
    temporary, same = compiled(folder, tmp_path / "file")
    assert same == action
    assert not Path(temporary).parent.exists()


def test_a_broken_compiler_is_one_line(monkeypatch, tmp_path):
    script(tmp_path, "cc", "echo 'no licence' >&2; exit 4")
    monkeypatch.setenv("PATH", f"{tmp_path}:{REAL}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "HERE", tmp_path)
    for name in ("policy.h", "policy.c"):
        (tmp_path / name).touch()
    with pytest.raises(RuntimeError, match=r"^cc failed with exit code 4: no licence$"):
        loader.Policy()
    assert not (tmp_path / "cache").exists()
