"""Wall seconds per phase of an update; what a phase does inside another counts for itself alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("rollout", "generate", "loss", "allreduce", "optimize", "evaluate", "write")


class Profile:
    """Wall seconds per phase since the last ``take``; threads that each have a profile say how many they are.

    >>> profile = Profile()
    >>> with profile("rollout"):
    ...     pass
    >>> sorted(profile.take()) == sorted(PHASES)
    True
    """

    def __init__(self, threads: int = 1) -> None:
        self._cpu_s = time.process_time if threads == 1 else time.thread_time  # of replicas, each its own thread's
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._inner_s: list[float] = []  # of phases inside those that are open
        self._not_counted_s = 0.0  # CPU seconds: communication waits by spinning

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        communicates = phase == "allreduce"
        start, cpu_start = time.perf_counter(), self._cpu_s() if communicates else 0.0
        self._inner_s.append(0.0)
        try:
            yield
        finally:
            took_s = time.perf_counter() - start
            self._seconds[phase] += took_s - self._inner_s.pop()
            if self._inner_s:
                self._inner_s[-1] += took_s
            if communicates:
                self._not_counted_s += self._cpu_s() - cpu_start

    def seconds(self, phase: str) -> float:
        """Wall seconds of one phase since the last ``take``."""
        return self._seconds[phase]

    def busy_s(self) -> float:
        """CPU seconds of this process since the last call, without the phase allreduce."""
        before, self._not_counted_s = self._not_counted_s, self._cpu_s()
        return self._not_counted_s - before

    def take(self) -> dict[str, float]:
        """Wall seconds of every phase since the last call."""
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds
