"""Whatever goes wrong on one rank ends the job, soon, with one line that says what and where.

The fixture fails a test whose ranks are not all gone a minute after the event.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from needs import soon
from runs import as_words, tiny

pytestmark = pytest.mark.xdist_group("ranks")  # what must end in seconds does not run beside what takes all cores

PROGRAMS = Path(__file__).parent / "programs"
SEVERAL = PROGRAMS / "several.py"
TINY = as_words(tiny(environment_local_num=1, evaluate_episodes=1))


def test_the_group_is_one_workers(request):
    """With pytest 9.2 and pytest-xdist 3.8 groups were silently none."""
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@ranks")


def training(folder, *flags):
    """Arguments of a run of ten thousand updates of three ranks."""
    return [
        "train",
        "cartpole",
        *TINY,
        "--train.directory",
        str(folder / "runs"),
        "--train.steps",
        "480000",
        *flags,
    ]


def breaking(folder, fault, *flags):
    """Arguments and environment of a run in which rank 1 goes wrong, and what happens."""
    kwargs = json.dumps({"fault": fault})
    argv = training(folder, "--environment.id", "broken:Broken-v0", "--environment.kwargs", kwargs, *flags)
    return argv, {"PYTHONPATH": str(PROGRAMS), "EVENT": str(folder / "event")}, [(folder / "event", None)]


def lines(err):
    """What distqtrl itself said."""
    return [line for line in err.splitlines() if line.startswith("distqtrl: ")]


def test_an_exception_on_one_rank(forked_ranks, tmp_path):
    argv, env, when = breaking(tmp_path, "exception")
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code == 1
    (line,) = lines(err)
    assert line.startswith("distqtrl: rank 1: environment 1 (reset with seed ")
    assert line.endswith("), step 5 of its episode: broken:Broken-v0 raised: RuntimeError: the motor is on fire")
    first, second = [x.strip() for x in err.splitlines() if x.startswith("  ")][:2]
    assert first.startswith(f'File "{PROGRAMS / "broken.py"}", line ')
    assert second == 'raise RuntimeError("the motor is on fire")'
    assert "Traceback" not in err


def test_an_exit_on_one_rank(forked_ranks, tmp_path):
    argv, env, when = breaking(tmp_path, "exit")
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code != 0
    (line,) = lines(err)
    assert "rank 1" in line


def test_a_killed_rank(forked_ranks, tmp_path):
    argv, env, when = breaking(tmp_path, "kill")
    code, out, _ = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code == 9
    assert "Killed (signal 9)" in out  # mpirun says it; which process it names is not reliable


@pytest.mark.parametrize("fault", ["exception", "kill"])
def test_the_same_under_open_mpi(openmpi, tmp_path, fault):
    argv, env, when = breaking(tmp_path, fault)
    code, _, err = openmpi(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code != 0
    if fault == "exception":
        (line,) = lines(err)
        assert line.startswith("distqtrl: rank 1: environment 1 ")
        assert line.endswith("broken:Broken-v0 raised: RuntimeError: the motor is on fire")


def test_a_rank_that_hangs(forked_ranks, tmp_path):
    argv, env, when = breaking(tmp_path, "hang", "--allreduce.timeout_s", "6")
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code != 0
    assert len(lines(err)) == 1, err
    (line,) = lines(err)
    assert line.startswith("distqtrl: rank 0: no word from the other ranks for 6 s (allreduce.timeout_s)")


def test_a_rank_that_does_not_see_the_run_directory(forked_ranks, tmp_path):
    """As on hosts that share no filesystem: every rank has a folder of its own."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    program = "from distqtrl.record import directory; directory.VISIBLE_WITHIN_S = 0.5"
    run = {"argv": [*training(tmp_path), "--train.directory", "runs"], "folder": f"{tmp_path}/{{rank}}"}
    program += f"; import runpy, sys; sys.argv = ['', {json.dumps(json.dumps([run]))}]"
    program += f"; runpy.run_path({str(SEVERAL)!r}, run_name='__main__')"
    code, _, err = forked_ranks(2, ["-c", program])
    assert code == 2
    (line,) = lines(err)
    assert "rank 1: host " in line
    assert "put train.directory on a filesystem that all hosts share" in line


def catches(pid, number):
    """Whether the process has a handler for this signal."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)


def test_a_requeue_signal_while_libraries_load(tmp_path):
    command = [sys.executable, "-m", "distqtrl", *training(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert soon(lambda: catches(process.pid, signal.SIGUSR1), 60)  # importing takes more than a second from here
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "stopped by SIGUSR1 after 1 updates" in out


def test_a_nan_gradient_while_ranks_average_parameters(forked_ranks, tmp_path):
    """Without a baseline the NaN is not in the returns, and gradients are not reduced: one rank alone can see it."""
    flags = ["--algorithm.name", "reinforce", "--algorithm.baseline", "false", "--algorithm.rollout", "episodes"]
    flags += ["--allreduce.aggregation", "average", "--allreduce.average_every", "5"]
    argv, env, when = breaking(tmp_path, "observation", *flags)
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code != 0
    (line,) = lines(err)
    assert "rank 1" in line
    assert "not finite" in line


def test_a_scale_that_collapses_is_said_once(forked_ranks, tmp_path):
    # Adam's first step is as long as the rate, so that a scale below it falls through 0 whatever is rounded how
    flags = ["--quantize.aware", "true", "--quantize.warmup", "0", "--algorithm.learning_rate", "1.5"]
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *training(tmp_path, *flags)])
    assert code == 2
    (line,) = lines(err)
    assert line.startswith("distqtrl: quantize: the scale of ")


def test_what_all_ranks_refuse(forked_ranks, tmp_path):
    flip = {"argv": training(tmp_path, "--allreduce.check_every", "1"), "flip": 2, "event": str(tmp_path / "flip")}
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "my.toml").write_text(f"[train]\nseed = {7 if rank == 2 else 0}\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "blocked").mkdir()
    runs = [
        {"argv": ["train", "--config", "my.toml", *TINY], "folder": f"{tmp_path}/{{rank}}"},
        {"argv": training(tmp_path / "file")},
        flip,
    ]
    code, _, err = forked_ranks(3, [SEVERAL, json.dumps(runs)], when=[(tmp_path / "flip", None)])
    assert code == 2
    different, unwritable, flipped = lines(err)
    assert different.startswith("distqtrl: configurations differ on rank 2 of 3: ")
    assert unwritable.startswith("distqtrl: rank 0: ")
    assert str(tmp_path / "file") in unwritable
    assert flipped.startswith("distqtrl: parameters after update 3 differ on rank 1 of 3: ")


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_is_not_finite_is_named(forked_ranks, tmp_path, what):
    argv, env, when = breaking(tmp_path, what)
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=when)
    assert code == 2
    (line,) = lines(err)
    assert line.startswith("distqtrl: rank 1: environment 1 (reset with seed ")
    said = "observes [nan, " if what == "observation" else "the reward is nan, "
    assert f"), step 5 of its episode: broken:Broken-v0{' ' if what == 'observation' else ': '}{said}" in line
    assert line.endswith("not finite: fix the environment")


def test_ranks_compare_what_they_found_and_say_once_what_failed_on_all(forked_ranks, tmp_path):
    names = ["apart/Agents", "apart:Wide-v0", "apart:Long-v0", "apart:Lost-v0"]
    runs = [{"argv": training(tmp_path, "--environment.id", name)} for name in names]
    path = os.pathsep.join([str(PROGRAMS), str(PROGRAMS.parents[1])])
    code, _, err = forked_ranks(2, [SEVERAL, json.dumps(runs)], env={"PYTHONPATH": path})
    assert code == 2
    agents, spaces, limits, lost = lines(err)
    assert "apart/Agents: ranks found different agents (in order): rank 0 a, b, rank 1 b, a: give every rank" in agents
    assert "found different observations and actions: rank 0 Spaces(num_observations=2, " in spaces
    assert "ranks found different time limits: rank 0 10, rank 1 11: " in limits
    assert lost.startswith("distqtrl: rank 0: environment 0 (reset with seed ")
    assert lost.endswith("), at its start: apart:Lost-v0 raised: KeyError: 'robot'")
    assert err.count('raise KeyError("robot")') == 1
    assert not (tmp_path / "runs").exists()


def test_one_rank_with_another_command_line(forked_ranks, tmp_path):
    run = {"argv": training(tmp_path), "also": {"1": ["--json"]}}
    code, _, err = forked_ranks(2, [SEVERAL, json.dumps([run])])
    assert code == 2
    (line,) = lines(err)
    assert "rank 1" in line


def test_ctrl_c_then_resume_then_sigterm(forked_ranks, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run = {"argv": training(tmp_path), "pause": 1, "event": str(first)}
    code, out, _ = forked_ranks(3, [SEVERAL, json.dumps([run])], when=[(first, signal.SIGINT)])
    assert code == 130
    (directory,) = (tmp_path / "runs").iterdir()
    assert "stopped by SIGINT after 2 updates" in out
    assert f"train --resume {directory}" in out

    run = {"argv": ["train", "--resume", str(directory)], "pause": 4, "event": str(second)}
    code, out, err = forked_ranks(3, [SEVERAL, json.dumps([run])], when=[(second, signal.SIGTERM)])
    assert code == 143, err
    assert "stopped by SIGTERM after 5 updates" in out
    updates = [json.loads(line)["update"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert updates == [0, 1, 2, 3, 4]


def test_a_signal_in_the_final_evaluation(forked_ranks, tmp_path):
    """The policy is there by then; the resume evaluates it, and the files are those of a run without a break."""
    target = ["--evaluate.every", "1", "--evaluate.target", "1", "--evaluate.validation_episodes", "2"]
    flags = [*target, "--train.steps", "96", "--evaluate.episodes"]
    words = ["-m", "distqtrl", "train", "cartpole", *TINY, *flags]
    run = tmp_path / "run"
    stopped = (run / "policy.safetensors", signal.SIGUSR1)
    code, out, err = forked_ranks(2, [*words, "100000", "--run", str(run)], when=[stopped])
    assert (code, lines(err)) == (75, [])
    assert "stopped by SIGUSR1 after 1 updates" in out
    assert not (run / "result.json").exists()

    code, _, err = forked_ranks(2, [*words, "3", "--run", str(run)])
    assert code == 0, err
    assert "nothing is trained" not in err
    assert json.loads((run / "result.json").read_text())["evaluation"]["episodes"] == 3


def test_ctrl_c_while_an_environment_hangs(forked_ranks, tmp_path):
    argv, env, ((event, _),) = breaking(tmp_path, "hang")
    code, _, err = forked_ranks(1, ["-m", "distqtrl", *argv], env=env, when=[(event, signal.SIGINT)])
    assert code == 130
    (line,) = lines(err)
    assert "interrupted by SIGINT" in line


def test_sigterm_while_the_others_wait_for_a_rank_that_is_stopped(forked_ranks, tmp_path):
    argv, env, ((event, _),) = breaking(tmp_path, "stop")
    code, _, err = forked_ranks(3, ["-m", "distqtrl", *argv], env=env, when=[(event, signal.SIGTERM)])
    assert code != 0
    assert "interrupted by SIGTERM, and the work under way did not end within 5 s" in lines(err)[0]


def test_a_full_disk_for_the_checkpoint(forked_ranks, tmp_path):
    run = {"argv": training(tmp_path, "--train.checkpoint_every", "1"), "limit": 6000}
    code, _, err = forked_ranks(3, [SEVERAL, json.dumps([run])])
    assert code == 1
    (line,) = lines(err)
    assert line.startswith("distqtrl: rank 0: File too large: ")
    (directory,) = (tmp_path / "runs").iterdir()
    assert f"{directory}/checkpoints/update-000001.safetensors" in line
    assert list((directory / "checkpoints").iterdir()) == []


def test_a_full_disk_for_the_metrics(forked_ranks, tmp_path):
    run = {"argv": training(tmp_path, "--train.checkpoint_every", "1000"), "limit": 6000}
    code, _, err = forked_ranks(1, [SEVERAL, json.dumps([run])])
    assert code == 1
    assert "Traceback" not in err
    (line,) = lines(err)
    assert "File too large: " in line
    (directory,) = (tmp_path / "runs").iterdir()
    assert str(directory) in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_of_another_mpi(rank):
    """Three processes of which each believes to be alone: the first says so, none trains."""
    env = {**os.environ, "PMI_SIZE": "3", "PMI_RANK": str(rank)}
    command = [sys.executable, "-m", "distqtrl", "train", "cartpole"]
    pytest.importorskip("mpi4py")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    if rank == 0:
        (line,) = done.stderr.splitlines()
        assert line.startswith("distqtrl: the launcher started 3 ranks, but MPI sees 1: ")
        assert "use the mpirun of this Python's environment" in line
    else:
        assert done.stderr == ""
