"""Signals reach the main thread even while it is blocked."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

AGAIN_S = 0.2

END = 0  # no signal has this number

_listening: list[int] = []  # the wakeup descriptor, while it is ours


@contextmanager
def heard(
    numbers: Iterable[signal.Signals],
    awaited: Callable[[signal.Signals], bool],
    in_vain: Callable[[signal.Signals, float], None] = lambda number, waited_s: None,
) -> Iterator[None]:
    """A thread sends these signals to the main thread, which has to be the caller, for as long as they are awaited.

    Python handles a signal between two instructions of the main thread. One that another thread got, or that came just
    before a system call, interrupts nothing, and would be handled when the call returns. Who has a wakeup descriptor
    already (asyncio) keeps it, and goes without.

    awaited: whether a signal that came has not been handled yet; in_vain: told again and again for how many seconds one
    has been sent, as to a main thread inside a library that nothing interrupts. The thread calls both.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = os.getpid()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    if before == -1:
        _listening.append(write)
    else:
        signal.set_wakeup_fd(before)
    main = threading.get_ident()

    def send(number: signal.Signals, waited_s: float) -> None:
        signal.pthread_kill(main, number)
        in_vain(number, waited_s)

    thread = threading.Thread(target=_send_again, args=(read, tuple(numbers), awaited, send), daemon=True)
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == process:  # not in a process that was forked from this one, where there is no such thread
            if before == -1:
                signal.set_wakeup_fd(-1)
                _listening.remove(write)
            with suppress(BlockingIOError):  # full: closing it has to do
                os.write(write, bytes([END]))  # not the end of the file: a process that was forked may hold it open
            os.close(write)
            thread.join()
            os.close(read)


def _send_again(
    read: int,
    numbers: tuple[signal.Signals, ...],
    awaited: Callable[[signal.Signals], bool],
    send: Callable[[signal.Signals, float], None],
) -> None:
    """Until END, or the end of the file."""
    since: dict[signal.Signals, float] = {}  # of those that came, when
    while (came := os.read(read, 64)) and END not in came:  # what is sent comes here, too, so that this is read again
        now = time.monotonic()
        since = {n: since.get(n, now) for n in numbers if (n in came or n in since) and awaited(n)}
        for number, first in since.items():
            send(number, now - first)
        if since:
            time.sleep(AGAIN_S)


def _forked() -> None:
    """A signal to a process that somebody forks comes to us by no descriptor."""
    if _listening:
        signal.set_wakeup_fd(-1)
        _listening.clear()


os.register_at_fork(after_in_child=_forked)
