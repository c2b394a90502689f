"""CPU seconds of the calls of a function."""

import time
from collections.abc import Callable
from typing import Any


def watched(function: Callable[..., Any], taken_s: list[float]) -> Callable[..., Any]:
    """The function, which adds what each of its calls took to a list."""

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        found = function(*args, **kwargs)
        taken_s.append(time.process_time() - begin)
        return found

    return call
