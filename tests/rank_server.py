"""Ranks that start at once: mpirun starts a small client for each, a server that has loaded everything forks the rank.

    python rank_server.py SOCKET                the server; one for a whole session of tests
    python rank_server.py SOCKET ARGUMENTS...   in place of ``python ARGUMENTS...``; ends as the rank ends

The rank has the client's streams, environment, folder and connection to MPICH's launcher (PMI_FD). Its signals
reach the rank, which dies with it. The rank's process id is in the file SOCKET.d/TAG, because a fork's environment in
/proc is its server's.
"""

import array
import atexit
import ctypes
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
TAG = "DISTQTRL_TEST"


def client(path, argv):
    """Ask for the rank, pass signals on, and end as it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect(path)
        open_here = [0, 1, 2, *([int(os.environ["PMI_FD"])] if "PMI_FD" in os.environ else [])]
        held = list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        asked = {"argv": argv, "env": dict(os.environ), "cwd": str(Path.cwd()), "fds": open_here, "held": held}
        parcel = Path(f"{path}.d") / f"{os.getpid()}.json"
        parcel.write_text(json.dumps(asked))
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", open_here))
        link.sendmsg([str(parcel).encode()], [rights])
        for number in PASSED_ON:  # not before: the server would take a signal for what is asked
            signal.signal(number, lambda number, _: passed_on(link, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        status = int(link.recv(64) or b"9")
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def passed_on(link, number):
    with suppress(OSError):  # the rank has ended, and this process is about to
        link.send(b"%d" % number)


def load():
    """What trainings import, and the compiled kernels."""
    import matplotlib.figure  # noqa: F401
    import torch  # noqa: F401

    from distqtrl.circuit import statevector
    from distqtrl.circuit.ansatz import program
    from distqtrl.cli import main  # noqa: F401
    from distqtrl.config.stages import Qpu
    from distqtrl.training import loop, shared_qpu  # noqa: F401

    statevector.StateVector(program(1, []), Qpu())


def serve(path):
    """Fork a rank for every client. Returns what is to be run, in the rank; in the server never."""
    load()
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # of forks, too, until they have what their clients have
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(path)
    listening.listen(64)
    selector, links = selectors.DefaultSelector(), {}
    selector.register(listening, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    print("serves", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:  # the tests' process is gone
                for pid in links.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listening:
                link, _ = listening.accept()
                text, rights, *_ = link.recvmsg(4096, 1024)
                if not text:  # the client was killed before it asked
                    link.close()
                    continue
                asked = json.loads(Path(text.decode()).read_text())
                Path(text.decode()).unlink()
                received = array.array("i", rights[0][2])
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for each in (*links, link, listening):
                        each.close()
                    for fd in (woken, wake):
                        os.close(fd)
                    return asked, received
                for fd in received:
                    os.close(fd)
                with (Path(f"{path}.d") / asked["env"].get(TAG, "none")).open("a") as pids:
                    pids.write(f"{pid}\n")
                links[link] = pid
                selector.register(link, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                told = b""
                with suppress(ConnectionError):
                    told = key.fileobj.recv(64)
                os.kill(links[key.fileobj], int(told) if told else signal.SIGKILL)
                if not told:
                    selector.unregister(key.fileobj)
            else:
                with suppress(BlockingIOError):
                    os.read(woken, 1024)
        reap(selector, links)


def reap(selector, links):
    """Tell the clients of ranks that have ended how they ended."""
    for link, pid in list(links.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(OSError):
                link.send(b"%d" % status)
            with suppress(KeyError):
                selector.unregister(link)
            link.close()
            del links[link]


def become(asked, received):
    """The process that the client stands for, up to its program."""
    received = [os.dup(fd) if fd in asked["fds"] else fd for fd in received]
    for fd, wanted in zip(received, asked["fds"], strict=True):
        os.dup2(fd, wanted)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["held"])
    program, *words = asked["argv"]
    path = [entry for entry in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    if program in ("-m", "-c"):
        name, *words = words
        sys.argv, sys.path[:1] = [program, *words], [asked["cwd"], *path]
        if program == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[:1] = [program, *words], [str(Path(program).parent), *path]
        runpy.run_path(program, run_name="__main__")


def end(code):
    """End as Python does, but for what the server's modules would tidy up: that belongs to the server."""
    atexit._run_exitfuncs()
    if "mpi4py.MPI" in sys.modules and sys.modules["mpi4py.MPI"].Is_initialized():
        sys.modules["mpi4py.MPI"].Finalize()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    ctypes.CDLL(None).exit(code)  # MPICH tells its launcher in a handler of C's


if __name__ == "__main__":
    if len(sys.argv) > 2:
        client(sys.argv[1], sys.argv[2:])
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = serve(sys.argv[1])
    atexit._clear()
    try:
        become(*wanted)
    except SystemExit as leaving:
        end(leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code)))
    except BaseException:
        traceback.print_exc()
        end(1)
    end(0)
