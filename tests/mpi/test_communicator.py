"""The communicator at 1 (serial), 2 and 3 ranks: the same bodies, in programs/communicator.py."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "communicator.py"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_bodies(mpirun, ranks):
    code, out, err = mpirun(ranks, [PROGRAM, ranks], timeout=30)
    assert (code, err) == (0, "")
    assert out.split() == [
        "allgather",
        "ordered",
        "fast",
        "bytes_of_any_length",
        "agreed_result",
        "one_fails",
        "all_fail_alike",
        "all_fail_differently",
        "equal",
    ]
