"""A limit on how long a rank waits for the others: a hung rank or a cut network must not hold a job for ever."""

import fcntl
import os
import select
import signal
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

MEANING = "a rank hangs or the network is cut"
NOTE_S = 20.0  # of silence, before people are told what is waited for


class Watchdog:
    """Ends this process when the body of a ``with`` on it takes longer than the limit.

    The body waits inside a library that nothing can interrupt, hence the process; the launcher, which sees it end,
    ends the others.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.limit_s: float | None = None
        self._since: float | None = None
        self._thread: threading.Thread | None = None

    def limit(self, timeout_s: float | None) -> None:
        """Watch with this limit from now on; None: without one."""
        self.limit_s = timeout_s
        if timeout_s is not None and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        watched, waited_s = self._since, 0.0
        while True:
            limit_s, since = self.limit_s, self._since
            tick_s, began = min(1.0, (limit_s or 10) / 10), time.monotonic()
            time.sleep(tick_s)
            if limit_s is None or since is None or since != self._since:
                continue
            took_s = min(time.monotonic() - began, 2 * tick_s)  # in what goes beyond, this process was suspended
            waited_s = waited_s + took_s if since == watched else 0.0
            watched = since
            if waited_s < limit_s + _turn_s(self._rank):
                continue
            _say(self._rank, limit_s, f"{MEANING}; train --resume resumes from the last checkpoint, if one was saved")
            os._exit(1)


def keeper(rank: int, limit_s: float | None, doing: str, meaning: str = MEANING, note: str = "") -> Callable[[], None]:
    """Ends this process unless the function that is returned is called, or the process has ended, within the limit.

    For what holds the interpreter while it waits, so that no thread could: MPI's start and its end. A child process
    keeps the time. note: what it says, once, when NOTE_S have passed.
    """
    if limit_s is None:
        return lambda: None
    reading, writing = os.pipe()
    process = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            waits = [(limit_s + _turn_s(rank), "")]
            if note and limit_s > NOTE_S:
                waits = [(NOTE_S, note), (waits[0][0] - NOTE_S, "")]
            for wait_s, text in waits:
                if select.select([reading], [], [], wait_s)[0] or os.getppid() != process:
                    break
                if text:
                    say(f"rank {rank} {text}")
            else:
                _say(rank, limit_s, f"{meaning}, while {doing}")
                os.kill(process, signal.SIGKILL)
        finally:
            os._exit(0)
    os.close(reading)

    def done() -> None:
        os.close(writing)
        with suppress(ChildProcessError):  # a program that ignores SIGCHLD has none to wait for
            os.waitpid(child, 0)

    return done


def say(text: str) -> None:
    """A line on standard error; who says it goes on where nobody reads it any more: a launcher may have been killed."""
    with suppress(OSError):
        os.write(2, f"distqtrl: {text}\n".encode())


def until_read(fd: int) -> None:
    """Wait until the launcher has read what we wrote to this pipe: MPICH's drops the rest when it hears of an abort."""
    deadline, unread = time.monotonic() + 2, array("i", [1])
    with suppress(OSError):  # not a pipe: nobody has to read it
        while unread[0] and time.monotonic() < deadline:
            fcntl.ioctl(fd, termios.FIONREAD, unread)
            time.sleep(0.01)


def _turn_s(rank: int) -> float:
    """How long this rank waits for a lower one to speak: one message is enough, and the job ends with it.

    Where a host is crowded or a checkpoint's disk slow, ranks begin to wait seconds apart, and a launcher takes as
    long to end them.
    """
    return 10.0 * min(rank, 2)


def _say(rank: int, limit_s: float, what: str) -> None:
    say(f"rank {rank}: no word from the other ranks for {limit_s:g} s (allreduce.timeout_s): {what}")
    until_read(2)
