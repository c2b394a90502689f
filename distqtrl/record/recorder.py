"""What a run leaves behind while it trains: metrics.jsonl, TensorBoard events, other trackers', a progress bar.

Only rank 0 writes; the decision is made in here, so no caller asks for its rank.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from distqtrl.config.run import Config
from distqtrl.files.lock import locked
from distqtrl.files.replace import named
from distqtrl.record.history import keep_events, keep_updates
from distqtrl.record.trackers import Trackers

PLAIN_EVERY_S = 2.0
EVENTS_EVERY_S = 0.05  # TensorBoard shows no more, and an update of whole episodes may take a few milliseconds


class Recorder:
    """Writes one line of metrics per update. On ranks other than 0 every method does nothing.

    It goes on after env_steps steps with update first_update; later updates that are there are removed, to be written
    anew. config: names the trackers that are told, too.
    Raises UserError when another process has a recorder in this directory, OSError with the file's name.
    """

    def __init__(
        self, run: Path, rank: int, first_update: int = 0, env_steps: int = 0, config: Config | None = None
    ) -> None:
        self._active = rank == 0
        if not self._active:
            return
        # only where it is used: it is slow to import
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        path, self._events_at = run / "metrics.jsonl", run / "tensorboard"
        self._console = Console(stderr=True, markup=False, emoji=False)
        self._lock = locked(run / "lock")
        try:
            lacking = keep_updates(path, first_update)
            with named(self._events_at):
                keep_events(self._events_at, env_steps)
                self._events = EventFileWriter(str(self._events_at))
            self._file = path.open("a")
            self._trackers = Trackers(run, config or Config(), self.say)
        except BaseException:
            self._lock.close()
            raise
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
        if self._trackers.listen:
            self._trackers.write(dict(_scalars(metrics)), metrics["env_steps"])
        if time.monotonic() - self._last_events > EVENTS_EVERY_S:
            self._write_events()
        self._show(metrics, done)

    def _write_events(self) -> None:
        """One event with every number: an event per number costs thirty times as much."""
        from tensorboard.compat.proto.event_pb2 import Event

        if self._unwritten:
            event = Event(wall_time=time.time(), step=self._unwritten["env_steps"])
            for key, value in _scalars(self._unwritten):
                event.summary.value.add(tag=key, simple_value=value)
            with named(self._events_at):
                self._events.add_event(event)
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
        self._trackers.close()
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


def _scalars(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in ("update", "env_steps", "ranks"):
            yield f"{prefix}{key}", float(value)
