"""launch/: its batch scripts are what ``distqtrl slurm`` writes, its shell script starts ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from needs import need

from distqtrl import arguments
from distqtrl.search import grid
from distqtrl.slurm import Job, Launcher, script

LAUNCH = Path(__file__).parents[1] / "launch"
PYTHON, MPIRUN = ".venv/bin/python", ".venv/bin/mpirun"
JOB = Job("cartpole", ("cartpole",), "runs", nodes=2)
SCRIPTS = {
    "slurm.sbatch": (JOB, Launcher("pmi2")),
    "slurm-mpirun.sbatch": (JOB, Launcher(None, MPIRUN)),
    "array.sbatch": (
        Job("cartpole", ("cartpole",), "runs", nodes=2, seeds=tuple(range(10)), ranks=(1, 2, 4, 8)),
        Launcher("pmi2"),
    ),
}


def test_every_batch_script_is_checked():
    assert {path.name for path in LAUNCH.glob("*.sbatch")} == {*SCRIPTS, "search.sbatch"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_batch_scripts_are_the_commands_own(name):
    assert (LAUNCH / name).read_text() == script(*SCRIPTS[name], PYTHON)


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (75, "requeue 7\n"), (143, "")])
def test_a_search_is_requeued_when_its_time_is_up(tmp_path, code, requeued):
    """The script, with stand-ins for srun, scontrol and the program."""
    programs = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "scontrol": 'echo "$@"',
        PYTHON: f'echo "$@" >words; exit {code}',
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", LAUNCH / "search.sbatch", "--stop-at-failure"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, requeued, "")
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["-m", "distqtrl", "search-bits"]
    args, flags = arguments.parse(words[2:])
    grid.search(args, arguments.resolve(args, flags), flags)


def test_the_search_script_is_clean():
    if shutil.which("shellcheck") is None:
        need("there is no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", LAUNCH / "search.sbatch"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def local(*words, **env):
    env = {**os.environ, "BIN": str(Path(sys.executable).parent), **env}
    return subprocess.Popen([LAUNCH / "local.sh", *words], env=env, stdout=subprocess.PIPE, text=True)


def test_local_ranks_save_on_a_signal(mpirun, tmp_path):
    with local("2", "train", "cartpole", "--run", str(tmp_path / "run"), "--train.steps", "100000000") as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped by SIGUSR1 after" in out


def test_local_refuses_what_is_no_number():
    done = subprocess.run(
        [LAUNCH / "local.sh", "four", "train", "cartpole"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "local.sh: 'four' is no number of ranks: write such as 4\n"
