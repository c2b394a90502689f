"""The communicator at 1 (serial) to 4 ranks, with MPICH and Open MPI: the same bodies, in programs/communicator.py."""

import json
import os
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "communicator.py"


@pytest.mark.parametrize("launcher", ["mpirun", "openmpi"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_bodies(request, launcher, ranks):
    code, out, err = request.getfixturevalue(launcher)(ranks, [PROGRAM, ranks], timeout=120)
    assert (code, err) == (0, "")
    assert out.split() == [
        "allgather",
        "ordered",
        "tree",
        "fast",
        "bytes_of_any_length",
        "agreed_result",
        "one_fails",
        "all_fail_alike",
        "all_fail_differently",
        "equal",
    ]


CORES = """
import os
import numpy as np
from distqtrl.allreduce.connect import connect, given_cores

comm = connect()
of_ranks = comm.allgather(np.array([len(given_cores()), *sorted(os.sched_getaffinity(0))]))
if comm.rank == 0:
    print(of_ranks.tolist())
"""


@pytest.mark.parametrize("launcher", ["mpirun", "openmpi"])
@pytest.mark.parametrize("more", [0, 1])
def test_crowded_ranks_share_the_cores_evenly_or_not_at_all(request, launcher, more):
    cores = sorted(os.sched_getaffinity(0))
    ranks = 2 * len(cores) + more
    code, out, err = request.getfixturevalue(launcher)(ranks, ["-c", CORES], timeout=120)
    assert (code, err) == (0, "")
    whole = [len(cores), *cores]
    assert sorted(json.loads(out)) == ([whole] * ranks if more else sorted([[len(cores), core] for core in cores] * 2))


WAITS = """
import time
import numpy as np
from distqtrl.allreduce.connect import connect

comm = connect()
comm.allgather(np.zeros(1))
before = time.process_time()
if comm.rank == 0:
    time.sleep(1)
comm.allgather(np.zeros(1))
used_R = comm.allgather(np.array([time.process_time() - before]))
if comm.rank == 0:
    print(used_R.max())
"""


@pytest.mark.parametrize("launcher", ["mpirun", "openmpi"])
def test_crowded_ranks_that_wait_leave_the_core_to_the_others(request, launcher):
    ranks = 2 * len(os.sched_getaffinity(0))
    code, out, err = request.getfixturevalue(launcher)(ranks, ["-c", WAITS], timeout=120)
    assert (code, err) == (0, "")
    assert float(out) < 0.35  # core seconds in a second of waiting: two that poll on one core take half of it each
