"""Hosts on one machine: namespaces with their own name, network, /dev/shm and IPC, joined by a bridge.

Processes keep their pid: what a rank writes as its pid can be killed from the test. The bridge (and with it the test)
is on the network, too, but only the hosts resolve each other's names. A test that is itself killed leaves nothing but
an idle bridge: ``ip link del dq0``.
"""

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
UNSHARE = ["unshare", "--net", "--uts", "--ipc", "--mount"]
# /sys as the new network sees it: UCX looks for its interfaces there
MOUNT = "mount -t sysfs sysfs /sys && mount -t tmpfs -o mode=1777 tmpfs /dev/shm"
GATEWAY = 254  # last byte of the bridge's address; h1 has 1, h2 has 2, ...
LAUNCHER = """#!/bin/sh
# ssh as mpiexec calls it: options, host, command; in the folder it is called from
while :; do
    case $1 in
    -[bcDEeFIiJLlmOopQRSWw]) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
host=${{1#*@}}
shift
case $host in
{cases}
*)
    echo "ssh: Could not resolve hostname $host: Name or service not known" >&2
    exit 255
    ;;
esac
exec {enter} /bin/sh -c 'cd "$0" && eval "$1"' "$PWD" "$*"
"""


@dataclass(frozen=True)
class Hosts:
    """Hosts that are up; ``pids`` names each host's holder, the process that keeps its namespaces."""

    pids: dict[str, int]
    addresses: dict[str, str]
    bridge: str
    gateway: str  # address of this machine as the hosts see it
    launcher: Path

    @property
    def names(self) -> list[str]:
        return list(self.pids)

    def shell(self, host: str) -> list[str]:
        """Words to put before a command that it runs on ``host``, in the folder it is called from."""
        inside = """/bin/sh -c 'cd "$0" && exec "$@"' "$PWD" "$@" """
        return ["/bin/sh", "-c", f"exec {_enter(self.pids[host])} {inside}", host]

    def mpiexec(self, slots: Mapping[str, int], argv: Sequence[object], options: Sequence[object] = ()) -> list[str]:
        """Command line, to be called here, that runs ``argv`` as ``slots[host]`` ranks on each host (MPICH)."""
        beside = Path(sys.executable).with_name("mpiexec")
        program = beside if beside.exists() else shutil.which("mpiexec") or "mpiexec"
        hosts = ",".join(f"{host}:{num}" for host, num in slots.items())
        # -iface: the proxies call back to the bridge's address, this machine's name may mean 127.0.0.1
        launch = ["-launcher", "ssh", "-launcher-exec", self.launcher, "-iface", self.bridge, "-hosts", hosts]
        return [str(word) for word in (program, *launch, "-n", sum(slots.values()), *options, *argv)]

    def cut(self, host: str) -> None:
        """Unplug the host; what runs on it goes on, without a network."""
        _ip(f"link set {self._port(host)} down")

    def mend(self, host: str) -> None:
        """Plug the host in again; when this is over, it is reached and answers."""
        _ip(f"link set {self._port(host)} up")
        deadline = time.monotonic() + 30
        while not _answers(self.addresses[host]):
            assert time.monotonic() < deadline, f"{host} does not answer"
            time.sleep(0.05)

    def kill(self, host: str) -> None:
        """Kill -9 everything on the host; the host itself can be used again.

        Its kernel still closes the connections: ``cut`` it first for the silence of a host that lost its power.
        """
        deadline = time.monotonic() + 60
        while found := self.processes(host):
            assert time.monotonic() < deadline, f"cannot be killed on {host}: {found}"
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs on the host, its holder excepted."""
        holder = self.pids[host]
        network = _network(holder)
        return [p for p in psutil.process_iter() if p.pid != holder and network == _network(p.pid) is not None]

    def _port(self, host: str) -> str:
        return _port(self.bridge, self.names.index(host) + 1)


def _answers(address: str) -> bool:
    """Whether a host refuses to be called where nobody listens: a packet came to it, and one back."""
    try:
        socket.create_connection((address, 9), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def hosts(folder: Path, num: int = 2) -> Iterator[Hosts]:
    """Hosts h1, h2, ... until the end of the block, with everything that runs on them."""
    bridge, subnet = _new_bridge()
    here = f"{subnet}.{GATEWAY}"
    addresses = {f"h{i}": f"{subnet}.{i}" for i in range(1, num + 1)}
    holders: dict[str, subprocess.Popen[str]] = {}
    up = None
    try:
        _ip(f"addr add {here}/24 dev {bridge}", f"link set {bridge} up")
        folder.mkdir(exist_ok=True)
        file = folder / "hosts"
        lines = ["127.0.0.1 localhost", f"{here} {platform.node()}", *(f"{a} {name}" for name, a in addresses.items())]
        file.write_text("\n".join(lines) + "\n")
        for name in addresses:
            holders[name] = _holder(name, file)
        for i, (name, holder) in enumerate(holders.items(), start=1):
            assert holder.stdout.readline() == "up\n", f"{name} does not start"
            port = _port(bridge, i)
            _ip(f"link add {port} type veth peer name eth0 netns {holder.pid}", f"link set {port} master {bridge} up")
            inside = [f"addr add {addresses[name]}/24 dev eth0", "link set lo up", "link set eth0 up"]
            _ip(*inside, f"route add default via {here}", inside=holder.pid)
        launcher = folder / "ssh"
        cases = "\n".join(f"{name}) pid={holder.pid} ;;" for name, holder in holders.items())
        launcher.write_text(LAUNCHER.format(cases=cases, enter=_enter("$pid")))
        launcher.chmod(0o755)
        up = Hosts({name: holder.pid for name, holder in holders.items()}, addresses, bridge, here, launcher)
        yield up
    finally:
        try:
            for name in holders if up else ():
                up.kill(name)
        finally:
            # a network goes some time after its last process, its cable would keep its name until then
            for i in range(1, num + 1):
                subprocess.run(["ip", "link", "del", _port(bridge, i)], capture_output=True)
            for holder in holders.values():
                holder.kill()
                holder.communicate()
            _ip(f"link del {bridge}")


@cache
def missing() -> str | None:
    """Why there can be no hosts on this machine, None when there can."""
    if os.geteuid() != 0:
        return "hosts are namespaces, and only root makes them"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"there is no {absent[0]}: apt-get install {TOOLS[absent[0]]}"
    links = "ip link add bridge0 type bridge && ip link add veth0 type veth peer name eth0"
    tried = subprocess.run([*UNSHARE, "sh", "-c", f"{links} && {MOUNT}"], capture_output=True, text=True)
    return f"no namespaces, bridges or mounts here: {tried.stderr.strip()}" if tried.returncode else None


def _new_bridge() -> tuple[str, str]:
    """A bridge and the first three bytes of its addresses, no other test's: the kernel gives a name only once."""
    for k in range(256):
        made = subprocess.run(["ip", "link", "add", f"dq{k}", "type", "bridge"], capture_output=True, text=True)
        if made.returncode == 0:
            return f"dq{k}", f"198.18.{k}"  # RFC 2544: addresses for tests, nobody's network
        if "File exists" not in made.stderr:
            break
    raise OSError(f"no bridge: {made.stderr}")


def _holder(name: str, hosts_file: Path) -> subprocess.Popen[str]:
    """The process that keeps a host's namespaces, until its standard input is closed or its parent gone."""
    script = (
        f"{MOUNT} && mount --bind {shlex.quote(str(hosts_file))} /etc/hosts && hostname {name} && echo up && exec cat"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*UNSHARE, "sh", "-c", script], cwd="/", start_new_session=True, **pipes)


def _enter(pid: object) -> str:
    return f"nsenter --target {pid} --net --uts --ipc --mount --"


def _port(bridge: str, i: int) -> str:
    return f"{bridge}h{i}"


def _ip(*commands: str, inside: int | None = None) -> None:
    argv = ["ip", "-batch", "-"]
    if inside is not None:
        argv = ["nsenter", "--target", str(inside), "--net", "--", *argv]
    done = subprocess.run(argv, input="\n".join(commands) + "\n", capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise OSError(f"ip {'; '.join(commands)}: {done.stderr}")


def _network(pid: int) -> int | None:
    """The network namespace of a process; None when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None
