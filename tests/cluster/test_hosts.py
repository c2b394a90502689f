import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import hosts
import psutil
import pytest
from needs import need

RANKS = """
import json, platform
from mpi4py import MPI
world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
seen = world.gather([platform.node(), node.size])
if world.rank == 0:
    print(json.dumps(seen))
"""
SERVER = """
import socket
with socket.create_server(("", 2000)) as server:
    print("listens", flush=True)
    while True:
        server.accept()[0].close()
"""
CLIENT = "import socket, sys; socket.create_connection((sys.argv[1], 2000), timeout=3).close()"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    need(hosts.missing())
    with hosts.hosts(tmp_path_factory.mktemp("hosts")) as up:
        yield up


@pytest.fixture
def start(two):
    """start(host, code): a Python program on a host; returns when it has printed a line."""
    started = []

    def _start(host, code):
        command = [*two.shell(host), sys.executable, "-c", code]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        started[-1].stdout.readline()
        return started[-1]

    yield _start
    for host in two.names:
        two.kill(host)
    for process in started:
        process.communicate()


def test_ranks_on_two_hosts_share_memory_only_with_their_own(two, tmp_path):
    command = two.mpiexec({"h1": 2, "h2": 2}, [sys.executable, "-c", RANKS])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["h1", 2], ["h1", 2], ["h2", 2], ["h2", 2]]


@pytest.mark.parametrize("through", ["shell", "launcher"])
def test_a_command_runs_on_its_host_in_the_folder_it_is_called_from(two, through, tmp_path):
    words = ["sh", "-c", 'uname -n; pwd; ls /dev/shm /sys/class/net; echo "$1"', "sh", "a  b"]
    if through == "shell":
        command = [*two.shell("h2"), *words]
    else:
        command = [two.launcher, "-x", "-l", "root", "root@h2", *(f"'{word}'" for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.split("\n") == [
        "h2",
        str(tmp_path),
        "/dev/shm:",
        "",
        "/sys/class/net:",
        "eth0",
        "lo",
        "a  b",
        "",
    ]


def test_a_host_that_is_cut_off_can_be_mended(two, start):
    start("h2", SERVER)

    def connects(*shell):
        command = [*shell, sys.executable, "-c", CLIENT, "h2" if shell else two.addresses["h2"]]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    assert connects(*two.shell("h1"))
    assert connects()  # from this machine
    two.cut("h2")
    assert not connects(*two.shell("h1"))
    two.mend("h2")
    assert connects(*two.shell("h1"))


def test_kill_ends_everything_on_one_host(two, start):
    code = "import subprocess, time; subprocess.Popen(['sleep', '60'], env={}); print(flush=True); time.sleep(60)"
    here, there = start("h1", code), start("h2", code)
    assert len(two.processes("h1")) == 2
    two.kill("h1")
    assert two.processes("h1") == []
    assert here.wait(timeout=60) == -9
    assert there.poll() is None
    assert len(two.processes("h2")) == 2
    assert subprocess.run([*two.shell("h1"), "true"]).returncode == 0


def test_nothing_is_left_after_an_exception(tmp_path):
    need(hosts.missing())
    with suppress(ZeroDivisionError), hosts.hosts(tmp_path, num=3) as three:
        assert three.names == ["h1", "h2", "h3"]
        links = [Path("/sys/class/net", three.bridge), *Path("/sys/class/net").glob(f"{three.bridge}h*")]
        running = subprocess.Popen([*three.shell("h3"), "sh", "-c", "setsid sleep 60 & setsid sleep 60"], env={})
        while len(three.processes("h3")) < 3 and running.poll() is None:
            time.sleep(0.01)
        left = [*three.processes("h3"), *map(psutil.Process, three.pids.values())]
        raise ZeroDivisionError
    assert running.wait(timeout=60) == -9
    assert len(links) == 4
    assert [link for link in links if link.exists()] == []
    assert [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
