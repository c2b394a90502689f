"""launch/: its batch scripts are what ``distqtrl slurm`` writes, its shell script starts ranks."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from needs import need, soon

from distqtrl.cli import search_bits
from distqtrl.cli.parser import parse
from distqtrl.doctor.launching import Site
from distqtrl.doctor.site import Result, as_json
from distqtrl.slurm import DONE, END, HELD, MPIRUN_AFTER, REQUEUE, Job, Launcher, script

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


STARTS = 'while [ "$1" = -n ] || [ "${1#--}" != "$1" ]; do [ "$1" != -n ] || shift; shift; done; exec "$@"'


def stand_in(folder, programs):
    """Shell scripts of these names and lines below ``folder``."""
    for name, lines in programs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{lines}\n")
        path.chmod(0o755)


def test_every_batch_script_is_checked():
    assert {path.name for path in LAUNCH.glob("*.sbatch")} == {*SCRIPTS, "search.sbatch", "speedup.sbatch"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_batch_scripts_are_the_commands_own(name):
    assert (LAUNCH / name).read_text() == script(*SCRIPTS[name], PYTHON)


ODD = {  # what is asked, and what sbatch is to read: names, flags
    "space": ({"name": "my config"}, "my-config"),
    "quotes": ({"name": 'it\'s "one" `id` $HOME'}, "it-s-one-id-HOME"),
    "lines": ({"name": "a\nb\t#SBATCH --exclusive"}, "a-b-SBATCH---exclusive"),
    "percent": ({"name": "100%j/x"}, "100-j-x"),
    "unicode": ({"name": "größe-日本"}, "gr-e"),
    "nothing": ({"name": "日本"}, "distqtrl"),
    "long": ({"name": "x" * 300}, "x" * 60),
    "directory": ({"directory": 'my "runs"/$HOME `id` it\'s %j'}, "cartpole"),
    "dash": ({"directory": "-runs"}, "cartpole"),
    "words": ({"words": ("cartpole", "--environment.kwargs", '{"a": "it\'s $x"}')}, "cartpole"),
    "flags": ({"sbatch": ("--comment=two words #3 it's $HOME", "--partition=test", "--array=0-1%2")}, "cartpole"),
    "threads": ({"threads": 3, "memory": "2g"}, "cartpole"),
}


@pytest.mark.parametrize("launch", [Launcher("pmi2"), Launcher(None, "my mpi/mpirun")], ids=["srun", "mpirun"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_names_reach_the_program_as_they_are(tmp_path, odd, launch):
    """The script, with stand-ins for what starts ranks and for the program, which says how it was called."""
    fields, label = ODD[odd]
    job = replace(JOB, **fields)
    text = script(job, launch, "my python's/python")
    assert f"#SBATCH --job-name={label}\n" in text
    programs = {
        "bin/srun": f'echo "$@" >srun; {STARTS}',
        "my mpi/mpirun": STARTS,
        "bin/scontrol": "exit 1",
        "my python's/python": 'printf "%s\\0" "$@" >words; exit 3',
    }
    stand_in(tmp_path, programs)
    file = tmp_path / "job.sbatch"
    file.write_text(text)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", file], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    run = f"{'./' * job.directory.startswith('-')}{job.directory}/{label}-job7"
    words = (tmp_path / "words").read_text().split("\0")
    assert words == ["-m", "distqtrl", "train", *job.words, "--run", run, ""]
    parse(words[2:-1])
    if launch.plugin:
        assert f"--cpus-per-task={job.threads} " in (tmp_path / "srun").read_text()
    if shutil.which("shellcheck") is None:
        need("there is no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("launch", [Launcher("pmi2"), Launcher(None, "mpirun")], ids=["srun", "mpirun"])
def test_a_notice_before_python_runs_is_not_lost(tmp_path, launch):
    """A time limit's signal reaches ranks whenever it likes; where Python still loads, it ended them with 138."""
    programs = {
        "srun": STARTS,
        "mpirun": STARTS,
        "scontrol": 'echo "$@"',
        "python": f'kill -USR1 $$; exec {shlex.quote(sys.executable)} "$@"',
    }
    stand_in(tmp_path, programs)
    job = replace(JOB, words=("cartpole", "--train.updates", "1000"), directory=str(tmp_path / "runs"))
    file = tmp_path / "job.sbatch"
    file.write_text(script(job, launch, str(tmp_path / "python")))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", file], cwd=LAUNCH.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGUSR1 after" in done.stdout
    assert "requeue 7" in done.stdout


@pytest.mark.parametrize(
    ("memory", "threads", "per_cpu"),
    [("2G", 1, "2G"), ("2g", 1, "2G"), ("500", 1, "500"), ("2G", 4, "512M"), ("1G", 3, "342M"), ("5K", 2, "1M"),
     ("1T", 8, "131072M"), ("500", 3, "167M")],
)  # fmt: skip
def test_memory_is_of_a_rank_whatever_its_threads(memory, threads, per_cpu):
    """SLURM multiplies --mem-per-cpu by --cpus-per-task."""
    text = script(replace(JOB, memory=memory, threads=threads), Launcher("pmi2"), PYTHON)
    assert f"#SBATCH --cpus-per-task={threads}\n#SBATCH --mem-per-cpu={per_cpu}\n" in text
    assert f" --cpus-per-task={threads} " in text


@pytest.mark.parametrize(
    ("code", "state", "ends"), [(0, "RUNNING", 0), (75, "RUNNING", 75), (143, "CANCELLED", 143), (143, "RUNNING", 75)]
)
def test_a_search_is_requeued_when_its_time_is_up(tmp_path, code, state, ends):
    """The script, with stand-ins for SLURM's programs and ours; also where a preemption told its ranks alone."""
    programs = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "scontrol": 'echo "$@"',
        "squeue": f"echo {state}",
        PYTHON: f'echo "$@" >words; exit {code}',
    }
    stand_in(tmp_path, programs)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", LAUNCH / "search.sbatch", "--stop-at-failure"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (ends, "requeue 7\n" * (ends == 75), "")
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["-m", "distqtrl", "search-bits"]
    args, flags = parse(words[2:])
    search_bits.search(args, flags)


@pytest.mark.parametrize(
    ("number", "task", "policy"), [(0, "cartpole", "generated"), (9, "simple-spread", "classical")]
)
def test_a_task_of_the_speedup_array_is_a_part_of_the_study(tmp_path, number, task, policy):
    """The script, with a stand-in for the program."""
    stand_in(tmp_path, {PYTHON: 'printf "%s\\n" "$@" >words; exit 3'})
    env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_CPUS_PER_TASK": "8"}
    command = ["bash", LAUNCH / "speedup.sbatch", "--seeds", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    folder = f"runs/speedup-{policy}"
    assert (tmp_path / "words").read_text().split() == [
        *("benchmarks/speedup.py", "--task", task, "--policies", policy, "--cores", "8"),
        *("--runs", f"{folder}/runs", "-o", folder, "--seeds", "3"),
    ]


def test_the_speedup_array_is_the_whole_study():
    text = (LAUNCH / "speedup.sbatch").read_text()
    source = (LAUNCH.parent / "benchmarks" / "speedup.py").read_text()
    (tasks,) = re.findall(r"^tasks=\((.*)\)$", text, re.MULTILINE)
    (last,) = re.findall(r"^#SBATCH --array=0-(\d+)$", text, re.MULTILINE)
    assert tasks.split() == re.findall(r'^    "([a-z-]+)": Task\(', source, re.MULTILINE)
    assert int(last) + 1 == 2 * len(tasks.split())


OTHERS = {  # schedulers that are not here: the file, the variable of a job, what starts ranks, what submits another job
    "pbs": ("job.pbs", {"PBS_JOBID": "7.server"}, ".venv/bin/mpirun", "qsub"),
    "lsf": ("job.lsf", {"LSB_JOBID": "7"}, ".venv/bin/mpirun", None),
    "flux": ("job.flux", {}, "bin/flux", "flux --parent batch"),
}
STAND_INS = {
    ".venv/bin/mpirun": 'shift 2; exec "$@"',
    # one that cannot block signals, as before 2019: a shell, in place of Python, would never get them
    "bin/env": '[ "${1#--}" = "$1" ] || exit 125; exec "$@"',
    "bin/qsub": 'echo "qsub $@" >>submitted',
    "bin/sleep": """echo "$1" >>slept
[ -z "${CODE:-}" ] || exec /bin/sleep 60
while [ ! -e started ]; do /bin/sleep 0.02; done""",
    "bin/flux": """case $1 in
getattr) echo 7 ;;
submit) shift 3; "$@" >/dev/null & echo $! >pid; echo ranks ;;
job) case $2 in
    kill) kill -USR1 "$(cat pid)" ;;
    *) while [ ! -e code ]; do /bin/sleep 0.02; done; exit "$(cat code)" ;;
    esac ;;
--parent) echo "RUN=$RUN $*" >>submitted ;;
esac""",
    PYTHON: """printf '%s\\n' "$@" >words
end() { echo "$1" >code.partial && mv code.partial code; exit "$1"; }
trap 'end 75' USR1
: >started
[ -z "${CODE:-}" ] || { [ -z "${RESULT:-}" ] || { mkdir -p "$6" && : >"$6/result.json"; }; end "$CODE"; }
while true; do /bin/sleep 0.02; done""",
}


@pytest.mark.parametrize(
    ("env", "code", "again"),
    [
        ({"CODE": "0", "RESULT": "1"}, 0, False),
        ({"CODE": "0"}, 1, False),
        ({"CODE": "143"}, 143, False),
        ({}, 75, True),  # it ends by the SIGUSR1 that comes before the limit
    ],
    ids=["complete", "not complete", "cancelled", "stopped in time"],
)
@pytest.mark.parametrize("name", OTHERS)
def test_other_schedulers_go_on_with_a_run(tmp_path, name, env, code, again):
    """The script, with stand-ins for the scheduler and the program; LSF sends its signal itself, and requeues on 75."""
    file, job, _, submits = OTHERS[name]
    stand_in(tmp_path, STAND_INS)
    clean = {key: value for key, value in os.environ.items() if key not in ("RUN", "SCRIPT")}
    env = {**clean, **job, **env, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", LAUNCH / file], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        if name == "lsf" and again:
            assert soon((tmp_path / "started").exists, 20)
            process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert ("result.json" in err) == (code == 1)
    words = (tmp_path / "words").read_text().split()
    assert words == ["-m", "distqtrl", "train", "cartpole", "--run", "runs/cartpole-job7"]
    submitted = (tmp_path / "submitted").read_text() if (tmp_path / "submitted").exists() else ""
    assert bool(submitted) == (again and submits is not None)
    if submitted:
        assert "RUN=runs/cartpole-job7" in submitted
        assert f"launch/{file}" in submitted
    if submits and again:
        assert (tmp_path / "slept").read_text().split()[0] == "3480"


def test_what_other_schedulers_are_asked_for():
    """Limits in seconds are those of the directives, and what is around the ranks is that of SLURM's scripts."""
    assert all(line in (LAUNCH / "search.sbatch").read_text() for line in (HELD, *REQUEUE))
    texts = {name: (LAUNCH / file).read_text() for name, (file, *_) in OTHERS.items()}
    assert "walltime=01:00:00" in texts["pbs"]
    assert "--time-limit=60m" in texts["flux"]
    assert "#BSUB -wa USR1\n#BSUB -wt 2\n" in texts["lsf"]
    assert "#BSUB -Q 75\n" in texts["lsf"]
    assert "#PBS -r y\n" in texts["pbs"]
    for text in texts.values():
        assert all(line in text for line in (HELD, *MPIRUN_AFTER[1:], *DONE, *END[:-1]))
        assert text.count("limit_s=3600 notice_s=120") == ("limit_s" in text)


@pytest.mark.parametrize("name", ["search.sbatch", "speedup.sbatch", *(file for file, *_ in OTHERS.values())])
def test_scripts_of_arrays_and_of_other_schedulers_are_clean(name):
    if shutil.which("shellcheck") is None:
        need("there is no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", LAUNCH / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def local(*words, **env):
    env = {**os.environ, "BIN": str(Path(sys.executable).parent), **env}
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (what nohup and & ignore, no shell traps)
    command = [LAUNCH / "local.sh", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=heard)


LONG = ("--train.steps", "100000000")
LOCAL_SIGNALS = [
    ("mpich", signal.SIGUSR1, 75, "SIGUSR1"),
    ("mpich", signal.SIGTERM, 143, "SIGTERM"),
    ("mpich", signal.SIGHUP, 129, "SIGUSR1"),
    ("openmpi", signal.SIGINT, 130, "SIGUSR1"),
    ("openmpi", signal.SIGTERM, 143, "SIGUSR1"),
]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("mpi", "number", "code", "told"), LOCAL_SIGNALS)
def test_local_ranks_save_on_a_signal(request, tmp_path, mpi, number, code, told):
    """Whatever the mpirun hands on: Open MPI's ends its ranks at SIGTERM and Ctrl-C, and none hands on SIGHUP."""
    request.getfixturevalue("mpirun" if mpi == "mpich" else mpi)
    bin = Path(sys.executable).parent if mpi == "mpich" else Path(sys.prefix) / "openmpi" / "bin"
    with local("2", "train", "cartpole", "--run", str(tmp_path / "run"), *LONG, BIN=str(bin)) as process:
        deadline, metrics = time.monotonic() + 60, tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"stopped by {told} after" in out
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_local_refuses_what_is_no_number():
    done = subprocess.run(
        [LAUNCH / "local.sh", "four", "train", "cartpole"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "local.sh: 'four' is no number of ranks: write such as 4\n"


def test_the_reframe_test_reads_what_site_check_prints(monkeypatch, tmp_path):
    """Its class, with a stand-in for ReFrame, on the JSON of a real check that failed and of one that did not."""
    text = (LAUNCH / "reframe_site_check.py").read_text()
    sanity = SimpleNamespace(
        extractsingle=lambda pattern, file: SimpleNamespace(evaluate=lambda: re.search(pattern, file, re.MULTILINE)[0]),
        assert_eq=lambda a, b, msg: a == b or msg,
    )
    reframe = SimpleNamespace(simple_test=lambda made: made, RunOnlyRegressionTest=object)
    monkeypatch.setitem(sys.modules, "reframe", reframe)
    monkeypatch.setitem(sys.modules, "reframe.utility", SimpleNamespace(sanity=sanity))
    monkeypatch.setitem(sys.modules, "reframe.utility.sanity", sanity)
    monkeypatch.setattr(reframe, "utility", SimpleNamespace(sanity=sanity), raising=False)
    hook = lambda *words: words[0] if callable(words[0]) else lambda method: method  # noqa: E731
    names = {"variable": lambda kind, value: value, "run_before": hook, "performance_function": hook}
    made = names | {"sanity_function": hook}
    exec(compile(text, "reframe_site_check.py", "exec"), made)
    test = made["DistqtrlSite"]()
    test.words()
    args, _ = parse(test.executable_opts)
    assert args.command == "site-check"
    here = Site(tmp_path, 2, Launcher(None, "mpirun"))
    for status, expected in (("ok", True), ("failed", "lock: two got it. Remedy: flock")):
        found = [Result("lock", status, "two got it", "flock", 0.5)]
        test.stdout = f"a line before\n{json.dumps(as_json(here, found, 'n1', 1.5))}\n"
        assert (test.nothing_fails(), test.took()) == (expected, 1.5)
