"""A limit on how long a rank waits for the others: a hung rank or a cut network must not hold a job for ever."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watchdog:
    """Ends this process when the body of a ``with`` on it takes longer than the limit.

    The body waits inside a library that nothing can interrupt, hence the process; the launcher, which sees it end,
    ends the others.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._limit_s: float | None = None
        self._since: float | None = None
        self._thread: threading.Thread | None = None

    def limit(self, timeout_s: float | None) -> None:
        """Watch with this limit from now on; None for none."""
        self._limit_s = timeout_s
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
        while True:
            limit_s, since = self._limit_s, self._since
            time.sleep(min(1.0, (limit_s or 10) / 10))
            if limit_s is None or since is None or since != self._since or time.monotonic() - since < limit_s:
                continue
            if self._rank:
                time.sleep(1)  # one rank's words are enough, and the job ends with it, unless it is the one that hangs
            text = f"distqtrl: rank {self._rank}: no word from the other ranks for {limit_s:g} s (allreduce.timeout_s)"
            os.write(2, f"{text}: a rank hangs or the network is cut; resume from the last checkpoint\n".encode())
            os._exit(1)
