"""Signals that ask a run to stop. They are noted here, and acted upon by all ranks together.

That is at the end of an update, or between two steps of the final evaluation.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from distqtrl import signals
from distqtrl.allreduce.watchdog import say, until_read
from distqtrl.errors import interrupted

EXIT_CODES = {  # 75 = requeue me (EX_TEMPFAIL)
    **{signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75},
    signal.SIGHUP: 129,  # the terminal is gone
}
PATIENT = (signal.SIGUSR1, signal.SIGHUP)  # nobody waits for the end of the update
GRACE_S = 5

_pending: list[signal.Signals] = []
_process = {"ours": False, "requeued": False}
_before: list[dict[signal.Signals, Any]] = []  # whose the stop signals were, while they are noted


class Interrupted(KeyboardInterrupt):
    """Somebody waited in vain for the end of an update, or of what comes before the first or after the last."""

    def __init__(self, cause: signal.Signals) -> None:
        super().__init__(f"{cause.name}, and the work under way did not end within {GRACE_S} s")
        self.exit_code = EXIT_CODES[cause]


class Stopped(Exception):
    """The ranks leave what is under way, together: one of them was asked to by this signal."""

    def __init__(self, cause: signal.Signals) -> None:
        super().__init__(cause.name)
        self.cause = cause


def heed(pending: Sequence[signal.Signals]) -> None:
    """Raise Stopped when a signal is pending."""
    if pending:
        raise Stopped(pending[0])


def note_requeue() -> None:
    """From here on SIGUSR1 is noted in place of ending the process: it may come while libraries are still loading.

    Batch scripts start ranks with SIGUSR1 blocked, so that one which came before Python ran is noted now.
    """
    _process["ours"] = True
    signal.signal(signal.SIGUSR1, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def requeued() -> None:
    """The ranks have agreed to stop for a requeue: where this process is a rank alone, SIGTERM cannot undo that.

    A launcher, such as srun, ends all ranks when the first one has left, which may be while another one still ends.
    """
    _process["requeued"] = _process["ours"]


def ignore_requeue() -> None:
    """Nothing is left to save: the time limit's notice, which may come while Python ends, replaces no exit code."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


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
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    old = {s: signal.signal(s, _note) for s in EXIT_CODES if not (s == signal.SIGHUP and nohup)}
    _before.append(old)
    try:
        with signals.heard((*EXIT_CODES, signal.SIGALRM), _awaited, _unheard):
            yield _pending
    finally:
        if any(s not in PATIENT for s in _pending):
            signal.setitimer(signal.ITIMER_REAL, 0)
            _restore(signal.SIGALRM, alarm)
        _pending.clear()
        if _process["requeued"]:
            old[signal.SIGTERM] = signal.SIG_IGN
        if _before:  # a process that was forked meanwhile has given them back
            _give_back(_before.pop())


def _awaited(number: signal.Signals) -> bool:
    """Whether a signal that came is still to be noted. Who takes one over, as a simulator may, gets it once."""
    if number == signal.SIGALRM:
        return signal.getsignal(number) is _give_up and signal.getitimer(signal.ITIMER_REAL)[0] > 0
    return number not in _pending and signal.getsignal(number) is _note


def _unheard(number: signal.Signals, waited_s: float) -> None:
    """End a process of ours that waits in MPI, say, for a rank that hangs: no exception reaches it there."""
    patience_s = 1 if number == signal.SIGALRM else GRACE_S + 1
    if not _process["ours"] or number in PATIENT or waited_s < patience_s:
        return
    error = _cause() if number == signal.SIGALRM else Interrupted(number)
    say(interrupted(error))
    until_read(2)
    os._exit(error.exit_code)


def _give_back(old: dict[signal.Signals, Any]) -> None:
    for number, handler in old.items():
        _restore(number, handler)


def _forked() -> None:
    """A process that an environment forks is none of ours: a signal ends it."""
    if _before:
        _give_back(_before[0])
        _before.clear()
        _pending.clear()


os.register_at_fork(after_in_child=_forked)


def _restore(number: signal.Signals, handler: Any) -> None:
    """Give a signal back; one that was not handled by Python (None) cannot be, and gets the default."""
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _note(number: int, _: FrameType | None) -> None:
    awaited = any(s not in PATIENT for s in _pending)  # who asks once more waits no longer for it
    _pending.append(signal.Signals(number))
    if number not in PATIENT and not awaited:
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S, signals.AGAIN_S)  # again: the first may interrupt nothing


def _give_up(number: int, _: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise _cause()


def _cause() -> Interrupted:
    return Interrupted(_pending[0] if _pending else signal.SIGINT)
