"""``python -m distqtrl`` and the ``distqtrl`` script: cap the threads before anything loads, then run."""

import atexit
import os
import signal
import sys
import threading
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends the process without a traceback

from distqtrl.cli import output, terminal
from distqtrl.training import stopping

PATIENCE_S = 2.0


def main() -> int:
    """Run the command line; returns the exit code."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # ranks share the cores; train.threads raises torch's own
    terminal.prepare()
    try:
        Path.cwd()
    except OSError as error:
        output.say(f"distqtrl: the working directory cannot be used ({error.strerror}): cd to one that exists")
        return 2
    training = sys.argv[1:2] in (["train"], ["search-bits"])
    if training:
        stopping.note_requeue()
    from distqtrl.cli.main import main as run

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    if lost := terminal.lost():
        files = training and not {"-h", "--help", "--print-config"} & set(sys.argv)
        output.say(f"distqtrl: {lost}; {'files are as they should be' if files else 'the output is incomplete'}")
        code = code if files else code or 1
    if training:
        stopping.ignore_requeue()
    _leave_threads(code)
    return code


def _leave_threads(code: int) -> None:
    """End the process where a thread of somebody's, which Python would wait for, goes on."""
    ours = threading.current_thread()
    others = [t for t in threading.enumerate() if t is not ours and not t.daemon and "PoolExecutor" not in t.name]
    for thread in others:
        thread.join(PATIENCE_S)
    if left := [thread.name for thread in others if thread.is_alive()]:
        output.say(
            f"distqtrl: thread {left[0]} went on after the work was done, and was ended with the process: let what "
            "began it, such as an environment, end it when it is closed"
        )
        atexit._run_exitfuncs()  # MPI's end among them
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
