"""No wait without a limit: a rank that is stopped ends the job in time, with one line, wherever it was."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("ranks")  # what must end in seconds does not run beside what takes all cores

STALLING = Path(__file__).parent / "programs" / "stalling.py"
TRAINING = ["train", "cartpole", "--generator.source", "direct", "--allreduce.timeout_s", "2"]  # compiles nothing


def refusal(launcher, ranks, rank, when, *argv):
    code, out, err = launcher(ranks, [STALLING, rank, when, *argv], timeout=120)
    assert code != 0
    assert out.count("run directory") == 0
    (line,) = (line for line in err.splitlines() if line.startswith("distqtrl: "))
    return line


@pytest.mark.parametrize(("rank", "when"), [(1, 0.3), (0, 0.3), (1, 1.0), (1, "connected"), (0, "connected")])
def test_a_rank_that_stalls_before_training(mpirun, forked_ranks, tmp_path, rank, when):
    launcher = forked_ranks if when == "connected" else mpirun  # a fork has loaded everything, so it connects at once
    line = refusal(launcher, 2, rank, when, *TRAINING, "--train.directory", str(tmp_path))
    # what watches MPI's start is not stopped with its rank, so while they connect either may speak
    speaks = f"rank {1 - rank}" if when == "connected" else "rank [01]"
    assert re.match(rf"distqtrl: {speaks}: no word from the other ranks for 2 s \(allreduce.timeout_s\): a rank ", line)
    assert list(tmp_path.iterdir()) == []


def test_one_of_many_speaks_for_all(forked_ranks, tmp_path):
    line = refusal(forked_ranks, 4, 0, "connected", *TRAINING, "--train.directory", str(tmp_path))
    assert line.startswith("distqtrl: rank 1: no word from ")


def test_the_limit_may_come_from_a_file(mpirun, tmp_path):
    (tmp_path / "my.toml").write_text('[generator]\nsource = "direct"\n[allreduce]\ntimeout_s = 1.5\n')
    line = refusal(mpirun, 2, 1, 0.3, "train", "--config", str(tmp_path / "my.toml"))
    assert " for 1.5 s " in line


@pytest.mark.parametrize("when", [0.3, "connected"])
def test_the_same_under_open_mpi(openmpi, tmp_path, when):
    line = refusal(openmpi, 2, 1, when, *TRAINING, "--train.directory", str(tmp_path))
    assert line.startswith("distqtrl: rank 0: no word from the other ranks for 2 s")


def test_a_rank_that_stalls_while_it_leaves(forked_ranks):
    assert refusal(forked_ranks, 2, 1, "leaving").endswith("a rank hangs or the network is cut, while ending MPI")
