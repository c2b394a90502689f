"""The process in which a user's own task runs: a program of its own, which imports nothing but the standard library.

    python -P verifier.py FILE        one JSON object a line in, [name, argument, ...]; one out, {"value" or "error"}

What the task prints goes to standard error.
"""

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer calls of the module's functions until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module: Any = None
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            if name == "import":
                module = _imported(Path(arguments[0]))
                value: Any = [key for key, found in vars(module).items() if callable(found)]
            else:
                value = getattr(module, name)(*arguments)
            text = json.dumps({"value": value}, default=_number)
        except BaseException as error:  # SystemExit, too
            said = " ".join("".join(traceback.format_exception_only(error)).split())
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
            text = json.dumps({"error": said, "trace": "".join(traceback.format_list(frames)).rstrip()})
        answers.write(text + "\n")
        answers.flush()


def _number(found: Any) -> Any:
    """A number of NumPy or torch, or a fraction, as Python's; of anything else its type, which no answer is."""
    try:
        return float(found)
    except Exception:  # its own code
        return {"type": type(found).__name__}


def _imported(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import does, for dataclasses in it
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
