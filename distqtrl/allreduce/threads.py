"""Several ranks in one process (qpu.replicas): K threads with a communicator each, ranks r K to r K + K - 1 of R K.

A thread runs the program of a rank. What makes them worth hosting together is a device that runs K circuits as one
batch (``training.shared_qpu``); Python's part of their work takes turns.
"""

import threading
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from distqtrl.allreduce.communicator import Communicator
from distqtrl.allreduce.rendezvous import Rendezvous

Array = npt.NDArray[np.float64]
T = TypeVar("T")
Result = TypeVar("Result")


class Member:
    """The communicator of one thread of this process."""

    survives = False

    def __init__(self, process: Communicator, meet: Rendezvous, number: int) -> None:
        self._process, self._meet, self._number = process, meet, number
        self.rank, self.size = process.rank * meet.num + number, process.size * meet.num
        self.ranks: Sequence[int] = range(self.size)

    @property
    def received(self) -> int:
        """Bytes that this process was sent by others."""
        return self._process.received

    def allgather(self, x: np.ndarray) -> np.ndarray:
        def together(parts: list[np.ndarray]) -> list[np.ndarray]:
            return [self._process.allgather(np.stack(parts)).reshape(self.size, *x.shape)] * len(parts)

        gathered: np.ndarray = self._meet(self._number, x, together)
        return gathered

    def gather(self, x: np.ndarray) -> np.ndarray | None:
        def together(parts: list[np.ndarray]) -> list[np.ndarray | None]:
            gathered = self._process.gather(np.stack(parts))
            whole = None if gathered is None else gathered.reshape(self.size, *x.shape)
            return [whole, *[None] * (len(parts) - 1)]

        mine: np.ndarray | None = self._meet(self._number, x, together)
        return mine

    def allreduce_sum(self, x_V: Array) -> Array:
        def together(parts: list[Array]) -> list[Array]:
            return [self._process.allreduce_sum(np.sum(parts, axis=0))] * len(parts)

        total: Array = self._meet(self._number, x_V, together)
        return total

    def exchange(self, x_V: Array, partner: int) -> Array:
        part: Array = self.allgather(x_V)[partner]
        return part

    def subset(self, ranks: Sequence[int]) -> Communicator:
        raise NotImplementedError("the threads of one process all speak with each other")

    def arrival(self) -> Callable[[], bool]:
        raise NotImplementedError("processes meet before they have replicas")

    def limit(self, timeout_s: float | None) -> None:
        self._process.limit(timeout_s)

    def shrink(self) -> list[int]:
        raise NotImplementedError("a lost process takes all its threads with it")

    def abort(self, code: int) -> NoReturn:
        self._process.abort(code)

    def finish(self, code: int) -> None:
        self._process.finish(code)

    def describe(self) -> dict[str, str]:
        return self._process.describe()


def members(process: Communicator, meet: Rendezvous) -> Sequence[Communicator]:
    """The communicators of this process's threads; the process's own where there is one thread."""
    if meet.num == 1:
        return [process]
    return [Member(process, meet, number) for number in range(meet.num)]


def each(items: Sequence[T], body: Callable[[T], Result], meetings: Sequence[Rendezvous]) -> list[Result]:
    """body(item) of every item, each in a thread; raises what the first one that failed raised.

    meetings: where the others would wait for one that failed.
    """
    if len(items) == 1:
        return [body(items[0])]
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = body(items[number])
        except BaseException as error:
            errors.append(error)
            for meet in meetings:
                meet.leave()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return [results[number] for number in range(len(items))]
