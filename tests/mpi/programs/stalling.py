"""A rank that is stopped (SIGSTOP), as by a debugger or a host that swaps: python stalling.py RANK WHEN ARGUMENT...

WHEN   seconds after its start; "connected", just after ranks are; "leaving", after all work, without arguments
"""

import atexit
import os
import signal
import sys
import threading

from distqtrl.allreduce import connect as connect_module


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def main(rank, when, *argv):
    mine = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == rank
    if mine and when not in ("connected", "leaving"):
        timer = threading.Timer(float(when), stop)
        timer.daemon = True
        timer.start()
    from distqtrl import __main__
    from distqtrl.cli import main as cli

    if when == "leaving":
        if mine:
            atexit.register(stop)  # runs after what connect registers
        connect_module.connect(2.0)
        return 0

    def connect(timeout_s):
        comm = connect_module.connect(timeout_s)
        if mine:
            stop()
        return comm

    if when == "connected":
        cli.connect = connect
    sys.argv[1:] = argv
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
