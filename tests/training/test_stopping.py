"""Stop signals, in processes of their own."""

import subprocess
import sys

import pytest

BLOCKED = """
import signal, threading, time
from distqtrl.training import stopping

stopping.GRACE_S = 1


def take():
    time.sleep(0.5)  # until the main thread sleeps
    signal.pthread_kill(threading.get_ident(), signal.{name})


elsewhere = threading.Thread(target=take)
began = time.monotonic()
try:
    with stopping.collected():
        elsewhere.start()
        time.sleep(60)
except stopping.Interrupted as error:
    print(error.exit_code, round(time.monotonic() - began))
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


def ran(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", "130"), ("SIGTERM", "143")])
def test_a_signal_that_another_thread_got_ends_a_blocked_main_thread(name, code):
    assert ran(BLOCKED.format(name=name)) == (0, [code, "2"], "")


def test_sigterm_cannot_undo_a_requeue_of_a_rank():
    assert ran(REQUEUED.format(ours=True)) == (0, ["here"], "")


def test_sigterm_keeps_its_meaning_for_a_program_that_trains():
    assert ran(REQUEUED.format(ours=False)) == (-15, [], "")
