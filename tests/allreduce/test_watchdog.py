"""A rank that waits too long ends, in a process of its own; also where nobody reads what it says."""

import os
import signal
import subprocess
import sys
import time

import pytest

WAITS = {
    "inside a library": (
        "import time\nfrom distqtrl.allreduce.watchdog import Watchdog\n"
        "watch = Watchdog(0)\nwatch.limit(0.2)\nwith watch():\n    time.sleep(600)",
        1,
    ),
    "inside a library, and it ends before it is this rank's turn to speak": (
        "import time\nfrom distqtrl.allreduce import watchdog\nwatchdog._turn_s = lambda rank: 1.5 * rank\n"
        "watch = watchdog.Watchdog(1)\nwatch.limit(0.2)\nwith watch():\n    time.sleep(0.8)\ntime.sleep(1.5)",
        0,
    ),
    "holding the interpreter": (
        "import time\nfrom distqtrl.allreduce.watchdog import keeper\n"
        "keeper(0, 0.2, 'connecting', note='waits')\ntime.sleep(600)",
        -9,
    ),
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("read", [True, False], ids=["read", "nobody reads"])
def test_a_wait_ends(wait, read):
    """A launcher that was killed leaves ranks whose standard error has no reader."""
    program, code = WAITS[wait]
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as errors:
        process = subprocess.Popen([sys.executable, "-c", program], stderr=writing)
        os.close(writing)
        if not read:
            errors.close()
        try:
            assert process.wait(timeout=60) == code
        finally:
            process.kill()
            process.wait()
        if read and code:
            assert b"rank 0: no word from the other ranks for 0.2 s (allreduce.timeout_s)" in errors.read()


SUSPENDED = {
    "inside a library": (
        "import time\nfrom distqtrl.allreduce.watchdog import Watchdog\nwatch = Watchdog(0)\nwatch.limit(6)\n"
        "with watch():\n    print(flush=True)\n    for _ in range(30):\n        time.sleep(0.1)"
    ),
    "holding the interpreter": (
        "import time\nfrom distqtrl.allreduce.watchdog import keeper\ndone = keeper(0, 6, 'connecting')\n"
        "print(flush=True)\nfor _ in range(30):\n    time.sleep(0.1)\ndone()"
    ),
}


@pytest.mark.parametrize("wait", SUSPENDED)
def test_time_in_which_a_job_is_suspended_is_not_waited(wait):
    """All of its processes are stopped for longer than the limit, as by a scheduler that lets another job pass."""
    command = [sys.executable, "-c", SUSPENDED[wait]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(7)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(timeout=60) == 0
