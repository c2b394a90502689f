"""Broken tools and unprepared machines are never a difference, and leave nothing behind."""

import errno
import os
import signal
import subprocess
import sys

import psutil
import pytest
from broken import QUICK, REAL, links, run, script, verdict
from needs import soon

from distqtrl.export import tools

WROTE = "not checked: the library that cc wrote"
LOADED = """echo '#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {{ {} }}' >more.c; exec gcc "$@" more.c"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo 'out of licences' >&2; exit 3", "not checked: cc failed with exit code 3: out of licences: repair it"),
        ("kill -SEGV $$", "not checked: cc failed with signal SIGSEGV: it said nothing: repair it"),
        ("exit 0", "not checked: cc said that all was well and wrote no policy.so: repair it"),
        ('for o; do echo no >policy.so; done', f"{WROTE} failed with exit code 1: "),
        (LOADED.format("raise(11);"), f"{WROTE} failed with signal SIGSEGV: "),
        (LOADED.format("exit(7);"), f"{WROTE} failed with exit code 7: "),
        (LOADED.format("_exit(0);"), f"{WROTE} ends the program that loads it: repair"),
        (LOADED.format("") + " -Dpolicy_step=other", f"{WROTE} failed with exit code 1: "),
        ('exec gcc -fsanitize=address "$@"', f"{WROTE} failed with exit code 1: "),
    ],
)  # fmt: skip
def test_a_broken_compiler_is_no_difference(folder, tmp_path, monkeypatch, text, says, capfd):
    script(tmp_path / "bin", "cc", text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{REAL}")
    monkeypatch.delenv("CC", raising=False)
    code, out, _ = run(capfd, "verify", folder, "--target", "c", *QUICK)
    assert code == 3
    assert verdict(out, "c").startswith(says)
    assert verdict(out, "closed loop").startswith(says)
    assert run(capfd, "verify", folder, *QUICK)[0] == 0  # ONNX is equal, and C was not asked for by name


def test_the_variable_names_a_compiler_as_for_make(folder, tmp_path, monkeypatch, capfd):
    other = links(tmp_path / "bin", clang="gcc", **{name: name for name in ("as", "ld")})
    cases = [("gcc -m64", REAL, "equal"), ("", REAL, "equal"), ("clang", other, "equal"), ("  ", other, "equal")]
    cases += [("icc -O1", REAL, "not checked: no icc: unset CC"), ("gcc 'x", REAL, "not checked: CC=gcc 'x: ")]
    for value, path, says in cases:
        monkeypatch.setenv("CC", value)
        monkeypatch.setenv("PATH", path)
        code, out, _ = run(capfd, "verify", folder, "--target", "c", *QUICK)
        assert verdict(out, "c").startswith(says), value
        assert code == (0 if says == "equal" else 3)


HANGS = "echo $$ > '{0}.new'; mv '{0}.new' '{0}'; sleep 100 & sleep 100"


def left(file):
    """Whether a process of the script's group is there; killed processes may need a moment."""
    group = int(file.read_text())

    def gone():
        return not [p for p in psutil.pids() if _group(p) == group]

    return not soon(gone, 5)


def _group(pid):
    try:
        return os.getpgid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else 0
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


def test_a_tool_that_hangs_is_ended_with_its_children(folder, tmp_path, monkeypatch, capfd):
    script(tmp_path / "bin", "cc", HANGS.format(tmp_path / "pid"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{REAL}")
    code, out, _ = run(capfd, "verify", folder, "--target", "c", *QUICK, "--tool-limit", 1)
    assert code == 3
    assert verdict(out, "c") == "not checked: cc did not end within 1 s: give it more with --tool-limit"
    assert not left(tmp_path / "pid")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_tools_and_leaves_nothing(policies, tmp_path, sent):
    script(tmp_path / "bin", "cc", HANGS.format(tmp_path / "pid"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "made").mkdir()
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{REAL}", "TMPDIR": str(tmp_path / "tmp")}
    words = ["export", policies["small"], "-o", tmp_path / "made" / "out", "--target", "c", *QUICK]
    command = [sys.executable, "-m", "distqtrl", *map(str, words)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # a shell that starts the tests in the background lets them, and what they start, ignore SIGINT
    with subprocess.Popen(command, env=env, preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL), **pipes) as process:
        try:
            assert soon((tmp_path / "pid").exists, 120)
            process.send_signal(sent)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + sent
    assert error == f"distqtrl: interrupted by {sent.name}; files that were written stay whole\n"
    assert not left(tmp_path / "pid")
    assert [*(tmp_path / "made").iterdir(), *(tmp_path / "tmp").iterdir()] == []


BLOCKED = """
import pathlib, signal, threading, time
from distqtrl.export import tools


def wait():
    time.sleep(0.5)  # until the main thread waits for this one
    signal.pthread_kill(threading.get_ident(), signal.{0})
    tools.run(tools.Tool("sleep", ("sleep", "100"), ""), [], pathlib.Path())


try:
    with tools.orderly(), tools.pool() as threads:
        threads.submit(wait).result()
except KeyboardInterrupt as error:
    print(error, error.exit_code, signal.getsignal(signal.{0}) is {1})
"""


@pytest.mark.parametrize(("name", "own"), [("SIGTERM", "signal.SIG_DFL"), ("SIGINT", "signal.default_int_handler")])
def test_a_signal_that_another_thread_got_interrupts_one_that_waits(name, own, tmp_path):
    """As does one that comes just before the main thread waits."""
    words, number = [sys.executable, "-c", BLOCKED.format(name, own)], signal.Signals[name]
    pipes = {"capture_output": True, "text": True, "timeout": 50, "check": False}
    # a shell that starts the tests in the background lets them, and what they start, ignore SIGINT
    done = subprocess.run(words, cwd=tmp_path, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL), **pipes)
    assert (done.stdout, done.stderr) == (f"{name} {128 + number} True\n", "")


def test_a_place_that_works_is_chosen(tmp_path, monkeypatch):
    spaced, absent, good = tmp_path / "with space", tmp_path / "absent", tmp_path / "good"
    spaced.mkdir()
    good.mkdir()
    for given, parent in ((spaced, None), (absent, None), (good, good)):
        monkeypatch.setenv("TMPDIR", str(given))
        with tools.workplace() as place:
            assert place.parent != spaced
            assert parent is None or place.parent == parent
            assert " " not in str(place)
        assert not place.exists()
    room = tools._room
    monkeypatch.setattr(tools, "_room", lambda path: 4096 if path == good else room(path))  # a full one
    with tools.workplace() as place:
        assert place.parent != good
    monkeypatch.setattr(tools, "_usable", lambda path: False)
    with pytest.raises(tools.Unchecked, match="set TMPDIR to one that can be written"), tools.workplace():
        pass


def test_a_disk_that_is_full_while_a_tool_works_is_no_difference():
    with pytest.raises(tools.Unchecked, match="No space left on device: set TMPDIR to a folder"), tools.workplace():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_place_that_may_not_be_looked_at_is_passed_over(monkeypatch):
    monkeypatch.setattr(tools.Path, "is_dir", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert not tools._usable(tools.Path("/nowhere"))


def test_tools_start_again_after_a_pool_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="refused"), tools.pool():
        raise RuntimeError("refused")
    assert tools.run(tools.Tool("true", ["true"], ""), [], tmp_path) is not None
