"""The ranks of a program of the user's: connected at the first call that needs them, and kept for later ones.

Between calls every rank is free. A rank that ends with an error which the others do not have ends the job, as
``python -m mpi4py`` does: they would wait for it.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.connect import connect
from distqtrl.allreduce.watchdog import NOTE_S, say
from distqtrl.errors import UserError

POLL_S = 0.002


@dataclass
class Ranks:
    """The communicator of this process, whether its last call failed here alone, and what all ranks raised last."""

    comm: Communicator
    failed: bool = False
    shared: BaseException | None = None

    def leave(self) -> None:
        """At the end of the interpreter, before MPI's."""
        error = getattr(sys, "last_value", None)  # that ended the program
        alone = self.failed or (error is not None and error is not self.shared)
        if alone:
            code = getattr(error, "exit_code", 1)
            with suppress(SystemExit):
                self.comm.abort(code)
            os._exit(code)  # the launcher ends the others, and MPI's own end would wait for them
        self.comm.finish(0 if error is None else 1)


_ranks: Ranks | None = None
_one_call = threading.Lock()
_one_training = threading.RLock()  # threads take turns: torch's defaults and random state are the whole process's


@contextmanager
def together(calling: str, timeout_s: float | None) -> Iterator[Communicator]:
    """The communicator, once every rank has come here; for a function of ours that all of them have to call.

    timeout_s: how long to wait for the others, here and in the block. Raises UserError when some do not come; where
    the very first call waits in vain, inside MPI, the process ends with that line.
    """
    ranks = _connected(calling, timeout_s)
    if ranks.comm.size == 1:
        with _one_training:
            yield ranks.comm
        return
    if not _one_call.acquire(blocking=False):
        raise UserError(f"{calling} was called by two threads at once: ranks can do one thing at a time")
    try:
        _wait(ranks, calling, timeout_s)
        ranks.comm.limit(timeout_s)
        yield ranks.comm
    except Refused as error:
        ranks.shared = error
        raise
    except BaseException:
        ranks.failed = True
        raise
    finally:
        ranks.comm.limit(None)  # what a rank does by itself may take its time
        _one_call.release()


def _connected(calling: str, timeout_s: float | None) -> Ranks:
    global _ranks
    if _ranks is None:
        _ranks = Ranks(connect(timeout_s, calling))
        if _ranks.comm.size > 1:
            atexit.register(_ranks.leave)
    return _ranks


def _wait(ranks: Ranks, calling: str, timeout_s: float | None) -> None:
    """Raises UserError unless all ranks come within the limit."""
    rank = ranks.comm.rank
    if ranks.failed:
        raise UserError(f"an earlier {calling} failed on rank {rank} alone, and the others wait there: end the program")
    arrived, began, told = ranks.comm.arrival(), time.monotonic(), False
    while not arrived():
        waited_s = time.monotonic() - began
        if timeout_s is not None and waited_s > timeout_s:
            raise UserError(
                f"not all ranks called {calling}: rank {rank} waited {timeout_s:g} s for them (allreduce.timeout_s); "
                "call it on every rank"
            )
        if waited_s > NOTE_S and not told:
            told = True
            say(f"rank {rank} waits for the other ranks: every rank has to call {calling}")
        time.sleep(POLL_S)
