"""Figures: from one run's own files, and from numbers over seeds; readable in print and by colour-blind readers."""

import importlib
import io
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from distqtrl.config.sources import load
from distqtrl.errors import UserError
from distqtrl.files.replace import replace
from distqtrl.record import history
from distqtrl.report.statistics import LEAST, interval, iqm, iqm_T, median

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")  # Okabe & Ito
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
WIDTH = 40  # characters of a label in one line
RESAMPLES = 500  # of a band, at every point


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings of every figure: its defaults and ours, whatever the user has set for others."""
    mpl = _matplotlib()
    style: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
    style["svg.hashsalt"] = "distqtrl"  # the same page from the same runs
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        yield


def _matplotlib() -> ModuleType:
    """The module, also where the environment names a backend that is none; what it names stays the caller's."""
    wanted = os.environ.get("MPLBACKEND")
    if wanted is None or "matplotlib" in sys.modules:
        return importlib.import_module("matplotlib")
    os.environ["MPLBACKEND"] = "agg"
    try:
        mpl = importlib.import_module("matplotlib")
    finally:
        os.environ["MPLBACKEND"] = wanted
    with suppress(ValueError):
        mpl.rcParams["backend"] = wanted  # a notebook's own figures are for it
    return mpl


def panels(number: int, lines: int | None = None, columns: int | None = None) -> "tuple[Figure, Sequence[Axes]]":
    """A figure with panels side by side, in rows of so many columns, high enough for so many lines of text."""
    from matplotlib.figure import Figure

    height = 4.4 if lines is None else 1.2 + 0.4 * lines
    columns = min(number, columns or number)
    rows = -(-number // columns)
    figure = Figure(figsize=(6.4 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for empty in axes[number:]:
        empty.remove()
    return figure, axes[:number]


def save(figure: "Figure", path: Path, pdf: bool = True) -> list[Path]:
    """Write PATH.png and, unless told not to, PATH.pdf."""
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")[: 1 + pdf]]
    figure.savefig(files[0], dpi=150)
    if pdf:
        figure.savefig(files[1], metadata={"CreationDate": None})
    return files


def band(axes: "Axes", x_T: np.ndarray, y_RT: np.ndarray, number: int, label: str, shade: bool = True) -> None:
    """IQM over the runs and its 95 % bootstrap interval at every point; no interval of one or two runs."""
    color, line = COLORS[number % len(COLORS)], LINES[(number // len(COLORS) + number) % len(LINES)]
    axes.plot(x_T, iqm_T(y_RT), color=color, linestyle=line, linewidth=1.5, label=wrapped(label))
    if shade and len(y_RT) >= LEAST:
        rows = np.random.default_rng(0).integers(len(y_RT), size=(RESAMPLES, len(y_RT)))
        means = np.array([iqm_T(y_RT[row]) for row in rows])
        low_T, high_T = np.percentile(means, [2.5, 97.5], axis=0)
        axes.fill_between(x_T, low_T, high_T, color=color, alpha=0.15, linewidth=0)


def wrapped(label: str) -> str:
    """A label broken into lines, its dollars escaped so that they begin no formula."""
    return textwrap.fill(label, WIDTH).replace("$", r"\$")


def points(axes: "Axes", rows: Sequence[tuple[float, float, float, float]], number: int, label: str) -> None:
    """(x, middle, low, high) of one case as markers with bars; a middle that is not finite is left out.

    A bar without an end goes to twice the middle, one that reaches 0 (of a ratio) to half of it: arrows say so.
    """
    color = COLORS[number % len(COLORS)]
    finite = np.array([row for row in rows if np.isfinite(row[1]) and row[1] > 0]).reshape(-1, 4)
    x, middle, low, high = finite.T
    x, endless, bottomless = x * (1 + 0.02 * number), ~np.isfinite(high), low <= 0
    ends = np.where(bottomless, middle / 2, np.minimum(low, middle)), np.where(endless, 2 * middle, high)
    bars = np.abs(np.array(ends) - middle)
    marker, line = MARKERS[number % len(MARKERS)], LINES[number % len(LINES)]
    axes.errorbar(x, middle, bars, color=color, capsize=3, label=label, marker=marker, ls=line)
    axes.plot(x[endless], 2 * middle[endless], marker="^", color=color, ls="", markersize=9)
    axes.plot(x[bottomless], middle[bottomless] / 2, marker="v", color=color, ls="", markersize=9)


def scores(axes: "Axes", cases: Mapping[str, Sequence[float]]) -> None:
    """A line for every case: all runs as dots, the IQM as a bar, with its 95 % interval where there are three."""
    for y, (_, values) in enumerate(cases.items()):
        x = np.array(values)
        axes.plot(x, np.full(len(x), y), "o", color=COLORS[2], markersize=4, alpha=0.5, linewidth=0, zorder=3)
        axes.plot([iqm(x)] * 2, [y - 0.3, y + 0.3], color=COLORS[1], linewidth=2.5)
        if len(x) >= LEAST:
            axes.plot(interval(iqm, x), [y, y], color=COLORS[0], linewidth=1.5)
    axes.set_yticks(range(len(cases)), [wrapped(label) for label in cases])
    axes.invert_yaxis()


def arrivals(axes: "Axes", cases: Mapping[str, Sequence[float]], unreached: str) -> None:
    """A line for every case: a dot where a run arrived, the median as a bar; runs that never did stand beside the axis.

    They and a median that is not finite have no place on it: a hollow arrow at its end, with their number.
    """
    for y, values in enumerate(cases.values()):
        x = np.array(values)
        there = x[np.isfinite(x)]
        axes.plot(there, np.full(len(there), y), "o", color=COLORS[2], markersize=4, alpha=0.5, linewidth=0)
        if np.isfinite(middle := median(x)):
            axes.plot([middle] * 2, [y - 0.3, y + 0.3], color=COLORS[1], linewidth=2.5)
        if missing := len(x) - len(there):
            edge = axes.get_yaxis_transform()
            axes.plot([1.01], [y], ">", transform=edge, clip_on=False, mfc="none", color=COLORS[0])
            axes.text(1.03, y, f"{missing} {unreached}", transform=edge, va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), [wrapped(label) for label in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(left=0)


def stacks(axes: "Axes", cases: Mapping[str, Mapping[str, float]]) -> None:
    """A line for every case: its parts side by side, told apart by colour and hatching."""
    hatches = ("", "//", "..", "xx", "--", "\\\\", "++", "oo")
    left = np.zeros(len(cases))
    for number, part in enumerate(next(iter(cases.values()))):
        width = np.array([case[part] for case in cases.values()])
        color, hatch = COLORS[(number + 1) % len(COLORS)], hatches[number % len(hatches)]
        axes.barh(range(len(cases)), width, left=left, color=color, hatch=hatch, edgecolor="white", label=part)
        left += width
    axes.set_yticks(range(len(cases)), [wrapped(label) for label in cases])
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")


def learning_curve(run: Path) -> Path:
    """Draw RUN/learning_curve.png (return against environment steps over all ranks) from RUN/metrics.jsonl."""
    rows, problem = history.rows(run / "metrics.jsonl")
    if problem:
        raise UserError(f"{run}: {problem}: its learning curve cannot be drawn")
    config = load(run / "config.json")
    with styled():
        figure, (axes,) = panels(1)
        trained = _points(rows, "return_mean")
        axes.plot(*trained, color=COLORS[2], label="training episodes, mean of each update")
        _agents(axes, rows)
        checked = _points(rows, "validation_return")
        if checked[0]:
            axes.plot(*checked, "o", color=COLORS[1], label="greedy validation")
        target = config.evaluate.target
        if target is not None:
            axes.axhline(target, color="0.5", linestyle="--", linewidth=1, label=f"target {target:g}")
        axes.set_xlabel("environment steps, all ranks")
        axes.set_ylabel("return")
        axes.set_title(f"{config.subject}, {config.generator.source}, seed {config.train.seed}")
        axes.legend(frameon=False, ncols=1 + len(axes.lines) // 8)
        path, picture = run / "learning_curve.png", io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
    replace(path, picture.getvalue())
    return path


def undrawn(run: Path) -> str:
    """Draw the learning curve; returns why that failed, in one line, as nothing else should fail with it."""
    try:
        learning_curve(run)
    except Exception as error:  # whatever fonts, files and versions of matplotlib have in store
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"warning: {run / 'learning_curve.png'} is not drawn ({reason[:200]}); the run itself is complete"
    return ""


def _agents(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    """A thin line for every agent's mean returns, where there are several."""
    told = [{**(row.get("agent_returns") or {}), "env_steps": row["env_steps"]} for row in rows]
    agents = dict.fromkeys(agent for row in rows for agent in row.get("agent_returns") or {})
    colors = COLORS[3:]
    for number, agent in enumerate(agents):
        color, line = colors[number % len(colors)], LINES[(number // len(colors) + number) % len(LINES)]
        axes.plot(*_points(told, agent), color=color, linestyle=line, linewidth=0.7, label=wrapped(agent))


def _points(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    found = [(row["env_steps"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in found], [y for _, y in found]
