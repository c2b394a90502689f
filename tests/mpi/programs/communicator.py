"""Bodies about the communicator, the same at any number of ranks; rank 0 prints the name of each that passed.

python communicator.py RANKS
"""

import sys
import traceback

import numpy as np

from distqtrl.allreduce.agreement import Refused, agreed, check_equal
from distqtrl.allreduce.connect import connect
from distqtrl.allreduce.reductions import allgather_bytes, gather_bytes, ordered_sum, tree_sum
from distqtrl.errors import UserError


def vectors(comm):
    """One vector per rank whose sum depends on the order of summation."""
    return [np.random.default_rng(r).normal(size=1000) * 10.0 ** (16 * (r % 2)) for r in range(comm.size)]


def refusal(step):
    """The message with which step is refused."""
    try:
        step()
    except Refused as error:
        return str(error)
    raise AssertionError("nothing was refused")


def fail_on(comm, rank, error):
    """agreed() on a step that raises on one rank only."""

    def step():
        if comm.rank == rank:
            raise error

    return refusal(lambda: agreed(comm, step))


def allgather(comm):
    for dtype in (np.float64, np.float32, np.int64, np.uint8, np.bool_):
        x = np.arange(6).reshape(2, 3).astype(dtype)[:, ::-1]  # not contiguous
        gathered = comm.allgather(x + dtype(comm.rank))
        assert gathered.dtype == dtype
        np.testing.assert_array_equal(gathered, np.stack([x + dtype(r) for r in range(comm.size)]))


def ordered(comm):
    parts = vectors(comm)
    expected = parts[0].copy()
    for part in parts[1:]:
        expected += part
    mine = parts[comm.rank].copy()
    assert ordered_sum(comm, mine).tobytes() == expected.tobytes()
    assert mine.tobytes() == parts[comm.rank].tobytes()


def tree(comm):
    """The tree that its docstring describes, built here from every rank's part."""
    parts = vectors(comm)
    power = 1 << (comm.size.bit_length() - 1)
    level = [parts[r] + parts[r + power] if r + power < comm.size else parts[r] for r in range(power)]
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    mine = parts[comm.rank].copy()
    assert tree_sum(comm, mine).tobytes() == level[0].tobytes()
    assert mine.tobytes() == parts[comm.rank].tobytes()


def fast(comm):
    parts = vectors(comm)
    np.testing.assert_allclose(comm.allreduce_sum(parts[comm.rank]), np.sum(parts, axis=0), rtol=1e-12)


def bytes_of_any_length(comm):
    for lengths in ([r * 1000 for r in range(comm.size)], [0] * comm.size, [5, *[0] * (comm.size - 1)]):
        parts = [bytes([65 + r]) * length for r, length in enumerate(lengths)]
        assert allgather_bytes(comm, parts[comm.rank]) == parts
        received = comm.received
        assert gather_bytes(comm, parts[comm.rank]) == ([] if comm.rank else parts)
        assert comm.rank == 0 or comm.received - received == 8 * comm.size  # the lengths alone


def agreed_result(comm):
    assert agreed(comm, lambda: 7 + comm.rank) == 7 + comm.rank


def one_fails(comm):
    last = comm.size - 1
    where = f"rank {last}: " if last else ""
    assert fail_on(comm, last, UserError("no such thing")) == f"{where}no such thing"
    assert (
        fail_on(comm, last, FileNotFoundError(2, "No such file", "x/y"))
        == f"{where}No such file: x/y (check that its path exists)"
    )


def all_fail_alike(comm):
    def step():
        raise UserError("no such thing")

    assert refusal(lambda: agreed(comm, step)) == "no such thing"


def all_fail_differently(comm):
    def step():
        raise UserError(f"thing {comm.rank}")

    expected = "; ".join(f"rank {r}: thing {r}" for r in range(comm.size)) if comm.size > 1 else "thing 0"
    assert refusal(lambda: agreed(comm, step)) == expected


def equal(comm):
    check_equal(comm, b"same", "things", "mend them")
    if comm.size > 1:
        data = b"odd" if comm.rank == comm.size - 1 else b"same"
        message = refusal(lambda: check_equal(comm, data, "things", "mend them"))
        assert message == f"things differ on rank {comm.size - 1} of {comm.size}: mend them"


BODIES = (
    allgather,
    ordered,
    tree,
    fast,
    bytes_of_any_length,
    agreed_result,
    one_fails,
    all_fail_alike,
    all_fail_differently,
    equal,
)


def main():
    comm = connect()
    try:
        assert comm.size == int(sys.argv[1])
        for body in BODIES:
            body(comm)
            if comm.rank == 0:
                print(body.__name__, flush=True)
    except BaseException:
        traceback.print_exc()
        comm.abort(1)


if __name__ == "__main__":
    main()
