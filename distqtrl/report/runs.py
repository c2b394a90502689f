"""Run directories as a report sees them: read, checked, put in groups that differ by their seed alone."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distqtrl.config.run import Config
from distqtrl.config.sources import load
from distqtrl.errors import UserError
from distqtrl.record import directory as run_directory
from distqtrl.record import history
from distqtrl.report.statistics import smoothed

Array = npt.NDArray[np.float64]
COLUMNS = (
    *("update", "ranks", "env_steps", "episodes", "return_mean", "return_smoothed", "cpu_s", "wall_s"),
    *("entropy", "acting_entropy", "noisy_layers", "noise_scale_smoothed", "batch_share", "validation_return"),
)
ENVIRONMENT = ("id", "max_episode_steps", "kwargs", "observation", "num_actions")  # what makes returns comparable
BUDGET = ("steps", "updates")
FILES = ("config.json", "metrics.jsonl")  # one of them makes a folder a run, whole or damaged


@dataclass
class Run:
    """One run directory. ``columns`` holds a number per update (nan: none); ``problem`` says why it is in no mean.

    ``agent_returns`` are columns, too: every agent's mean returns, where there are several agents.
    """

    directory: Path
    config: Config
    result: dict[str, Any]
    columns: dict[str, Array]
    profile_s: dict[str, float]
    problem: str = ""
    agent_returns: dict[str, Array] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean return of the last tenth of updates."""
        column = self.columns["return_mean"]
        return float(np.nanmean(column[-_tenth(len(column)) :]))

    @property
    def ranks(self) -> int:
        """How many ranks trained it; 0 where nothing says so."""
        told = self.columns["ranks"][:1]
        return int(told[0] if len(told) and np.isfinite(told[0]) else self.result.get("ranks", 0))


@dataclass
class Group:
    """Runs of one configuration and number of ranks; their seeds differ."""

    label: str
    runs: list[Run] = field(default_factory=list)

    @property
    def whole(self) -> list[Run]:
        """The runs without a problem."""
        return [run for run in self.runs if not run.problem]

    @property
    def scores(self) -> Array:
        """The scores of the whole runs."""
        return np.array([run.score for run in self.whole])

    @property
    def agents(self) -> list[str]:
        """The agents whose returns the whole runs hold; none where there is one agent."""
        return list(dict.fromkeys(agent for run in self.whole for agent in run.agent_returns))

    def column(self, name: str) -> Array:
        """A column of the whole runs (runs, updates), as far as all of them go."""
        return self._rows([run.columns[name] for run in self.whole])

    def agent_column(self, agent: str) -> Array:
        """An agent's smoothed returns, (runs, updates) of the whole runs that hold it, as far as ``column`` goes."""
        held = [run for run in self.whole if agent in run.agent_returns]
        return self._rows([smoothed(run.agent_returns[agent], run.config.train.smoothing) for run in held])

    def _rows(self, columns: Sequence[Array]) -> Array:
        length = min((len(run.columns["update"]) for run in self.whole), default=0)
        return np.array([c[:length] for c in columns]).reshape(len(columns), length)


def directories(folders: Iterable[Path]) -> list[Path]:
    """The folders that are run directories, and the run directories one or two levels below the others."""
    found: list[Path] = []
    for folder in folders:
        below = sorted({p.parent for depth in ("*", "*/*") for file in FILES for p in folder.glob(f"{depth}/{file}")})
        found += [folder] if (folder / "config.json").is_file() or not below else below
    return list(dict.fromkeys(found))


def read(directory: Path) -> Run:
    """A run directory; raises UserError when it is not one, and notes as ``problem`` what is missing or cut off."""
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} is not a run directory (it has no config.json): give folders that train has made")
    config = load(directory / "config.json")
    result = run_directory.complete(directory) or {}
    rows, problem = _metrics(directory / "metrics.jsonl")
    if not problem and not result:
        problem = f"not complete: it stands at update {len(rows)}"
    if not problem and len(rows) != result["update"]:
        problem = f"metrics.jsonl holds {len(rows)} updates, the run made {result['update']}"
    columns = {c: np.array([row.get(c) for row in rows], dtype=np.float64) for c in COLUMNS}
    last = columns["return_mean"][-_tenth(len(rows)) :]
    if not problem and np.isnan(last).all():
        problem = "no episode ended in its last tenth of updates, so it has no score"
    profile: dict[str, float] = {}
    for row in rows:
        for phase, seconds in row.get("profile_s", {}).items():
            profile[phase] = profile.get(phase, 0.0) + seconds
    told = [row.get("agent_returns") or {} for row in rows]
    agents = dict.fromkeys(agent for returns in told for agent in returns)
    returns = {agent: np.array([each.get(agent) for each in told], dtype=np.float64) for agent in agents}
    return Run(directory, config, result, columns, profile, problem, returns)


def _tenth(updates: int) -> int:
    return max(1, updates // 10)


def _metrics(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The updates that can be read, and what is wrong with the file."""
    if not path.exists():
        return [], "metrics.jsonl is missing"
    rows, problem = history.rows(path)
    if rows and rows[0]["update"]:
        return [], "metrics.jsonl: line 1 is not update 0"
    return rows, problem


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by configuration and ranks; labels name what differs between the groups.

    Raises UserError for runs that must not stand in one picture: other environments, other budgets, one run twice.
    """
    _check_alike(runs, "environment", ENVIRONMENT)
    _check_alike(runs, "train", BUDGET)
    keys = [_key(run) for run in runs]
    told = [key for run, key in zip(runs, keys, strict=True) if not run.problem] or keys  # ranks may be unknown
    varying = [name for name in keys[0] if len({json.dumps(key[name]) for key in told}) > 1]
    ends = [name.rpartition(".")[2] for name in varying]
    short = {name: end if ends.count(end) == 1 else name for name, end in zip(varying, ends, strict=True)}
    groups: dict[str, Group] = {}
    for run, key in zip(runs, keys, strict=True):
        words = [f"{short[name]} {_word(key[name])}" for name in varying]
        group = groups.setdefault(json.dumps(key), Group(", ".join(words) or run.config.generator.source))
        seed = run.config.train.seed
        twin = next((r for r in group.runs if r.config.train.seed == seed), None)
        if twin is not None:
            raise UserError(f"{run.directory} and {twin.directory} are one run twice (seed {seed}): give one of them")
        group.runs.append(run)
    return list(groups.values())


def _check_alike(runs: Iterable[Run], stage: str, names: Sequence[str]) -> None:
    first: Run | None = None
    for run in runs:
        first = first or run
        for name in names:
            a, b = (getattr(getattr(r.config, stage), name) for r in (first, run))
            if a != b:
                raise UserError(
                    f"{run.directory} has {stage}.{name} = {b!r}, {first.directory} has {a!r}: "
                    f"their returns cannot be compared; make a report of each"
                )


def _key(run: Run) -> dict[str, Any]:
    """What makes two runs the same but for their seed."""
    values = run.config.model_dump(mode="json")
    for field_ in ("seed", "directory", "checkpoint_every", "keep_checkpoints", "target"):
        del values["train"][field_]
    flat = {f"{stage}.{name}": x for stage, fields in values.items() for name, x in fields.items()}
    return {"ranks": run.ranks, **flat}


def _word(value: Any) -> str:
    return "-".join(str(x) for x in value) or "none" if isinstance(value, list) else str(value)
