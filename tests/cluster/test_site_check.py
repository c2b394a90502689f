"""distqtrl site-check inside a job of a real SLURM, and a job of its own that is told of its limit."""

import json
import sys

PRINT = """#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=1 --time=10 --signal=USR1@120 --requeue --output=found.json
exec "$0" "$@"
"""


def found(text):
    told = json.loads(text.splitlines()[-1])
    return told, {check["name"]: check for check in told["checks"]}


def test_inside_a_job(slurm, tmp_path, mpirun):
    """Two ranks on two nodes by srun, and a script that asks for SIGUSR1 and for a requeue."""
    words = ["-m", "distqtrl", "site-check", "--json", "--directory", tmp_path / "runs", "--limit", "200"]
    words += ["--only", "srun-plugin,requeue,notice,lock-of-ranks,reductions,stop-signal"]
    script = tmp_path / "job.sbatch"
    script.write_text(PRINT.replace('"$0" "$@"', " ".join(map(str, [sys.executable, *words]))))
    done = slurm.wait(slurm.submit(script, cwd=tmp_path), timeout=400)
    told, checks = found((tmp_path / "found.json").read_text())
    assert {name: check["status"] for name, check in checks.items() if check["status"] == "failed"} == {}
    assert done["JobState"] == "COMPLETED"
    assert (told["ranks"], told["launcher"]) == (2, "srun --mpi=pmi2")
    assert "120 s before the time limit of job" in checks["notice"]["found"]
    assert "may be requeued" in checks["requeue"]["found"]
    assert checks["stop-signal"]["found"] == "all ranks saved and left, srun --mpi=pmi2 ended with 75"


def test_a_job_of_one_minute(slurm, tmp_path, mpirun):
    """On a login node: SLURM itself signals, the script requeues, and the job is cancelled then."""
    words = ["--json", "--directory", tmp_path / "runs", "--ranks", "1", "--submit", "--only", "time-limit"]
    done = slurm.run(sys.executable, "-m", "distqtrl", "site-check", *words, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stdout
    check = found(done.stdout)[1]["time-limit"]
    assert check["status"] == "ok", check
    job = check["found"].split()[1]
    assert check["found"] == f"job {job} got SIGUSR1 before its limit, saved, and was requeued"
    assert slurm.wait(job, timeout=60)["JobState"] == "CANCELLED"
