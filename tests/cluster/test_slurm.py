"""Training on a real SLURM: job scripts, arrays, time limits, requeues, cancellation, and what is refused."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from needs import need, soon
from runs import TIMES, as_words, tiny

from distqtrl.cli import main as cli
from distqtrl.slurm import Job, Launcher, script

PROGRAMS = Path(__file__).parents[1] / "mpi" / "programs"
TINY = as_words(tiny(environment_id="paced:Paced-v0", algorithm_rollout_steps=10, train_steps=None))


@pytest.fixture
def submitted(slurm, tmp_path, mpirun):
    """submitted(*words, pace=0.0): the number of the job that ``distqtrl slurm cartpole`` with these words makes."""

    def submit(*words, pace=0.0):
        command = [sys.executable, "-m", "distqtrl", "slurm", "cartpole", "--json", *words, *TINY]
        done = slurm.run(*command, env={"PYTHONPATH": str(PROGRAMS), "PACE_S": str(pace)}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["job"])

    return submit


def output(folder):
    return "\n".join(path.read_text() for path in folder.glob("*.out"))


def rows(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in lines]


def has_trained(folder):
    """Whether a run below has metrics already."""
    return lambda: any(path.stat().st_size for path in folder.glob("runs/*/metrics.jsonl"))


def test_short_time_limits_change_no_bit(slurm, submitted, mpirun, tmp_path):
    """SLURM looks at limits every 30 s: one of two minutes with notice of 60 s gives sessions of 30 to 60 s, of which
    loading takes 4 to 25, beside other tests. 230 updates take 200 s, and next to nothing without a pace."""
    words = ["--train.updates", "230", "--train.checkpoint_every", "1000"]
    flags = ["--nodes", "2", "--ranks-per-node", "1", "--launcher", "srun", "--time", "2", "--notice", "60"]
    job = slurm.wait(submitted(*flags, *words, pace=0.042), timeout=900)
    assert job["JobState"] == "COMPLETED", output(tmp_path)
    assert int(job["Restarts"]) >= 3
    assert output(tmp_path).count("stopped by SIGUSR1 after") == int(job["Restarts"])
    (run,) = (tmp_path / "runs").glob("cartpole-job*")

    whole = ["train", "cartpole", "--run", str(tmp_path / "whole"), *words, *TINY]
    code, _, err = mpirun(2, ["-m", "distqtrl", *whole], env={"PYTHONPATH": str(PROGRAMS)})
    assert code == 0, err
    assert len(rows(run)) == 230
    assert rows(run) == rows(tmp_path / "whole")
    assert (run / "policy.safetensors").read_bytes() == (tmp_path / "whole" / "policy.safetensors").read_bytes()


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_the_signal_saves_and_requeues(slurm, submitted, tmp_path, launcher):
    job_id = submitted(
        "--nodes", "2", "--ranks-per-node", "1", "--launcher", launcher, "--train.updates", "30", pace=0.008
    )
    assert soon(has_trained(tmp_path), 120)
    slurm.cancel(job_id, "--signal=USR1", *(["--batch"] if launcher == "mpirun" else []))
    job = slurm.wait(job_id, "COMPLETED", "FAILED", "CANCELLED", timeout=120)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), output(tmp_path)
    assert "stopped by SIGUSR1 after" in output(tmp_path)
    (run,) = (tmp_path / "runs").glob("cartpole-job*")
    assert [row["update"] for row in rows(run)] == list(range(30))
    assert {row["ranks"] for row in rows(run)} == {2}


@pytest.fixture
def urgent(slurm):
    """A partition whose jobs take the nodes of others, which get a minute's grace: SIGTERM for the ranks alone."""
    for words in (["update", "PartitionName=test", "GraceTime=60"],
                  ["create", "PartitionName=urgent", "Nodes=ALL", "PriorityTier=9", "State=UP"]):  # fmt: skip
        assert slurm.run("scontrol", *words).returncode == 0
    yield "urgent"
    slurm.run("scontrol", "update", "PartitionName=test", "GraceTime=0")
    slurm.run("scontrol", "delete", "PartitionName=urgent")


def test_a_preemption_with_a_grace_time_is_a_requeue(slurm, submitted, tmp_path, urgent):
    job_id = submitted("--nodes", "2", "--ranks-per-node", "1", "--train.updates", "30", pace=0.008)
    assert soon(has_trained(tmp_path), 120)
    command = ["sbatch", f"--partition={urgent}", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "true"]
    assert slurm.run(*command).returncode == 0
    job = slurm.wait(job_id, "COMPLETED", "FAILED", "CANCELLED", timeout=120)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), output(tmp_path)
    assert "stopped by SIGTERM after" in output(tmp_path)
    assert "DUE TO PREEMPTION" not in output(tmp_path)


def test_without_requeue_the_job_ends_with_75(slurm, submitted, tmp_path):
    job_id = submitted("--no-requeue", "--ranks-per-node", "2", "--train.updates", "5000", pace=0.01)
    assert soon(has_trained(tmp_path), 120)
    slurm.cancel(job_id, "--signal=USR1")
    job = slurm.wait(job_id, timeout=120)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "75:0", "0"), output(tmp_path)


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, submitted, tmp_path):
    job_id = submitted(
        "--ranks-per-node", "2", "--train.updates", "5000", "--train.checkpoint_every", "5000", pace=0.01
    )
    assert soon(has_trained(tmp_path), 120)
    slurm.cancel(job_id)
    assert slurm.wait(job_id, timeout=120)["JobState"] == "CANCELLED"
    assert soon(lambda: "stopped by SIGTERM after" in output(tmp_path), 120)
    (run,) = (tmp_path / "runs").glob("cartpole-job*")
    assert len(list((run / "checkpoints").glob("*.safetensors"))) == 1
    time.sleep(6)  # a requeued job may start again after cred_expire, 5 s
    assert slurm.job(job_id)["JobState"] == "CANCELLED"


def test_an_array_over_seeds_and_ranks(slurm, submitted, tmp_path):
    job_id = submitted("--array-seeds", "3-4", "--array-ranks", "1,2", "--ranks-per-node", "2", "--train.updates", "3")
    slurm.wait(job_id, timeout=300)
    assert {task["JobState"] for task in slurm.tasks(job_id)} == {"COMPLETED"}, output(tmp_path)
    for seed in (3, 4):
        for ranks in (1, 2):
            run = tmp_path / "runs" / f"cartpole-job{job_id}-seed{seed}-n{ranks}"
            result = json.loads((run / "result.json").read_text())
            assert result["ranks"] == ranks
            assert json.loads((run / "config.json").read_text())["train"]["seed"] == seed


def test_a_launcher_that_does_not_know_the_mpi_is_refused(slurm, tmp_path, mpirun):
    """srun without PMI starts singletons: each would train alone, and the job would look fine."""
    command = ["srun", "--mpi=none", "-n2", sys.executable, "-m", "distqtrl", "doctor"]
    done = slurm.run(*command, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("distqtrl: ")]
    assert "the launcher started 2 ranks, but MPI sees 1" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "3"], "--nodes 3: the largest partition has 2"),
        (["--partition", "nowhere"], "--nodes 1: the largest partition asked for has 0"),
        (["--nodelist", "n[1-2]"], "--nodelist n[1-2] names 2 nodes, --nodes are 1"),
        (["--sbatch=--qos=no,such,thing", "--sbatch=--mem=x"], "sbatch --parsable"),
    ],
)
def test_what_slurm_cannot_give_is_refused_in_one_line(slurm, tmp_path, words, said):
    done = slurm.run(sys.executable, "-m", "distqtrl", "slurm", "cartpole", *words, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("distqtrl: ")
    assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--array-ranks", "2,16"], "--array-ranks 16: 1 nodes x 4 ranks are 4"),
        (["--array-seeds", "5-2"], "'5-2' is not a list of numbers"),
        (["--time", "1:2:3:4"], "--time '1:2:3:4': write minutes"),
        (["--time", "2"], "--notice 120"),
        (["--array-ranks", "1,2", "--qpu.per_rank", '[{"shots": 9}, {}]'], "qpu.per_rank has 2 entries, the job has 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_without_slurm(capfd, words, said):
    assert cli.main(["slurm", "cartpole", "--dry-run", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("distqtrl: ")
    assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "lots"], "--memory 'lots': write the memory of one rank, such as 2G or 500M"),
        (["--memory", "0"], "--memory '0': write the memory of one rank"),
        (["--memory", "-1G"], "--memory '-1G': write the memory of one rank"),
        (["--sbatch=account=abc"], "--sbatch 'account=abc': write a flag of sbatch in one line, such as --sbatch=--ac"),
        (["--sbatch=--comment=a\nrm -rf"], "--sbatch '--comment=a\\nrm -rf': write a flag of sbatch in one line"),
        (["--array-seeds", "0-99999999999"], "'0-99999999999' has more than 10,000 numbers: write fewer"),
        (["--array-seeds", "4294967296"], "--array-seeds 4294967296: a seed is at most 4294967295"),
        (["--nodes", "-1"], "argument --nodes: '-1' is not a whole number from 1 to 1000000000"),
        (["--time", "٣"], "--time '٣': write minutes"),
    ],
)
def test_words_that_slurm_would_not_understand(capfd, words, said):
    assert cli.main(["slurm", "cartpole", "--dry-run", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line


def test_sbatch_reads_what_was_written(slurm, tmp_path):
    """A real job per script, whose program is a stand-in; a name, a comment and a memory that need care."""
    (tmp_path / "python").write_text('#!/bin/sh\nmkdir -p "$6" && env >"$6/result.json"\n')
    (tmp_path / "python").chmod(0o755)
    sbatch = ("--comment=two words #3 it's $HOME", "--partition=test")
    job = Job("my config\n%j", ("cartpole",), "my 'runs'/$HOME", threads=2, memory="1G", sbatch=sbatch)
    job = replace(job, ranks_per_node=2, notice_s=30)
    (tmp_path / "job.sbatch").write_text(script(job, Launcher("none"), str(tmp_path / "python")))
    assert slurm.run("sbatch", "--test-only", tmp_path / "job.sbatch").returncode == 0
    number = slurm.submit(tmp_path / "job.sbatch", cwd=tmp_path)
    done = slurm.wait(number, timeout=120)
    assert done["JobState"] == "COMPLETED", output(tmp_path)
    assert (done["JobName"], done["Comment"]) == ("my-config-j", sbatch[0].removeprefix("--comment="))
    assert done["MinMemoryCPU"] == "512M"
    assert done["CPUs/Task"] == "2"
    (result,) = (tmp_path / "my 'runs'" / "$HOME").glob("my-config-j-job*/result.json")
    assert "SLURM_CPUS_PER_TASK=2\n" in result.read_text()
    assert (tmp_path / f"my-config-j-{number}.out").exists()


def test_a_folder_whose_name_slurm_would_change(slurm, tmp_path):
    place = tmp_path / "100%j"
    place.mkdir()
    command = [sys.executable, "-m", "distqtrl", "slurm", "cartpole", "--ranks-per-node", "1"]
    done = slurm.run(*command, cwd=place)
    assert (done.returncode, done.stderr.count("\n"), list(place.iterdir())) == (2, 1, [])
    assert "has a %, which SLURM replaces in the log's name" in done.stderr


def test_without_slurm_it_says_so(capfd, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cli.main(["slurm", "cartpole"]) == 2
    assert "there is no sbatch here" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["--launcher", "mpirun"], ["--train.threads", "4"], ["--array-seeds", "0-9", "--array-ranks", "2,4"]]
)
def test_scripts_are_clean(capfd, words):
    if shutil.which("shellcheck") is None:
        need("there is no shellcheck: apt-get install shellcheck")
    assert cli.main(["slurm", "cartpole", "--dry-run", *words]) == 0
    text = capfd.readouterr().out
    done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
