"""Run directories as a report sees them: read, checked, put in groups that differ by their seed alone."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.config.run import OUTPUT, Config, flat
from distqtrl.config.sources import load
from distqtrl.errors import UserError
from distqtrl.record import directory as run_directory
from distqtrl.record import history
from distqtrl.report.statistics import on_grid, smoothed, spread

Array = npt.NDArray[np.float64]
COLUMNS = (
    *("update", "ranks", "env_steps", "episodes", "return_mean", "return_smoothed", "cpu_s", "wall_s"),
    *("entropy", "acting_entropy", "noisy_layers", "noise_scale_smoothed", "batch_share", "validation_return"),
)
ENVIRONMENT = (  # what makes returns comparable
    *("environment.id", "environment.max_episode_steps", "environment.kwargs", "environment.observation"),
    *("environment.num_actions", "language.task"),
)
LONGEST = 40  # characters of a value in a label
LABELLED = 3  # fields that differ are all named in a label; of more, these, and as many others as tell groups apart
FOREMOST = ("ranks", "generator.source", "algorithm.name", "mapping.kind", "circuit.ansatz")
FILES = ("config.json", "metrics.jsonl")  # one of them makes a folder a run, whole or damaged


class Crossing(NamedTuple):
    """Updates, environment steps and seconds until a target was reached; inf: it never was."""

    updates: float
    env_steps: float
    wall_s: float


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
        """Mean return of the greedy episodes at the end."""
        return float(self.result["evaluation"]["mean"])

    @property
    def last_tenth(self) -> float:
        """Mean return of training episodes in the last tenth of updates; nan where none ended."""
        column = self.columns["return_mean"]
        known = column[-_tenth(len(column)) :]
        known = known[~np.isnan(known)]
        return float(known.mean()) if len(known) else np.nan

    def curve(self, x: str, y: str | Callable[["Run"], Array]) -> tuple[Array, Array]:
        """A column (or what is made of the run) against another one, where both have numbers."""
        x_T, y_T = self.columns[x], self.columns[y] if isinstance(y, str) else y(self)
        known = ~(np.isnan(x_T) | np.isnan(y_T))
        return x_T[known], y_T[known]

    def agent(self, name: str) -> Array:
        """An agent's smoothed returns; nan in all updates where the run does not tell them."""
        unknown = np.full(len(self.columns["update"]), np.nan)
        return smoothed(self.agent_returns.get(name, unknown), self.config.train.smoothing)

    def reached(self, target: float, measure: str) -> Crossing:
        """Where the column ``measure`` first is at least target; nothing but inf where it never is."""
        found = np.flatnonzero(self.columns[measure] >= target)
        if not len(found):
            return Crossing(np.inf, np.inf, np.inf)
        at = found[0]
        return Crossing(float(at) + 1, *(float(self.columns[name][at]) for name in ("env_steps", "wall_s")))

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
    key: dict[str, Any] = field(default_factory=dict)  # what its runs have in common

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

    def curve(self, x: str, y: str | Callable[[Run], Array], points: int) -> tuple[Array, Array]:
        """(x_T, y_RT): a column of the whole runs against another one, at so many places as far as all of them go.

        Where runs have no number at a place, they keep the last that they had; nan before the first.
        """
        curves = [run.curve(x, y) for run in self.whole]
        curves = [(x_T, y_T) for x_T, y_T in curves if len(x_T)]
        if not curves:
            return np.zeros(0), np.zeros((0, 0))
        end = min(x_T[-1] for x_T, _ in curves)
        inside = np.unique(np.concatenate([x_T[x_T <= end] for x_T, _ in curves]))
        grid_T = inside[spread(len(inside), points)]
        rows = [np.where(grid_T < x_T[0], np.nan, on_grid(x_T, y_T, grid_T)) for x_T, y_T in curves]
        return grid_T, np.array(rows)


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
    if not problem and np.isnan(result["evaluation"]["mean"]):
        problem = "its greedy episodes have no mean return (result.json: evaluation.mean)"
    columns = {c: np.array([row.get(c) for row in rows], dtype=np.float64) for c in COLUMNS}
    profile: dict[str, float] = {}
    for row in rows:
        for phase, seconds in row.get("profile_s", {}).items():
            profile[phase] = profile.get(phase, 0.0) + seconds
    told = [row.get("agent_returns") or {} for row in rows]
    agents = dict.fromkeys(agent for returns in told for agent in returns)
    returns = {agent: np.array([each.get(agent) for each in told], dtype=np.float64) for agent in agents}
    return Run(
        directory=directory,
        config=config,
        result=result,
        columns=columns,
        profile_s=profile,
        problem=problem,
        agent_returns=returns,
    )


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

    Raises UserError for runs that must not stand in one picture: other environments, one run twice.
    """
    _check_alike(runs)
    keys = [_key(run) for run in runs]
    told = [key for run, key in zip(runs, keys, strict=True) if not run.problem] or keys  # ranks may be unknown
    labels = _labels(keys, told, runs[0].config.generator.source)
    groups: dict[str, Group] = {}
    for run, key, label in zip(runs, keys, labels, strict=True):
        alike = sum(group.label.split(" #")[0] == label for group in groups.values())
        group = groups.setdefault(json.dumps(key), Group(f"{label} #{alike + 1}" if alike else label, key=key))
        seed = run.config.train.seed
        twin = next((r for r in group.runs if r.config.train.seed == seed), None)
        if twin is not None:
            raise UserError(f"{run.directory} and {twin.directory} are one run twice (seed {seed}): give one of them")
        group.runs.append(run)
    return list(groups.values())


def _labels(keys: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]], only: str) -> list[str]:
    """A label for every key: the fields in which those that are ``told`` differ, or ``only`` where they do not.

    Of many fields, the foremost and those that tell the most apart; three dots say that there are more.
    """
    names = sorted(keys[0], key=lambda name: name not in FOREMOST)
    varying = [name for name in names if len({json.dumps(key[name]) for key in told}) > 1]
    chosen = varying if len(varying) <= LABELLED else _telling(told, varying)
    ends = [name.rpartition(".")[2] for name in varying]
    short = {name: end if ends.count(end) == 1 else name for name, end in zip(varying, ends, strict=True)}
    more = ", …" * (len(chosen) < len(varying))
    return [", ".join(f"{short[name]} {_word(key[name])}" for name in chosen) + more or only for key in keys]


def _telling(keys: Sequence[Mapping[str, Any]], varying: Sequence[str]) -> list[str]:
    """A few of the fields that tell all keys apart: the foremost, then the one that tells most apart."""
    different = list({json.dumps(key): key for key in keys}.values())

    def classes(names: Sequence[str]) -> int:
        return len({json.dumps([key[name] for name in names]) for key in different})

    chosen = [name for name in FOREMOST if name in varying]
    while classes(chosen) < len(different):
        chosen.append(max(varying, key=lambda name: (classes([*chosen, name]), -varying.index(name))))
    return sorted(chosen, key=varying.index)


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs:
        for key in ENVIRONMENT:
            stage, _, name = key.partition(".")
            a, b = (getattr(getattr(r.config, stage), name) for r in (first, run))
            if a != b:
                raise UserError(
                    f"{run.directory} has {key} = {b!r}, {first.directory} has {a!r}: "
                    f"their returns cannot be compared; make a report of each"
                )


def _key(run: Run) -> dict[str, Any]:
    """What makes two runs the same but for their seed."""
    own = ("train.seed", "train.target", *OUTPUT)
    return {"ranks": run.ranks, **{key: x for key, x in flat(run.config).items() if key not in own}}


def _word(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        text = "-".join(str(x) for x in value) or "none"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
