"""A rank that is stopped (SIGSTOP), as by a debugger or a host that swaps: python stalling.py RANK WHEN ARGUMENT...

WHEN   seconds after its start; "connected", just after ranks are; "leaving", after all work, without arguments
"""

import atexit
import os
import signal
import sys
import threading


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def main(rank, when, *argv):
    mine = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == rank
    if mine and when not in ("connected", "leaving"):
        timer = threading.Timer(float(when), stop)
        timer.daemon = True
        timer.start()
    from distqtrl import __main__, cli
    from distqtrl.allreduce import communicator

    if when == "leaving":
        if mine:
            atexit.register(stop)  # runs after what connect registers
        communicator.connect(2.0)
        return 0

    def connect(timeout_s):
        comm = communicator.connect(timeout_s)
        if mine:
            stop()
        return comm

    if when == "connected":
        cli.connect = connect
    sys.argv[1:] = argv
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
