"""Where the threads of one process meet: one call on what each contributes, and each takes its part of the result."""

import threading
from collections.abc import Callable, Sequence
from typing import Any


class Rendezvous:
    """A meeting of num threads, numbered from 0."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._barrier = threading.Barrier(num)
        self._brought: list[Any] = [None] * num
        self._results: Sequence[Any] = ()
        self._error: BaseException | None = None

    def __call__(self, number: int, mine: Any, together: Callable[[list[Any]], Sequence[Any]]) -> Any:
        """This thread's part of together(what all brought, in order), which thread 0 calls.

        Raises on every thread what it raised, and BrokenBarrierError when a thread has left.
        """
        self._brought[number] = mine
        self._barrier.wait()
        if number == 0:
            try:
                self._results, self._error = together(list(self._brought)), None
            except BaseException as error:
                self._error = error
        self._barrier.wait()
        if self._error is not None:
            raise self._error
        return self._results[number]

    def leave(self) -> None:
        """Say that this thread will not come again: the others must not wait for it."""
        self._barrier.abort()
