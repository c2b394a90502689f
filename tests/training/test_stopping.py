"""Stop signals, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import runs

from distqtrl import signals
from distqtrl.training import stopping

FORKED = """
import os, time
from distqtrl.training import stopping

with stopping.collected():
    child = os.fork()
    if not child:
        time.sleep(60)  # holds what was open
        os._exit(0)
print("returned", flush=True)
os.kill(child, 9)
"""

BLOCKED = """
import signal, threading, time
from distqtrl.training import stopping

stopping.GRACE_S = 1


def take():
    time.sleep(0.5)  # until the main thread sleeps
    signal.pthread_kill(threading.get_ident(), signal.{name})


elsewhere = threading.Thread(target=take)
try:
    with stopping.collected():
        elsewhere.start()
        time.sleep(40)
    print("slept")
except stopping.Interrupted as error:
    print(error.exit_code)
"""

LOCKED = """
import ctypes, os, signal, threading
from distqtrl.training import stopping

stopping.GRACE_S = 1
stopping.note_requeue()
library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with stopping.collected():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.{first})).start()
    threading.Timer(1, os.kill, (os.getpid(), signal.{second})).start()
    {before}
    for _ in range(2):
        library.pthread_mutex_lock(lock)  # the second waits for ever, and no signal interrupts it
"""

REQUEUED = """
import os, signal
from distqtrl.training import stopping

if {ours}:
    stopping.note_requeue()
with stopping.collected():
    os.kill(os.getpid(), signal.SIGUSR1)
    stopping.requeued()
os.kill(os.getpid(), signal.SIGTERM)
print("here")
"""


HUNG_UP = """
import os, signal
from distqtrl.training import stopping

signal.signal(signal.SIGHUP, signal.{before})
with stopping.collected() as pending:
    os.kill(os.getpid(), signal.SIGHUP)
    print([s.name for s in pending], signal.getitimer(signal.ITIMER_REAL)[0])
"""


@pytest.mark.parametrize(("before", "seen"), [("SIG_DFL", "['SIGHUP']"), ("SIG_IGN", "[]")])
def test_a_terminal_that_closes_ends_a_run_unless_under_nohup(before, seen):
    assert ran(HUNG_UP.format(before=before)) == (0, [seen, "0.0"], "")
    assert stopping.EXIT_CODES[signal.SIGHUP] == 129


def ran(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", "130"), ("SIGTERM", "143")])
def test_a_signal_that_another_thread_got_ends_a_blocked_main_thread(name, code):
    assert ran(BLOCKED.format(name=name)) == (0, [code], "")


@pytest.mark.parametrize(
    ("first", "second", "before", "code"),
    [
        ("SIGINT", "SIGINT", "", 130),
        ("SIGUSR1", "SIGTERM", "", 143),
        ("SIGTERM", "SIGUSR1", "while len(stopping._pending) < 2: pass", 143),  # noted, and then it waits
    ],
)
def test_a_process_that_nothing_interrupts_is_given_up(first, second, before, code):
    """As one that waits in MPI for a rank that hangs."""
    left, _, error = ran(LOCKED.format(first=first, second=second, before=before))
    assert left == code
    name = signal.Signals(code - 128).name
    assert error.startswith(
        f"distqtrl: interrupted by {name}, and the work under way did not end within 1 s; files that "
    )


def test_who_asks_again_and_again_waits_no_longer():
    """Ctrl-C, pressed more often than the grace lasts, while an environment hangs."""
    pressed = "    for _ in range(90):\n        time.sleep(0.5)\n        os.kill"
    again = BLOCKED.replace("    signal.pthread_kill", pressed)
    again = again.replace("threading.get_ident(), ", "os.getpid(), ").replace("import signal", "import os, signal")
    again = again.replace("Thread(target=take)", "Thread(target=take, daemon=True)")
    assert ran(again.format(name="SIGINT")) == (0, ["130"], "")


def test_a_requeue_that_came_while_it_was_blocked_is_noted():
    """Batch scripts block it until Python listens."""
    signals = "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, {10}); os.kill(os.getpid(), 10)\n"
    listens = "from distqtrl.training import stopping; stopping.note_requeue()\n"
    assert ran(f"{signals}{listens}with stopping.collected() as pending: print(*pending)") == (0, ["10"], "")


def test_sigterm_cannot_undo_a_requeue_of_a_rank():
    assert ran(REQUEUED.format(ours=True)) == (0, ["here"], "")


def test_sigterm_keeps_its_meaning_for_a_program_that_trains():
    assert ran(REQUEUED.format(ours=False)) == (-15, [], "")


def ends_a_fork():
    """A signal to a process that an environment forked ends that one, and is none of ours."""
    with stopping.collected() as pending:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"here")
            time.sleep(40)
            os._exit(0)
        os.read(reading, 4)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        time.sleep(2 * signals.AGAIN_S)
        print(list(pending))


def takes_a_signal_over():
    """An environment that handles a signal itself gets it once, and nobody waits for us to note it."""
    with stopping.collected():
        signal.signal(signal.SIGTERM, lambda *_: print("mine"))
        signal.raise_signal(signal.SIGTERM)
        time.sleep(3 * signals.AGAIN_S)
    print("over")


def has_what_macos_has():
    del os.pipe2
    with stopping.collected() as pending:
        signal.raise_signal(signal.SIGUSR1)
        print(len(pending))


def collects_twice():
    """A search that trains: what was before both is given back."""
    with stopping.collected(), stopping.collected():
        pass
    print(signal.getsignal(signal.SIGTERM).name)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (ends_a_fork, ["-15", "[]"]),
        (takes_a_signal_over, ["mine", "over"]),
        (has_what_macos_has, ["1"]),
        (collects_twice, ["SIG_DFL"]),
    ],
)
def test_signals_are_ours_alone(environment, said):
    done = runs.forked(environment, timeout=30)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, said, "")


def test_a_process_that_was_forked_meanwhile_is_not_waited_for():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "returned\n"
