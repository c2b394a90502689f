"""Lines of finished runs in one file, by what they are of: what a study is resumed from, on any machine that has it."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib import runs, setting

Line = dict[str, Any]


class Kept:
    """The lines of ``path``. names: what tells a run from all others; line: what is kept of a run beside.

    train: jobs -> their runs, or why there is none.
    """

    def __init__(
        self,
        path: Path,
        names: tuple[str, ...],
        line: Callable[[runs.Run], Line],
        train: Callable[[list[runs.Job]], dict[runs.Job, runs.Run | str]],
    ) -> None:
        self.path, self.names, self.line, self.train = path, names, line, train
        told = path.read_text().splitlines() if path.exists() else []
        self.lines = {tuple(line[name] for name in names): line for line in map(json.loads, told)}
        self.failed: list[str] = []
        self._what: dict[runs.Job, tuple] = {}

    def job(self, job: runs.Job, *what: object) -> runs.Job:
        """The job, of which is known what it is of."""
        self._what[job] = what
        return job

    def of(self, jobs: Iterable[runs.Job]) -> list[Line]:
        """The lines of those that have one."""
        return [self.lines[self._what[job]] for job in jobs if self._what[job] in self.lines]

    def run(self, wanted: Iterable[runs.Job], batch: int) -> None:
        """Run what no line is kept of, and keep a line of each as soon as a batch of them is through."""
        missing = [job for job in wanted if self._what[job] not in self.lines]
        for start in range(0, len(missing), batch):
            for job, run in self.train(missing[start : start + batch]).items():
                if isinstance(run, str):
                    self.failed.append(f"{job.name}: {run}")
                else:
                    self._keep(job, run)

    def _keep(self, job: runs.Job, run: runs.Run) -> None:
        line = {
            **dict(zip(self.names, self._what[job], strict=True)),
            **self.line(run),
            **{name: value for name, value in setting.facts().items() if name in ("machine", "commit")},
        }
        self.lines[self._what[job]] = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
