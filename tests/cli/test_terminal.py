"""Standard output and error that are full, closed or of few characters end nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distqtrl.cli import terminal

TRAIN = [sys.executable, "-m", "distqtrl", "train", "cartpole", "--mapping.kind", "mlp"]


def trained(run, small, **how):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://no_such_notebook", **how.pop("env", {})}
    return subprocess.run(
        [*TRAIN, "--run", run, *small], stderr=subprocess.PIPE, text=True, check=False, env=env, **how
    )


def test_a_complete_run_exits_0_whatever_becomes_of_its_words(tmp_path, small):
    """On a full device, with a notebook's backend and LaTeX that is not there."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    with Path("/dev/full").open("w") as full:
        done = trained(tmp_path / "a", small, stdout=full, env={"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")})
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("update ")]
    assert line == "distqtrl: standard output: No space left on device; files are as they should be"
    assert {"learning_curve.png", "result.json", "policy.safetensors"} <= {p.name for p in (tmp_path / "a").iterdir()}


def test_a_reader_that_leaves_is_no_error(tmp_path, small):
    read, write = os.pipe()
    os.close(read)
    done = trained(tmp_path / "b", small, stdout=write)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("update ") for line in done.stderr.splitlines())
    again = trained(tmp_path / "b", small, stdout=subprocess.PIPE)  # complete: says so, in ASCII
    assert " ? " in again.stdout
    command = [sys.executable, "-m", "distqtrl", "describe", "cartpole"]
    with Path("/dev/full").open("w") as full:  # here the words are all there is
        lost = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (lost.returncode, lost.stderr) == (
        1,
        "distqtrl: standard output: No space left on device; the output is incomplete\n",
    )


def test_descriptors_that_are_closed_lead_nowhere(tmp_path):
    program = "from distqtrl.cli import output, terminal; terminal.prepare(); print('x'); output.say('y');"
    program += "open('file', 'w').close(); print('z', flush=True); assert terminal.lost() == ''"
    command = f'exec {sys.executable} -c "{program}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(("full", "said"), [(True, "standard output: No space left on device"), (False, "")])
def test_what_was_lost_is_told_unless_the_reader_left(monkeypatch, full, said):
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as device:
        monkeypatch.setattr(sys, "stdout", terminal._text(device.fileno() if full else write, None, "replace"))
        print("a", flush=True)
        print("b")
        assert terminal.lost() == said
    os.close(write)


def test_a_thread_that_goes_on_does_not_keep_the_process():
    program = "import sys, threading, time\nfrom distqtrl import __main__ as program\nprogram.PATIENCE_S = 0.1\n"
    program += "threading.Thread(target=time.sleep, args=(60,), name='sensor').start()\n"
    program += "sys.argv = ['', 'presets', 'x']\nsys.exit(program.main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "distqtrl: thread sensor went on after the work was done, and was ended"
    )


def test_an_argument_that_is_not_unicode_is_refused():
    done = subprocess.run([sys.executable, "-m", "distqtrl", "report", b"runs/\xff"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "argument 'runs/\\udcff' is not valid Unicode: rename what it names" in done.stderr


def test_a_working_directory_that_is_gone_is_said(tmp_path):
    program = f"import os, sys\nos.mkdir({str(tmp_path / 'gone')!r})\nos.chdir({str(tmp_path / 'gone')!r})\n"
    program += f"os.rmdir({str(tmp_path / 'gone')!r})\nfrom distqtrl.__main__ import main\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the working directory cannot be used (No such file or directory): cd to one that exists" in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("cartpole", "--print-config")])
def test_help_and_configurations_that_are_cut_are_no_success(words):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "distqtrl", "train", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "distqtrl: standard output: No space left on device; the output is incomplete\n"
