"""The checks of a site in their order: what each looks at, what it waits for, how long it may take, what to do."""

import functools
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from distqtrl.doctor import installation, run_folder, said, scheduler, trials
from distqtrl.doctor.launching import Site
from distqtrl.doctor.said import Said
from distqtrl.doctor.verdict import Status, Unanswered, Verdict, failed, limited, not_checked

RANKS_S = 60.0  # for the ranks of the probe to start and to say everything
FORMAT = 1  # of the JSON: a field is added, never changed


@dataclass(frozen=True)
class Check:
    """action: of the site, the folder of the checks, or what ranks said, by where it is in the tables.

    remedy: where the verdict has none of its own. needs: checks without whose "ok" or "warning" it says nothing.
    """

    action: Callable[..., Verdict]
    remedy: str
    needs: tuple[str, ...] = ()
    limit_s: float = 20.0


@dataclass(frozen=True)
class Result:
    """A verdict with its name, and how long it took."""

    name: str
    status: Status
    found: str
    remedy: str
    took_s: float


CLUSTER = ("scheduler",)
HOST = {
    "python": Check(installation.python, "install Python 3.11 or newer"),
    "packages": Check(installation.packages, "pip install distqtrl in this environment"),
    "mpi-library": Check(installation.mpi_library, installation.MPI_EXTRA, limit_s=30),
    "launcher": Check(
        installation.launcher, f"{installation.MPI_EXTRA}; name another launcher with --launcher or --mpirun"
    ),
    "one-mpi": Check(
        installation.one_mpi, "use the mpirun of the MPI that mpi4py loads, with one MPI per environment", limit_s=45
    ),
    "kernel-cache": Check(installation.kernel_cache, "set NUMBA_CACHE_DIR to a folder that can be written", limit_s=45),
    "home": Check(installation.home, installation.HOME),
    "scratch": Check(installation.scratch, "set TMPDIR to a folder that can be written and has 100 MiB"),
    "scheduler": Check(scheduler.scheduler, "ask the site why its commands do not answer", limit_s=40),
    "srun-plugin": Check(scheduler.plugin, "--launcher mpirun, or another MPI: srun --mpi=list", CLUSTER, 40),
    "requeue": Check(scheduler.requeue, "sbatch --requeue, as `distqtrl slurm` has it", CLUSTER, 40),
    "notice": Check(
        scheduler.notice, "#SBATCH --signal=USR1@120 (B:USR1@120 with mpirun), as `distqtrl slurm` has it", CLUSTER
    ),
}
FOLDER = {
    "space": Check(run_folder.space, "remove old runs, or another --train.directory"),
    "inodes": Check(run_folder.inodes, "remove files, or another --train.directory"),
    "write": Check(run_folder.write, "make room on it, or another --train.directory"),
    "rename": Check(
        run_folder.rename, "a --train.directory on a filesystem that replaces a file in one step", ("write",)
    ),
    "fsync": Check(run_folder.flush, "a --train.directory on a filesystem that flushes", ("write",), limit_s=30),
    "lock": Check(
        run_folder.lock, "a --train.directory on a filesystem with locks (Lustre: mount it with flock)", ("write",)
    ),
}
STARTED, MET, SHARED = ("ranks-start",), ("ranks-connect",), ("ranks-connect", "write")
RANKS = {
    "ranks-start": Check(said.start, "see what the launcher says; --launcher or --mpirun name another"),
    "pmi": Check(said.pmi, "use the launcher of the MPI that mpi4py loads; for srun, --mpi=pmi2 or pmix", STARTED),
    "signals-free": Check(said.signal_masks, "start the job without nohup, trap '' or a wrapper that blocks", STARTED),
    "ranks-connect": Check(said.connection, "use the launcher of the MPI that mpi4py loads", STARTED),
    "versions": Check(
        said.versions, "give every host the same environment, on a shared filesystem or in an image", MET
    ),
    "binding": Check(said.binding, "srun --cpus-per-task=1 --ntasks=N; mpirun --bind-to none", MET),
    "threads": Check(said.threads, "export OMP_NUM_THREADS=1", MET),
    "cpus": Check(said.cpus, "ask for as many CPUs as ranks", MET),
    "memory": Check(said.memory, "ask for 1 GiB or more per rank: distqtrl slurm --memory", MET),
    "shared-memory": Check(
        said.shared_memory, "enlarge /dev/shm (docker --shm-size=256m), or fewer ranks per host", MET
    ),
    "limits": Check(said.limits, "ulimit", MET),
    "reductions": Check(said.reductions, "try another MPI, and report this one", MET),
    "signal-to-self": Check(said.own_signal, "try another MPI, and report this one", MET),
    "clocks": Check(said.clocks, "ask the site to keep the hosts' clocks by NTP", MET),
    "file-times": Check(said.stamps, "ask the site to keep file servers' and hosts' clocks by NTP", SHARED),
    "visible": Check(said.visible, "a --train.directory that all hosts share", SHARED),
    "lock-of-ranks": Check(
        said.locks, "a --train.directory whose locks hold between hosts (Lustre: flock, not localflock)", SHARED
    ),
}
TRAIN_S = trials.START_S + trials.GONE_S + 10
TRIALS = {
    "training": Check(trials.training, "see the message; the same by hand: distqtrl train cartpole", SHARED, TRAIN_S),
    "kill-and-resume": Check(
        trials.killed, "srun --kill-on-bad-exit=1; tell us what was different", ("training",), 2 * TRAIN_S
    ),
    "stop-signal": Check(
        trials.stopped, "let the batch script send it: --signal=B:USR1@120 and a trap", SHARED, TRAIN_S
    ),
    "time-limit": Check(scheduler.time_limit, "see docs/hpc.md, Preemption; the job's log says more", ("write",), 180),
}
CHECKS = HOST | FOLDER | RANKS | TRIALS


def results(site: Site, limit_s: float, only: Collection[str] = ()) -> Iterator[Result]:
    """One result after the other, all of them within so many seconds; ``only`` of these, and of what they need."""
    deadline = time.monotonic() + limit_s
    wanted = _with_needs(only) if only else set(CHECKS)
    verdicts: dict[str, Verdict] = {}
    place, told = _Place(site.directory), _Asked(site, deadline)
    try:
        for name in (name for name in CHECKS if name in wanted):
            began = time.monotonic()
            verdict = _verdict(name, site, place, told, verdicts, deadline)
            verdicts[name] = verdict
            remedy = verdict.remedy or (CHECKS[name].remedy if verdict.status in ("warning", "failed") else "")
            yield Result(name, verdict.status, verdict.found, remedy, round(time.monotonic() - began, 3))
    finally:
        place.remove()


def _with_needs(names: Collection[str]) -> set[str]:
    needs = {need for name in names for need in CHECKS[name].needs}
    return set(names) | (_with_needs(needs) if needs else set())


def _verdict(
    name: str, site: Site, place: "_Place", told: "_Asked", verdicts: dict[str, Verdict], deadline: float
) -> Verdict:
    check = CHECKS[name]
    missing = next((need for need in check.needs if verdicts[need].status in ("failed", "not checked")), None)
    if missing:
        return not_checked(f"{missing}: {verdicts[missing].status}")
    limit_s = min(check.limit_s, deadline - time.monotonic())
    if limit_s < 1:
        return not_checked("there was no time left: --limit")
    try:
        if name in RANKS:
            return check.action(told(place))
        action = functools.partial(_action, name, site, place, limit_s)
        return Verdict(**limited(action, limit_s))
    except Unanswered as error:
        return failed(str(error))


def _action(name: str, site: Site, place: "_Place", limit_s: float) -> dict[str, Any]:
    """The verdict of a check that is no rank's, in a process of its own."""
    action = CHECKS[name].action
    if name in HOST:
        return asdict(action(site))
    folder = place.made()
    if name in FOLDER:
        return asdict(action(folder))
    if name == "time-limit":
        return asdict(action(site, folder, limit_s - 5))
    runs = {"training": ["whole"], "kill-and-resume": ["killed", "whole"], "stop-signal": ["stopped"]}[name]
    return asdict(action(site, *(folder / run for run in runs)))


class _Place:
    """A folder of the checks' own in the run directory, made when it is first needed; a filesystem may hang."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.folder = directory, directory / f"site-check-{uuid.uuid4().hex[:8]}"
        self._new = False
        with suppress(Unanswered):
            self._new = not limited(directory.exists, 20)

    def made(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def remove(self) -> None:
        def action() -> None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._new:
                with suppress(OSError):
                    self._directory.rmdir()

        with suppress(Unanswered):
            limited(action, 20)


class _Asked:
    """What the ranks say, asked for once, when it is first needed."""

    def __init__(self, site: Site, deadline: float) -> None:
        self._site, self._deadline = site, deadline
        self._said: Said | None = None

    def __call__(self, place: _Place) -> Said:
        if self._said is None:
            limit_s = max(1.0, min(RANKS_S, self._deadline - time.monotonic() - 5))

            def ask() -> dict[str, Any]:
                with suppress(OSError):  # what "write" is for
                    place.made()
                return said.asked(self._site, place.folder, limit_s)

            try:
                self._said = Said(**limited(ask, limit_s + 10))
            except Unanswered as error:
                self._said = Said(self._site.ranks, last=str(error))
        return self._said


def as_json(site: Site, found: list[Result], host: str, took_s: float) -> dict[str, Any]:
    """All results as JSON has them; docs/hpc.md names the fields."""
    counts = {status: sum(result.status == status for result in found) for status in get_args(Status)}
    return {
        "format": FORMAT,
        "status": "failed" if counts["failed"] else "warning" if counts["warning"] else "ok",
        "host": host,
        "ranks": site.ranks,
        "launcher": site.starts,
        "directory": str(site.directory),
        "took_s": round(took_s, 3),
        "counts": counts,
        "checks": [asdict(result) for result in found],
    }
