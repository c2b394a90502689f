"""A private SLURM on one machine: munged, slurmctld and a slurmd for each node, with nothing in /etc.

It is up in a third of a second and takes everything down with it: daemons, steps and the tasks of its jobs.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

import psutil
from hosts import Hosts

PACKAGES = "slurmctld slurmd slurm-client munge"
PROGRAMS = ["munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "sinfo", "setpriv"]
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where Debian keeps the daemons
START_S = 120
ENDED = ["CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"]
LEFTOVERS = re.compile("PMI|OMPI|PRTE|MPI_LOCAL|SLURM|SBATCH|SRUN|SALLOC")  # of a launcher around the tests
FIELD = re.compile(r"(?<!\S)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)")


@dataclass(frozen=True)
class Slurm:
    """A cluster that is up. Commands run in ``folder`` and with ``env`` unless told otherwise."""

    folder: Path
    env: dict[str, str]
    nodes: list[str]

    def run(
        self, *argv: object, timeout: float = 120, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command of SLURM or any other; ``env`` comes on top of the cluster's."""
        command = [str(word) for word in argv]
        streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(
            command, env=self.env | dict(env or {}), cwd=cwd or self.folder, timeout=timeout, **streams
        )

    def submit(
        self,
        script: Path,
        *flags: object,
        args: Sequence[object] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> int:
        """Number of the job that ``sbatch *flags script *args`` makes."""
        return int(self._done("sbatch", "--parsable", *flags, script, *args, env=env, cwd=cwd).split(";")[0])

    def job(self, job_id: int | str) -> dict[str, str]:
        """What ``scontrol show job`` says; "12_3" is a task of an array, 12 the first one listed."""
        return self.tasks(job_id)[0]

    def tasks(self, job_id: int | str) -> list[dict[str, str]]:
        """A job's fields, or those of every task of an array (its waiting tasks can share one entry)."""
        text = self._done("scontrol", "show", "job", "--oneliner", job_id)
        return [dict(FIELD.findall(line)) for line in text.splitlines() if line.strip()]

    def state(self, job_id: int | str) -> str:
        return self.job(job_id)["JobState"]

    def wait(self, job_id: int | str, *states: str, timeout: float) -> dict[str, str]:
        """Wait until the job (all tasks of an array) is in one of the states, by default those of its end."""
        deadline = time.monotonic() + timeout
        while True:
            tasks = self.tasks(job_id)
            if all(task["JobState"] in (states or ENDED) for task in tasks):
                return tasks[0]
            if time.monotonic() > deadline:
                wanted = " or ".join(states) or "over"
                lines = [" ".join(f"{key}={value}" for key, value in task.items()) for task in tasks]
                raise AssertionError("\n".join([f"not {wanted} in {timeout} s:", *lines, self.logs()]))
            time.sleep(0.1)

    def cancel(self, job_id: int | str, *flags: object) -> None:
        """``scancel``; with flags such as ``--signal=USR1`` it only signals."""
        self._done("scancel", *flags, job_id)

    def logs(self, num: int = 20) -> str:
        """The last lines of every daemon's log."""
        return _tails(self.folder, num)

    def _done(self, *argv: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        done = self.run(*argv, env=env, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(map(str, argv))}: {done.stderr}\n{self.logs()}"
        return done.stdout


@contextmanager
def cluster(
    folder: Path,
    nodes: int = 2,
    cores: int = 4,
    port: int | None = None,
    in_hosts: Hosts | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[Slurm]:
    """A cluster with its configuration and logs in ``folder``, its sockets and spools in a short one in /tmp.

    port: the first of ``1 + nodes``, by default of a free block. in_hosts: one node in each of these hosts, whatever
    ``nodes``; else n1, n2, ... share this machine's name and network. options: on top of slurm.conf's lines.
    """
    with ExitStack() as stack:
        # a socket's path has 108 characters at most: munged and slurmstepd refuse longer ones
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        short.chmod(0o755)  # munged wants its socket to be reachable, its key is not
        names = in_hosts.names if in_hosts else [f"n{i}" for i in range(1, nodes + 1)]
        port = stack.enter_context(_free_ports(1 + len(names))) if port is None else port
        for name in names:
            for path in (short / "spool" / name, short / "tmp" / name):
                path.mkdir(parents=True)
        for path in (folder / "log", folder / "state"):
            path.mkdir(parents=True)
        conf = folder / "slurm.conf"
        settings = _settings(folder, short, port, in_hosts) | dict(options or {})
        lines = [f"{key}={value}" for key, value in settings.items()] + _nodes(names, cores, port, in_hosts)
        conf.write_text("\n".join(lines) + "\n")
        # said, not found out: slurmd ends where there is no /sys/fs/cgroup to look at
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

        env = {key: value for key, value in os.environ.items() if not LEFTOVERS.match(key)}
        env["SLURM_CONF"] = str(conf)
        env["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"  # ranks that wait leave the machine to those that do not
        if in_hosts is None:  # MPICH prefers the bridge of another test's hosts, and hangs when that is taken down
            env |= {"FI_SOCKETS_IFACE": "lo", "FI_TCP_IFACE": "lo", "UCX_NET_DEVICES": "lo"}
        slurm = Slurm(folder, env, names)
        daemons: list[subprocess.Popen[bytes]] = []
        stack.callback(_stop, folder, daemons)
        daemons.append(_start("munged", folder, env, *_munge(short)))
        _until((short / "munge").exists, "munged", folder, daemons)
        daemons.append(_start("slurmctld", folder, env, "-D"))
        # clients and slurmd that come before it listens try again a second later
        _until(lambda: _listens(port), "slurmctld", folder, daemons)
        for name in names:
            shell = in_hosts.shell(name) if in_hosts else []
            daemons.append(_start("slurmd", folder, env, "-D", "-N", name, shell=shell, log=f"slurmd.{name}"))
        _until(lambda: _idle(slurm), "the cluster", folder, daemons)
        yield slurm


def missing() -> str | None:
    """Why there can be no cluster on this machine, None when there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"there is no {absent[0]}: apt-get install {PACKAGES}" if absent else None


def _settings(folder: Path, short: Path, port: int, in_hosts: Hosts | None) -> dict[str, str]:
    user = getuser()
    return {
        "ClusterName": "private",
        "SlurmctldHost": f"{socket.gethostname().split('.')[0]}({in_hosts.gateway})" if in_hosts else "localhost",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={short}/munge,cred_expire=5",  # a requeued job waits that long: 120 s by default
        "CredType": "cred/munge",
        "SlurmctldPort": f"{port}",
        "SlurmctldPidFile": f"{folder}/state/slurmctld.pid",
        "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
        "SlurmdPidFile": f"{short}/spool/%n/pid",
        "SlurmdLogFile": f"{folder}/log/slurmd.%n.log",
        "SlurmdSpoolDir": f"{short}/spool/%n",
        "StateSaveLocation": f"{folder}/state",
        "TmpFS": f"{short}/tmp/%n",  # the nodes' sockets for PMI collide in a common one
        "SlurmdParameters": "config_overrides",  # more cores than the machine has
        "MpiDefault": "pmi2",
        "SwitchType": "switch/none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "JobCompType": "jobcomp/none",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "bf_interval=1,sched_interval=1",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "ReturnToService": "2",
        "JobRequeue": "1",
        # MPICH names its shared memory by the job: no other cluster's, now or before, as killed ranks leave theirs
        "FirstJobId": f"{1 + 1000 * secrets.randbelow(60_000)}",
        "MinJobAge": "86400",  # scontrol shows a job for a day after its end
        "InactiveLimit": "0",
        "SlurmctldDebug": "info",
        "SlurmdDebug": "info",
    }


def _nodes(names: list[str], cores: int, port: int, in_hosts: Hosts | None) -> list[str]:
    shape = f"CPUs={cores} Boards=1 SocketsPerBoard=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=4000"
    lines = []
    for i, name in enumerate(names, start=1):
        where = f"NodeAddr={in_hosts.addresses[name]}" if in_hosts else "NodeHostName=localhost NodeAddr=127.0.0.1"
        lines.append(f"NodeName={name} {where} Port={port + i} {shape} State=UNKNOWN")
    return [*lines, f"PartitionName=test Nodes={','.join(names)} Default=YES MaxTime=INFINITE State=UP"]


def _munge(short: Path) -> list[str]:
    key = short / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {"key-file": key, "socket": short / "munge", "pid-file": short / "munge.pid", "seed-file": short / "seed"}
    return ["--foreground", "--force", *(f"--{option}={path}" for option, path in files.items())]


def _start(
    program: str, folder: Path, env: dict[str, str], *argv: str, shell: Sequence[str] = (), log: str | None = None
) -> subprocess.Popen[bytes]:
    """A daemon in the foreground that does not outlive this process."""
    path = shutil.which(program, path=PATH)
    command = [*shell, "setpriv", "--pdeathsig", "KILL", "--", path, *argv]
    with (folder / "log" / f"{log or program}.start").open("w") as file:
        return subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _idle(slurm: Slurm) -> bool:
    states = slurm.run("sinfo", "--noheader", "--Node", "--format=%t")
    return states.returncode == 0 and states.stdout.split() == ["idle"] * len(slurm.nodes)


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _until(condition: Callable[[], bool], what: str, folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"{what} does not start, ended: {ended}\n{_tails(folder, 20)}")
        time.sleep(0.02)


def _tails(folder: Path, num: int) -> str:
    # what a daemon writes to its standard error is in its log, too, once it has one
    paths = [p for p in sorted((folder / "log").iterdir()) if p.suffix == ".log" or not p.with_suffix(".log").exists()]
    texts = {path.name: path.read_text(errors="replace").splitlines() for path in paths}
    return "\n".join(f"---- {name}\n" + "\n".join(lines[-num:]) for name, lines in texts.items() if lines)


def _stop(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Kill the daemons and everything they started: there is no state worth an orderly end.

    All of them are stopped before the first is killed, so that none loses the parent by which it is known.
    """
    stopped: set[psutil.Process] = set()
    while more := set(processes(folder)) - stopped:
        for process in more:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        stopped |= more
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for daemon in daemons:
        daemon.wait(timeout=60)
    deadline = time.monotonic() + 60
    while left := processes(folder):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.01)


def processes(folder: Path) -> list[psutil.Process]:
    """What belongs to the cluster in this folder, its jobs' tasks and the clients still waiting for it included."""
    me = os.getpid()
    alive = [p for p in psutil.process_iter(["ppid", "name", "environ", "status"]) if p.pid != me]
    alive = [p for p in alive if p.info["status"] != psutil.STATUS_ZOMBIE]
    pids = {p.pid for p in alive if (p.info["environ"] or {}).get("SLURM_CONF") == str(folder / "slurm.conf")}
    # a step's daemon writes its title over its environment, and its tasks can have any environment
    pids |= {p.pid for p in alive if p.info["name"] == "slurmstepd" and _logs_to(p, folder / "log")}
    while more := {p.pid for p in alive if p.info["ppid"] in pids} - pids:
        pids |= more
    return [p for p in alive if p.pid in pids]


def _logs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(Path(file.path).parent == folder for file in process.open_files())
    except psutil.Error:
        return False


@contextmanager
def _free_ports(num: int) -> Iterator[int]:
    """The first of ``num`` ports that nobody uses, kept from other clusters until the end of the block."""
    block = 64
    assert num <= block
    start = os.getpid() % 128
    for i in range(128):
        base = 20000 + (start + i) % 128 * block  # below the ports that the kernel gives to outgoing connections
        with ExitStack() as stack:
            try:
                # between cluster and cluster the name of an abstract socket decides, it goes with its process
                lock = stack.enter_context(socket.socket(socket.AF_UNIX))
                lock.bind(f"\0distqtrl-slurm-{base}")
                with ExitStack() as tried:
                    for port in range(base, base + num):
                        tried.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            yield base
            return
    raise OSError(f"no {num} free ports")
