"""What tests of several folders ask for: a tool that must be there, a thing that must happen."""

import os
import time

import pytest


def need(reason):
    """Skip where a tool is missing (None: none is); fail in CI, which has them all."""
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def soon(condition, timeout):
    """Whether it holds within so many seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
