"""One rank without MPI: the serial communicator, and what is told of a launcher."""

import os
import sys

import numpy as np
import pytest

from distqtrl.allreduce import connect as connecting
from distqtrl.allreduce.agreement import Refused, agreed, check_equal
from distqtrl.allreduce.communicator import Serial
from distqtrl.allreduce.connect import announced, connect
from distqtrl.allreduce.reductions import REDUCTIONS, allgather_bytes, gather_bytes
from distqtrl.errors import UserError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def raises(error):
    raise error


def test_without_a_launcher_one_rank_is_serial_and_needs_no_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    comm = connect()
    assert isinstance(comm, Serial)
    assert (comm.rank, comm.size) == (0, 1)


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_the_launcher_announces_the_number_of_ranks(monkeypatch, name):
    monkeypatch.setenv(name, "3")
    assert announced("size", without=1) == 3
    monkeypatch.setenv(name, "")
    assert announced("size", without=1) == 1


@pytest.mark.parametrize(("size", "rank", "found"), [("4", "3", 3), ("4", "0", 0), ("1", "3", 0), ("", "3", 0)])
def test_the_only_process_is_rank_0_whatever_is_left_over(monkeypatch, size, rank, found):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", size)
    monkeypatch.setenv("SLURM_PROCID", rank)
    assert announced("rank", without=0) == found


def test_ranks_without_mpi4py_are_told_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "3")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "distqtrl.allreduce.mpi", raising=False)
    with pytest.raises(UserError, match=r"launcher started 3 ranks, but MPI cannot be loaded .*distqtrl\[mpich\]"):
        connect()


def test_allgather_adds_the_axis_of_ranks():
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(Serial().allgather(x), x[np.newaxis])


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_sums_are_the_vector_itself(name):
    x_N = np.random.default_rng(0).normal(size=100)
    assert REDUCTIONS[name](Serial(), x_N).tobytes() == x_N.tobytes()


def test_bytes_of_any_length():
    assert allgather_bytes(Serial(), b"abc") == gather_bytes(Serial(), b"abc") == [b"abc"]
    assert allgather_bytes(Serial(), b"") == [b""]


def test_agreed_returns_the_result():
    assert agreed(Serial(), lambda: [1]) == [1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("no such thing: make one"), "no such thing: make one"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "Not a directory: a/b (give a name in a folder)"),
        (UserError("no file /tmp/\udcff: make one"), "no file /tmp/\\udcff: make one"),
    ],
)
def test_agreed_refuses_bad_input(error, message):
    with pytest.raises(Refused) as refused:
        agreed(Serial(), lambda: raises(error))
    assert str(refused.value) == message


def test_agreed_lets_a_bug_through():
    with pytest.raises(ZeroDivisionError):
        agreed(Serial(), lambda: 1 // 0)


def test_one_rank_is_equal_to_itself():
    check_equal(Serial(), b"x", "things", "mend them")


def test_abort_ends_the_process_with_its_code():
    with pytest.raises(SystemExit) as exit:
        Serial().abort(3)
    assert exit.value.code == 3


@pytest.mark.parametrize(
    ("own", "launchers", "kept"),
    [
        ({0, 1}, {0, 1}, [{1}]),  # rank 3 of 4
        ({0, 1}, {0, 1, 2}, []),  # bound by the launcher, which knows which ranks share these
        ({0, 1, 2}, {0, 1, 2}, []),  # uneven
        ({0}, {0}, []),
    ],
)
def test_crowded_ranks_stay_where_a_launcher_has_bound_them(monkeypatch, own, launchers, kept):
    for name, value in {"PMI_SIZE": "4", "MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "3"}.items():
        monkeypatch.setenv(name, value)
    for name in ("OMPI_MCA_mpi_yield_when_idle", "MPIR_CVAR_ENABLE_HEAVY_YIELD"):
        monkeypatch.setenv(name, "1")
    found = []
    monkeypatch.setattr(connecting, "_given", set())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: own if pid == 0 else launchers)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: found.append(cores))
    connecting._share_cores()
    assert found == kept
