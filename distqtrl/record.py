"""What a run leaves behind while it trains: metrics.jsonl, TensorBoard events, a progress bar, a profile, versions.

Only rank 0 writes; the decision is made in here, so no caller asks for its rank.
"""

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

    It goes on after env_steps steps with update first_update; what is there of later ones goes, it is written anew.
    Raises UserError when another process has a recorder in this directory, OSError with the file's name.
    """

    def __init__(self, run: Path, rank: int, first_update: int = 0, env_steps: int = 0) -> None:
        self._active = rank == 0
        if not self._active:
            return
        from tensorboard.summary import Writer  # only where it is used: it is slow to import

        path, self._events_at = run / "metrics.jsonl", run / "tensorboard"
        self._lock = locked(run / "lock")
        try:
            lacking = keep_updates(path, first_update)
            with named(self._events_at):
                keep_events(self._events_at, env_steps)
                self._events = Writer(str(self._events_at))
            self._file = path.open("a")
        except BaseException:
            self._lock.close()
            raise
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task, self._last_line = TaskID(0), 0.0
        self._unwritten: dict[str, Any] = {}
        self._last_events, self._ended = 0.0, False
        if self._console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()
        if lacking:
            self.say(f"distqtrl: {lacking}")

    def write(self, metrics: dict[str, Any], done: float) -> None:
        """One update: a line of JSON, TensorBoard scalars, the progress bar; done is the spent part of the budget."""
        if not self._active:
            return
        with named(Path(self._file.name)):
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        self._unwritten = metrics
        if time.monotonic() - self._last_events > EVENTS_EVERY_S:
            self._write_events()
        self._show(metrics, done)

    def _write_events(self) -> None:
        with named(self._events_at):
            for key, value in _scalars(self._unwritten):
                self._events.add_scalar(key, value, step=self._unwritten["env_steps"])
        self._unwritten, self._last_events = {}, time.monotonic()

    def sync(self) -> None:
        """Flush metrics and events to the disk, so that no later checkpoint is ahead of them."""
        if self._active:
            self._write_events()
            with named(Path(self._file.name)):
                os.fsync(self._file.fileno())
            with named(self._events_at):
                self._events.flush()

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

    def end(self) -> None:
        """Write and close the files; the directory stays this run's. Once is enough, more do no harm."""
        if not self._active or self._ended:
            return
        self._ended = True
        if self._bar is not None:
            self._bar.stop()
        with named(Path(self._file.name)):
            self._file.close()
        self._write_events()
        with named(self._events_at):
            self._events.close()

    def close(self) -> None:
        """End, and leave the directory to others. Once is enough, more do no harm."""
        if not self._active:
            return
        try:
            self.end()
        finally:
            self._active = False
            self._lock.close()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of open files do not say which file: they get this path."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


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
    job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    with named(path):
        file.truncate(0)
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


def keep_updates(path: Path, first_update: int) -> str:
    """Keep the lines of metrics before first_update, which a resumed run writes anew; returns what they lack.

    A last line that was cut off is no damage. A file with damage elsewhere is left beside, as PATH.damaged.
    """
    try:
        lines = reading.content(path).decode(errors="replace").splitlines() if os.path.lexists(path) else []
    except ValueError as error:
        raise UserError(f"cannot read {path} ({error}): move it away, and the run goes on without it") from None
    numbers = [_update(line) for line in lines]
    kept: list[str] = []
    last = -1
    for line, number in zip(lines, numbers, strict=True):
        if number is not None and last < number < first_update:
            kept.append(line + "\n")
            last = number
    beside = path.with_name(f"{path.name}.damaged")
    if damaged := None in numbers[:-1]:
        shutil.copyfile(path, beside)
    if lines:
        partial = path.with_suffix(".partial")
        with named(partial):
            partial.write_text("".join(kept))
        partial.replace(path)
    if len(kept) == first_update:
        return ""
    left = f" (what it held is in {beside.name})" if damaged else ""
    return (
        f"{path} holds {len(kept)} of {first_update} updates that were made{left}: the training is whole and goes on, "
        "its curve and reports lack the others"
    )


def _update(line: str) -> int | None:
    """The number of a line's update; none where the line holds no update."""
    try:
        number = json.loads(line)["update"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int else None


def keep_events(folder: Path, env_steps: int) -> None:
    """Cut TensorBoard's files before the first event after env_steps steps, which a resumed run writes anew.

    A file is a series of records: length (8 bytes, little endian), its checksum (4), an event, its checksum (4).
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event

    for path in folder.glob("events.out.tfevents.*"):
        end = points = 0
        with path.open("rb") as file:
            while len(head := file.read(12)) == 12:
                length = int.from_bytes(head[:8], "little")
                if end + 16 + length > path.stat().st_size:
                    break  # cut off by a kill
                try:
                    event = Event.FromString(file.read(length))
                except DecodeError:
                    break
                if event.step > env_steps:
                    break
                file.seek(4, os.SEEK_CUR)
                end, points = end + 16 + length, points + len(event.summary.value)
        if not points:
            path.unlink()
        elif end < path.stat().st_size:
            os.truncate(path, end)


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
