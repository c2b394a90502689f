import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import hosts
import private_slurm
import psutil
import pytest
from needs import need, soon

SIZE = "from mpi4py import MPI; import platform; print(f'{platform.node()} {MPI.COMM_WORLD.size}')"


@pytest.fixture
def script(tmp_path):
    """script(text): a batch script's path."""

    def _script(text):
        path = tmp_path / "batch.sh"
        path.write_text(f"#!/bin/sh\n{text}\n")
        return path

    return _script


def test_srun_starts_ranks_of_one_world(slurm):
    done = slurm.run("srun", "--mpi=pmi2", "-N2", "-n4", sys.executable, "-c", SIZE)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["4"] * 4


def test_a_job_completes(slurm, script):
    job_id = slurm.submit(
        script('echo "$SLURM_JOB_NUM_NODES $MINE $1"'),
        *("-N2", "--job-name", "two words", "--output=job.txt"),
        args=["last"],
        env={"MINE": "mine"},
    )
    job = slurm.wait(job_id, timeout=60)
    assert [job[key] for key in ("JobState", "JobName", "ExitCode")] == ["COMPLETED", "two words", "0:0"]
    assert (slurm.folder / "job.txt").read_text() == "2 mine last\n"


def test_the_tasks_of_an_array_have_their_own_ends(slurm, script):
    job_id = slurm.submit(script("exit $SLURM_ARRAY_TASK_ID"), "--array=0-2", "--output=/dev/null")
    slurm.wait(job_id, timeout=60)
    assert len(slurm.tasks(job_id)) == 3
    assert [slurm.state(f"{job_id}_{i}") for i in range(3)] == ["COMPLETED", "FAILED", "FAILED"]
    assert [slurm.job(f"{job_id}_{i}")["ExitCode"] for i in range(3)] == ["0:0", "1:0", "2:0"]


def test_a_job_is_signalled_and_cancelled(slurm, script):
    job_id = slurm.submit(script("trap 'echo signal' USR1; echo up; while :; do sleep 0.1; done"), "--output=trap.txt")
    out = slurm.folder / "trap.txt"
    slurm.wait(job_id, "RUNNING", timeout=60)
    assert soon(lambda: out.exists() and out.read_text() == "up\n", 60)
    slurm.cancel(job_id, "--batch", "--signal=USR1")
    assert soon(lambda: out.read_text() == "up\nsignal\n", 60)
    with pytest.raises(AssertionError, match=r"(?s)not over in 0 s:\nJobId=.* JobState=RUNNING .*-- slurmctld.log\n"):
        slurm.wait(job_id, timeout=0)
    slurm.cancel(job_id)
    assert slurm.wait(job_id, timeout=60)["JobState"] == "CANCELLED"


def test_nothing_is_left_of_a_second_cluster_after_an_exception(slurm, script, tmp_path):
    folder = tmp_path / ("long" * 20)  # no socket's path can have that in it
    with suppress(ZeroDivisionError), private_slurm.cluster(folder, nodes=1, options={"KillWait": "60"}) as second:
        assert second.env["SLURM_CONF"] != slurm.env["SLURM_CONF"]
        assert second.run("scontrol", "show", "config").stdout.count("KillWait                = 60 sec") == 1
        # tasks that do not end when told to, without the environment and the session they were started in
        text = "trap '' TERM; env -i setsid sh -c 'touch started; sleep 60' & sleep 60; sleep 60"
        second.submit(script(text), "--output=/dev/null")
        waits = subprocess.Popen(["srun", "-n1", "sleep", "60"], env=second.env, cwd=folder)
        assert soon((folder / "started").exists, 60)
        assert soon(lambda: [p.info["name"] for p in private_slurm.processes(folder)].count("sleep") == 3, 60)
        left = private_slurm.processes(folder)
        raise ZeroDivisionError
    assert waits.wait(timeout=60) == -9
    assert private_slurm.processes(folder) == []
    assert [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert {"munged", "slurmctld", "slurmd", "slurmstepd", "srun", "sleep"} <= {p.info["name"] for p in left}
    short = dict(line.split("=", 1) for line in (folder / "slurm.conf").read_text().splitlines())["TmpFS"]
    assert not Path(short).parents[1].exists()
    assert slurm.run("sinfo", "--noheader", "--format=%t").stdout.split() == ["idle"]  # the first is as it was


def test_every_node_can_be_a_host(tmp_path):
    need(private_slurm.missing())
    need(hosts.missing())
    with hosts.hosts(tmp_path) as two, private_slurm.cluster(tmp_path / "slurm", in_hosts=two) as slurm:
        assert slurm.nodes == ["h1", "h2"]
        command = ["srun", "--mpi=pmi2", "-N2", "-n4", "--ntasks-per-node=2", sys.executable, "-c", SIZE]
        done = slurm.run(*command)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == ["h1 4", "h1 4", "h2 4", "h2 4"]
