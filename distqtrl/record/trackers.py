"""Experiment trackers beside TensorBoard, on one's own disk: Weights & Biases offline, MLflow's files, Trackio.

They serve to look at runs, and are never read again. Their files lie beside the run directories, in ``wandb``,
``mlruns`` and ``trackio``, unless the tracker's own variable says where (WANDB_DIR, MLFLOW_TRACKING_URI, TRACKIO_DIR).
What a run is called there is in RUN/trackers.json: a resumed run goes on in the same one.

To add one, write a function that opens a run there, and enter it in TRACKERS.
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqtrl.config.run import Config, flat
from distqtrl.errors import UserError
from distqtrl.files.replace import replace

FILE = "trackers.json"
PROJECT = "distqtrl"
EVERY_S = 1.0  # some write a file per number; the last update is always told
Say = Callable[[str], None]
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Subject:
    """The run that is tracked: ``name`` is what a tracker calls it, ``known`` whether it has met it before."""

    folder: Path  # of trackers' files
    title: str
    name: str
    known: bool
    config: Mapping[str, Any]  # stage.field -> value


@dataclass(frozen=True)
class Opened:
    """A tracker that listens; ``name`` is what it calls the run from now on."""

    name: str
    log: Callable[[Numbers, int], object]  # numbers, environment steps
    close: Callable[[], object]


@dataclass(frozen=True)
class Tracker:
    """The module that a tracker needs, the package that brings it, and how it opens a run."""

    module: str
    package: str
    open: Callable[[Subject], Opened]


def _wandb(subject: Subject) -> Opened:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=subject.name,
        name=subject.title,
        dir=os.environ.get("WANDB_DIR", subject.folder),
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        config=dict(subject.config),
        settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True),
    )
    return Opened(subject.name, lambda numbers, step: run.log(dict(numbers), step=step), run.finish)


def _mlflow(subject: Subject) -> Opened:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files, as they need no database package
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (subject.folder / "mlruns").resolve().as_uri())
    name = subject.name
    if not subject.known:
        project = client.get_experiment_by_name(PROJECT)
        number = project.experiment_id if project else client.create_experiment(PROJECT)
        name = client.create_run(number, run_name=subject.title).info.run_id
        client.log_batch(name, params=[Param(key, str(value)) for key, value in subject.config.items()])
    else:
        client.update_run(name, status="RUNNING")

    def log(numbers: Numbers, step: int) -> None:
        now_ms = int(1000 * time.time())
        client.log_batch(name, metrics=[Metric(key, value, now_ms, step) for key, value in numbers.items()])

    return Opened(name, log, lambda: client.set_terminated(name))


def _trackio(subject: Subject) -> Opened:
    os.environ.setdefault("TRACKIO_DIR", str((subject.folder / "trackio").resolve()))  # it looks when it is loaded
    import trackio

    run = trackio.init(project=PROJECT, name=subject.name, config=dict(subject.config), resume="allow", embed=False)
    return Opened(subject.name, lambda numbers, step: run.log(dict(numbers), step=step), run.finish)


TRACKERS = {
    "wandb": Tracker("wandb", "distqtrl[trackers]", _wandb),
    "mlflow": Tracker("mlflow", "mlflow-skinny", _mlflow),
    "trackio": Tracker("trackio", "trackio", _trackio),
}


def check(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is not installed."""
    for name in names:
        found = importlib.util.find_spec(TRACKERS[name].module)
        if found is None or found.origin is None:  # a folder of its files, beside the runs, is no package
            raise UserError(
                f"train.trackers {name}: {name} is not installed here: pip install '{TRACKERS[name].package}', or "
                "leave it out (TensorBoard's files are written anyway)"
            )


class Trackers:
    """The trackers of a run. One that fails is named in a warning and disabled: a training never ends by it."""

    def __init__(self, run: Path, config: Config, say: Say) -> None:
        self._say, self._opened, self._last = say, dict[str, Opened](), 0.0
        self._untold: tuple[Numbers, int] | None = None
        if not config.train.trackers:
            return
        names = _names(run / FILE)
        for name in dict.fromkeys(config.train.trackers):
            subject = Subject(
                folder=run.absolute().parent,
                title=run.absolute().name,
                name=names.get(name, f"{run.absolute().name}-{uuid.uuid4().hex[:8]}"),
                known=name in names,
                config=flat(config),
            )
            opened = self._tried(name, lambda name=name, subject=subject: TRACKERS[name].open(subject))  # type: ignore[misc]
            if opened is not None:
                self._opened[name], names[name] = opened, opened.name
        replace(run / FILE, (json.dumps(names, indent=2) + "\n").encode())

    @property
    def listen(self) -> bool:
        """Whether any is told."""
        return bool(self._opened)

    def write(self, numbers: Numbers, step: int) -> None:
        """An update; told at once where the last is long enough ago."""
        self._untold = numbers, step
        if time.monotonic() - self._last > EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Tell the newest update."""
        if self._untold is None:
            return
        numbers, step = self._untold
        self._untold, self._last = None, time.monotonic()
        for name, opened in list(self._opened.items()):
            self._tried(name, lambda opened=opened: opened.log(numbers, step))  # type: ignore[misc]

    def close(self) -> None:
        """Tell the newest update, and end. Once is enough, more do no harm."""
        self.flush()
        for name, opened in list(self._opened.items()):
            self._tried(name, opened.close)
        self._opened.clear()

    def _tried(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call returns; none, a warning and no more calls where it fails. Its words go to standard error."""
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is ours: --json
                return call()
        except Exception as error:  # whatever networks, disks and versions of a tracker have in store
            self._opened.pop(name, None)
            words = " ".join(str(error).split())[:200]
            self._say(
                f"distqtrl: warning: {name} failed and is disabled for this run ({type(error).__name__}: {words}); the "
                "training goes on, and TensorBoard has all of it"
            )
            return None


def _names(file: Path) -> dict[str, str]:
    """What trackers call this run; nothing where that is not known."""
    try:
        told = json.loads(file.read_text())
        return {name: str(told[name]) for name in TRACKERS if name in told}
    except (OSError, ValueError, TypeError):
        return {}
