"""Ranks agree: all go on, or all refuse with the same line."""

import hashlib
from collections.abc import Callable

from distqtrl.allreduce.communicator import Communicator, T
from distqtrl.allreduce.reductions import allgather_bytes
from distqtrl.errors import UserError, of_system


class Refused(UserError):
    """Bad input on which all ranks agreed: every rank raises it, rank 0 alone prints it."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


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
    by_rank = [text.decode() for text in allgather_bytes(comm, message.encode())]
    if any(by_rank):
        texts = allgather_bytes(comm, trace.encode())
        first = next((r for r, text in enumerate(texts) if text), None)
        if first is not None:  # once is enough, and its trace is what belongs to its line
            raise Refused(f"rank {first}: {by_rank[first]}" if comm.size > 1 else message, texts[first].decode())
        if len(set(by_rank)) == 1:
            raise Refused(message)
        raise Refused("; ".join(f"rank {r}: {text}" for r, text in enumerate(by_rank) if text))
    return result  # type: ignore[return-value]


def check_equal(comm: Communicator, data: bytes, what: str, remedy: str) -> None:
    """Raise UserError on every rank, naming the ranks that differ from the majority, unless data is equal."""
    digests = allgather_bytes(comm, hashlib.blake2b(data, digest_size=16).digest())
    majority = max(digests, key=digests.count)
    odd = [str(rank) for rank, digest in zip(comm.ranks, digests, strict=True) if digest != majority]
    if odd:
        raise Refused(f"{what} differ on rank {', '.join(odd)} of {comm.size}: {remedy}")
