"""What a run has recorded so far: read, checked, and cut back to where it goes on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from distqtrl.errors import UserError
from distqtrl.files import reading, schema
from distqtrl.files.replace import replace
from distqtrl.files.schema import Count, Record, Several, Word


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
    noise_scale: float | None = None
    noise_scale_smoothed: float | None = None
    batch_share: float | None = None
    validation_return: float | None = None
    agent_returns: dict[Word, float] | None = None


def rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The updates in metrics.jsonl as far as they can be read, each one more than the one before; and what ends them
    before the file does."""
    found: list[dict[str, Any]] = []
    try:
        for number, line in enumerate(reading.lines(path), 1):
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
    except ValueError as error:
        return found, f"{path.name} cannot be read ({error})"
    return found, "" if found else f"{path.name} is empty"


def keep_updates(path: Path, first_update: int) -> str:
    """Keep the lines of metrics before first_update, which a resumed run writes anew; returns what they lack.

    A last line that was cut off is not damage. A file with damage elsewhere is kept as PATH.damaged.
    """
    kept: list[bytes] = []
    last, lost = -1, []  # numbers of lines that hold no update
    number = 0
    try:
        for number, line in enumerate(reading.lines(path) if os.path.lexists(path) else (), 1):
            update = _update(line)
            if update is None:
                lost.append(number)
            elif last < update < first_update:
                kept.append(line + b"\n")
                last = update
    except ValueError as error:
        raise UserError(f"cannot read {path} ({error}): move it away, and the run resumes without it") from None
    beside = path.with_name(f"{path.name}.damaged")
    if damaged := lost not in ([], [number]):
        shutil.copyfile(path, beside)
    if number:
        replace(path, b"".join(kept))
    if len(kept) == first_update:
        return ""
    left = f" (what it held is in {beside.name})" if damaged else ""
    return (
        f"{path} holds {len(kept)} of {first_update} updates that were made{left}: training is unaffected, and the "
        "learning curve and reports lack the others"
    )


def _update(line: bytes) -> int | None:
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

    for path in filter(Path.is_file, folder.glob("events.out.tfevents.*")):  # a pipe holds who opens it
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
