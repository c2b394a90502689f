"""What a run leaves behind while it trains: metrics.jsonl, TensorBoard events, a progress bar, a profile, versions.

Only rank 0 writes; the decision is made in here, so no caller asks for its rank.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from pydantic import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from distqtrl import reading, schema
from distqtrl.config import UserError
from distqtrl.schema import Count, Record, Several, Word

PACKAGES = (
    "distqtrl",
    "torch",
    "torch-geometric",
    "gymnasium",
    "numba",
    "numpy",
    "mpi4py",
    "mpich",
    "pennylane",
    "pennylane-lightning",
    "qiskit-aer",
    "qiskit-ibm-runtime",
)
PHASES = ("rollout", "generate", "loss", "allreduce", "optimize", "evaluate", "write")
PLAIN_EVERY_S = 2.0
EVENTS_EVERY_S = 0.05  # TensorBoard shows no more, and an update of whole episodes may take a few milliseconds


class Metrics(Record):
    """A line of metrics.jsonl, as far as anything reads it; what it does not tell is unknown, not something else."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    update: Count
    env_steps: Count
    return_mean: float | None
    wall_s: float
    profile_s: dict[Word, float]
    ranks: Several | None = None
    episodes: Count | None = None
    return_smoothed: float | None = None
    cpu_s: float | None = None
    entropy: float | None = None
    acting_entropy: float | None = None
    noisy_layers: float | None = None
    validation_return: float | None = None
    agent_returns: dict[Word, float] | None = None


class Profile:
    """Wall seconds per phase since the last ``take``; threads that each have a profile say how many they are.

    >>> profile = Profile()
    >>> with profile("rollout"):
    ...     pass
    >>> sorted(profile.take()) == sorted(PHASES)
    True
    """

    def __init__(self, threads: int = 1) -> None:
        self._cpu_s = time.process_time if threads == 1 else time.thread_time  # of replicas, each its own thread's
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._not_counted_s = 0.0  # CPU seconds: communication waits by spinning

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        communicates = phase == "allreduce"
        start, cpu_start = time.perf_counter(), self._cpu_s() if communicates else 0.0
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start
            if communicates:
                self._not_counted_s += self._cpu_s() - cpu_start

    def seconds(self, phase: str) -> float:
        """Of one phase since the last ``take``."""
        return self._seconds[phase]

    def busy_s(self) -> float:
        """CPU seconds of this process since the last call, without the phase allreduce."""
        before, self._not_counted_s = self._not_counted_s, self._cpu_s()
        return self._not_counted_s - before

    def take(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


class Recorder:
    """Writes one line of metrics per update. On ranks other than 0 every method does nothing.

    Raises UserError when another process has a recorder in this directory.
    """

    def __init__(self, run: Path, rank: int, first_update: int) -> None:
        self._active = rank == 0
        if not self._active:
            return
        from tensorboard.summary import Writer  # only where it is used: it is slow to import

        path = run / "metrics.jsonl"
        self._lock = locked(run / "lock")
        keep_updates(path, first_update)
        self._file = path.open("a")
        self._events = Writer(str(run / "tensorboard"))
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task, self._last_line = TaskID(0), 0.0
        self._unwritten: dict[str, Any] = {}
        self._last_events = 0.0
        if self._console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()

    def write(self, metrics: dict[str, Any], done: float) -> None:
        """One update: a line of JSON, TensorBoard scalars, the progress bar; done is the spent part of the budget."""
        if not self._active:
            return
        with self._named_errors():
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
            self._unwritten = metrics
            if time.monotonic() - self._last_events > EVENTS_EVERY_S:
                self._write_events()
        self._show(metrics, done)

    def _write_events(self) -> None:
        for key, value in _scalars(self._unwritten):
            self._events.add_scalar(key, value, step=self._unwritten["env_steps"])
        self._unwritten, self._last_events = {}, time.monotonic()

    def sync(self) -> None:
        """Flush metrics and events to the disk, so that no later checkpoint is ahead of them."""
        if self._active:
            with self._named_errors():
                os.fsync(self._file.fileno())
                self._events.flush()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Errors of open files do not say which file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None

    def _show(self, m: dict[str, Any], done: float) -> None:
        shown = "-" if m["return_mean"] is None else f"{m['return_mean']:.1f}"
        text = f"update {m['update']}  steps {m['env_steps']:,}  return {shown}  {m['steps_per_s']:,.0f} steps/s"
        if m.get("validation_return") is not None:
            text += f"  validation {m['validation_return']:.1f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            left_s = m["wall_s"] * (1 - min(done, 1.0)) / max(done, 1e-9)
            self._console.print(f"{text}  {left_s:.0f} s left at most", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line for people."""
        if self._active:
            self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Once is enough, more do no harm."""
        if not self._active:
            return
        self._active = False
        if self._bar is not None:
            self._bar.stop()
        with closing(self._lock), self._named_errors(), closing(self._file):
            self._write_events()
            self._events.close()


class Held(UserError):
    """Another process, ``holder``, has the lock."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is being written by {holder}: wait for its end, or stop it")
        self.holder = holder


def locked(path: Path) -> IO[str]:
    """The file with a lock on it, which is the kernel's: it is gone with this process, however that ends, and a
    network filesystem tells other hosts of it.

    Raises Held where another process has it. Closing any other file of this path in this process gives it up, too.
    """
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if isinstance(error, BlockingIOError):
            raise Held(path.parent, holder) from None
        remedy = "put train.directory on a filesystem with locks"
        raise UserError(f"{path} cannot be locked ({error.strerror}): {remedy}") from None
    file.truncate(0)
    job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    file.write(f"process {os.getpid()} on host {platform.node()}{job}\n")
    file.flush()
    return file


def rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The updates in metrics.jsonl as far as they can be read, each one more than the one before; and what ends them
    before the file does."""
    found: list[dict[str, Any]] = []
    try:
        lines = reading.content(path).splitlines()
    except ValueError as error:
        return found, f"{path.name} cannot be read ({error})"
    for number, line in enumerate(lines, 1):
        due = found[-1]["update"] + 1 if found else None
        try:
            row = reading.parsed(line.decode(), infinite=True)
        except ValueError:  # also what is no UTF-8
            return found, f"{path.name} cannot be read from line {number} on"
        if not isinstance(row, dict) or (due is not None and row.get("update") != due):
            return found, f"{path.name}: line {number} is not update {number - 1 if due is None else due}"
        try:
            schema.checked(Metrics, row)
        except ValueError as error:
            return found, f"{path.name}: line {number}: {error}"
        found.append(row)
    return found, "" if found else f"{path.name} is empty"


def keep_updates(path: Path, first_update: int) -> None:
    """Drop lines of metrics from first_update on, and a last line that was cut off: a resumed run writes them anew.

    Raises UserError where lines before it are missing or damaged; a file that is not there is begun anew.
    """
    if not os.path.lexists(path):
        return
    found, problem = rows(path)
    kept = [row for row in found if row["update"] < first_update]
    odd = problem and found and found[0]["update"]  # begun anew, as far as anyone can tell
    if first_update and (not kept or kept[-1]["update"] != first_update - 1 or odd):
        raise UserError(
            f"{path.parent}: {problem or f'{path.name} ends before update {first_update}'}, and the run goes on from "
            f"update {first_update}: restore the file, or remove it to go on without what it held"
        )
    partial = path.with_suffix(".partial")
    partial.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[: len(kept)]))
    partial.replace(path)


def _scalars(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in ("update", "env_steps", "ranks"):
            yield f"{prefix}{key}", float(value)


def versions() -> dict[str, str]:
    """Versions of python and the packages that matter."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def version(package: str) -> str:
    """What is installed of a package; 'not installed' where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
