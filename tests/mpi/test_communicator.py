"""The communicator at 1 (serial) to 4 ranks, with MPICH and Open MPI: the same bodies, in programs/communicator.py."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "communicator.py"


@pytest.mark.parametrize("launcher", ["mpirun", "openmpi"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_bodies(request, launcher, ranks):
    code, out, err = request.getfixturevalue(launcher)(ranks, [PROGRAM, ranks], timeout=30)
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
