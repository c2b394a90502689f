"""Signals that ask a run to stop. They are noted here and acted upon at the end of an update, by all ranks together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}  # 75 = requeue me (EX_TEMPFAIL)
GRACE_S = 5

_pending: list[signal.Signals] = []


class Interrupted(KeyboardInterrupt):
    """Somebody waited for the end of an update in vain."""

    def __init__(self, cause: signal.Signals) -> None:
        super().__init__(f"{cause.name}, and the update did not end within {GRACE_S} s")
        self.exit_code = EXIT_CODES[cause]


def note_requeue() -> None:
    """From here on SIGUSR1 is noted in place of ending the process: it may come while libraries are still loading."""
    signal.signal(signal.SIGUSR1, _note)


def ignore(code: int) -> None:
    """Nothing is left to save: no signal may replace this exit code any more.

    srun ends a step when its first rank leaves, and the time limit's notice may come while Python ends.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if code == EXIT_CODES[signal.SIGUSR1]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def collected() -> Iterator[list[signal.Signals]]:
    """The stop signals that arrived, SIGUSR1 since ``note_requeue``; none outside of the main thread, which gets them.

    Somebody waits behind INT and TERM: when the work does not end within GRACE_S, it is given up by Interrupted. Until
    one of them arrives, SIGALRM stays whoever's it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    alarm = signal.getsignal(signal.SIGALRM)
    old = {s: signal.signal(s, _note) for s in EXIT_CODES}
    try:
        yield _pending
    finally:
        if any(s != signal.SIGUSR1 for s in _pending):
            signal.alarm(0)
            _restore(signal.SIGALRM, alarm)
        _pending.clear()
        for s, previous in old.items():
            _restore(s, previous)


def _restore(number: signal.Signals, handler: Any) -> None:
    """Give a signal back; one that was not handled by Python (None) cannot be, and gets the default."""
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _note(number: int, _: FrameType | None) -> None:
    _pending.append(signal.Signals(number))
    if number != signal.SIGUSR1:
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(GRACE_S)


def _give_up(number: int, _: FrameType | None) -> None:
    raise Interrupted(_pending[0] if _pending else signal.SIGINT)
