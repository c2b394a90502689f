"""Where a command's words go."""

from collections.abc import Callable


def _aside(as_json: bool) -> Callable[[str], None]:
    """Where a command's progress goes: nowhere when its output is for a program."""
    return (lambda text: None) if as_json else (lambda text: print(text, flush=True))
