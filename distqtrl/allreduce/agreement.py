"""Ranks agree: all go on, or all refuse with the same line."""

import hashlib
from collections.abc import Callable

from distqtrl.allreduce.communicator import Communicator, T
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.errors import UserError, of_system


class Refused(UserError):
    """Bad input on which all ranks agreed: every rank raises it, rank 0 alone prints it."""


def agreed(comm: Communicator, step: Callable[[], T]) -> T:
    """step() on every rank, or Refused on every rank when any rank raised UserError or OSError.

    ``step`` must not communicate. The message names the ranks when not all failed alike.
    """
    result, message, trace = None, "", ""
    try:
        result = step()
    except UserError as error:
        message, trace = str(error), error.trace
    except OSError as error:
        message = of_system(error)
    by_rank = [text.decode() for text in allgather_bytes(comm, message.encode(errors="backslashreplace"))]
    if any(by_rank):
        texts = allgather_bytes(comm, trace.encode(errors="backslashreplace"))
        first = next((i for i, text in enumerate(texts) if text), None)
        if first is not None:  # once is enough, and its trace is what belongs to its line
            text = f"rank {comm.ranks[first]}: {by_rank[first]}" if comm.size > 1 else by_rank[first]
            raise Refused(text, texts[first].decode())
        if len(set(by_rank)) == 1:
            raise Refused(by_rank[0])
        raise Refused("; ".join(f"rank {r}: {text}" for r, text in zip(comm.ranks, by_rank, strict=True) if text))
    return result  # type: ignore[return-value]


def check_equal(comm: Communicator, data: bytes, what: str, remedy: str) -> None:
    """Raise UserError on every rank, naming the ranks that differ from the majority, unless data is equal."""
    digests = allgather_bytes(comm, hashlib.blake2b(data, digest_size=16).digest())
    majority = max(digests, key=digests.count)
    odd = [str(rank) for rank, digest in zip(comm.ranks, digests, strict=True) if digest != majority]
    if odd:
        raise Refused(f"{what} differ on rank {', '.join(odd)} of {comm.size}: {remedy}")
