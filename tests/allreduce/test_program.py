"""Ranks of a user's program that wait for one another say so, and not for ever (under mpirun: tests/test_api.py)."""

import threading
import time

import pytest

from distqtrl.allreduce import program, watchdog
from distqtrl.allreduce.communicator import Serial
from distqtrl.errors import UserError


class Alone(Serial):
    """Rank 3 of 4, of which the others do not come."""

    rank, size = 3, 4

    def arrival(self):
        return lambda: False


@pytest.fixture
def waiting(monkeypatch):
    monkeypatch.setattr(program, "_ranks", program.Ranks(Alone()))
    monkeypatch.setattr(program, "NOTE_S", 0.1)


def test_a_wait_in_vain_is_announced_and_ends(waiting, capfd):
    with pytest.raises(UserError, match=r"not all ranks called it: rank 3 waited 0\.3 s"), program.together("it", 0.3):
        pass
    assert capfd.readouterr().err == "distqtrl: rank 3 waits for the other ranks: every rank has to call it\n"
    with pytest.raises(UserError, match="an earlier it failed on rank 3 alone"), program.together("it", 0.3):
        pass


def test_two_threads_at_once_are_refused(waiting):
    def wait():
        with pytest.raises(UserError), program.together("it", 1.0):
            pass

    first = threading.Thread(target=wait)
    first.start()
    time.sleep(0.2)
    with pytest.raises(UserError, match="two threads at once"), program.together("it", 0.1):
        pass
    first.join()


def test_a_wait_inside_mpi_is_announced(monkeypatch, capfd):
    monkeypatch.setattr(watchdog, "NOTE_S", 0.1)
    done = watchdog.keeper(0, 60.0, "connecting", note="waits for the other ranks")
    time.sleep(0.5)
    done()
    assert capfd.readouterr().err == "distqtrl: rank 0 waits for the other ranks\n"


def test_threads_of_one_rank_take_turns(monkeypatch):
    monkeypatch.setattr(program, "_ranks", program.Ranks(Serial()))
    inside, most = [], []

    def work():
        with program.together("it", 1.0):
            inside.append(1)
            time.sleep(0.05)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
