"""Hosts that go away: namespaces as hosts on one machine, a link that is cut while ranks train."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import hosts
import private_slurm
import psutil
import pytest
from needs import need, soon
from runs import as_words, tiny

from distqtrl.files import tensors as tensorfile
from distqtrl.record.checkpoint import FORMAT

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "mpi" / "programs"
TINY = as_words(tiny(environment_id="paced:Paced-v0", algorithm_rollout_steps=10, train_steps=None))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAMS), "BIN": str(Path(sys.executable).parent)}


@pytest.fixture
def two(tmp_path, mpirun):
    need(hosts.missing())
    with hosts.hosts(tmp_path / "hosts") as up:
        yield up


@pytest.fixture
def ended():
    """What is entered here has ended when the test has."""
    with ExitStack() as stack:
        yield stack


def rows(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def launched(ended, two, run, *words):
    """launch/local.sh with a rank on each of the two hosts."""
    env = ENVIRONMENT | {
        "HOSTS": "h1:1,h2:1",
        "MPIRUN_FLAGS": f"-launcher ssh -launcher-exec {two.launcher} -iface {two.bridge}",
        "PACE_S": "0.002",
    }
    command = [ROOT / "launch" / "local.sh", "2", "train", "cartpole", *TINY, "--run", run, *words]
    return ended.enter_context(_process(command, env))


@contextmanager
def _process(command, env):
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in [*below, process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def test_ranks_on_two_hosts_train(two, ended, tmp_path):
    process = launched(ended, two, tmp_path / "run", "--train.updates", "3")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert rows(tmp_path / "run") == 3


def test_a_cut_link_ends_the_run_within_the_limit(two, ended, tmp_path):
    run = tmp_path / "run"
    flags = ["--train.updates", "100000", "--train.checkpoint_every", "5", "--allreduce.timeout_s", "10"]
    process = launched(ended, two, run, *flags)
    assert soon(lambda: rows(run) > 10, 120)
    two.cut("h2")
    began = time.monotonic()
    ranks = [p for name in two.names for p in two.processes(name)]
    assert len(ranks) >= 2
    gone, alive = psutil.wait_procs([p for p in ranks if "distqtrl" in p.cmdline()], timeout=60)
    assert (len(gone), alive) == (2, [])
    out, _ = process.communicate(timeout=120)
    print(f"ranks and mpirun were gone {time.monotonic() - began:.0f} s after the cut")
    assert process.returncode != 0
    assert out.count("no word from the other ranks for 10 s (allreduce.timeout_s)") >= 1
    for path in (run / "checkpoints").iterdir():
        tensorfile.read(path, FORMAT, "")

    two.mend("h2")
    process = launched(ended, two, run, *flags)
    before = rows(run)
    assert soon(lambda: rows(run) > before + 5 or process.poll() is not None, 120)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75, out
    assert "stopped by SIGUSR1 after" in out


def test_slurm_requeues_a_job_that_lost_a_host(tmp_path, mpirun):
    need(hosts.missing() or private_slurm.missing())
    with (
        hosts.hosts(tmp_path / "hosts", num=3) as three,
        private_slurm.cluster(tmp_path / "slurm", in_hosts=three, options={"SlurmdTimeout": "10"}) as slurm,
    ):
        words = ["slurm", "cartpole", *TINY, "--json", "--nodes", "2", "--ranks-per-node", "1", "--launcher", "srun"]
        words += ["--train.updates", "80", "--train.checkpoint_every", "5"]
        env = {"PYTHONPATH": str(PROGRAMS), "PACE_S": "0.004"}
        done = slurm.run(sys.executable, "-m", "distqtrl", *words, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        job_id = int(json.loads(done.stdout)["job"])
        assert soon(lambda: any(rows(run) > 10 for run in tmp_path.glob("runs/cartpole-job*")), 120)
        victim = slurm.job(job_id)["BatchHost"]
        lost = next(name for name in three.names[:2] if name != victim)
        three.cut(lost)
        three.kill(lost)
        job = slurm.wait(job_id, timeout=300)
        assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
        (run,) = tmp_path.glob("runs/cartpole-job*")
        assert rows(run) == 80
