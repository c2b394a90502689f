"""Sums over ranks, in an order that does not depend on the MPI (but for ``fast``)."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from distqtrl.allreduce.communicator import Array, Communicator


def ordered_sum(comm: Communicator, x_V: Array) -> Array:
    """Sum over ranks in rank order, float64: bitwise the same on any MPI for a given number of ranks."""
    x_RV = comm.allgather(x_V)
    total = x_RV[0].copy()
    for row in x_RV[1:]:
        total += row
    return total


def tree_sum(comm: Communicator, x_V: Array) -> Array:
    """Sum over ranks along a binary tree, float64: as reproducible as ``ordered_sum``, in about log2(R) messages.

    Recursive doubling: partners add the same two numbers, so all ranks hold the same bits after every round. Ranks
    beyond the largest power of two hand their part to a partner below it first, and take the sum from it at the end.
    """
    power = 1 << (comm.size.bit_length() - 1)
    below, fold = comm.rank < power, comm.rank ^ power
    fold = fold if fold < comm.size else comm.rank
    total = x_V.copy()
    if power < comm.size:
        other = comm.exchange(total, fold)
        total = total + other if fold != comm.rank else total
    distance = 1
    while distance < power:
        other = comm.exchange(total, comm.rank ^ distance if below else comm.rank)
        total = total + other if below else total
        distance *= 2
    if power < comm.size:
        other = comm.exchange(total, fold)
        total = total if below else other
    return total


REDUCTIONS: dict[str, Callable[[Communicator, Array], Array]] = {
    "ordered": ordered_sum,
    "tree": tree_sum,
    "fast": lambda comm, x_V: comm.allreduce_sum(x_V),
}


def allgather_bytes(comm: Communicator, data: bytes) -> list[bytes]:
    """Every rank's bytes, in rank order."""
    padded, length_R = _padded(comm, data)
    rows = comm.allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, length_R, strict=True)]


def gather_bytes(comm: Communicator, data: bytes) -> list[bytes]:
    """Every rank's bytes in rank order on rank 0, an empty list on the others."""
    padded, length_R = _padded(comm, data)
    rows = comm.gather(padded)
    return [] if rows is None else [row[:length].tobytes() for row, length in zip(rows, length_R, strict=True)]


def _padded(comm: Communicator, data: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """This rank's bytes in a row as long as the longest, and how many every rank has."""
    length_R = comm.allgather(np.array([len(data)], dtype=np.int64))[:, 0]
    padded = np.zeros(max(1, int(length_R.max())), dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return padded, length_R
