"""The figures of a report: every run to its own end, the means as far as all runs of a group go."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distqtrl.report import figures
from distqtrl.report.effort import GREEDY, Target
from distqtrl.report.runs import Array, Group, Run
from distqtrl.report.statistics import spread

POINTS = 400  # of a curve on the page
Column = str | Callable[[Run], Array]
STEPS = "environment steps of all ranks"
TRAINING = "smoothed return of training"


def pictures(shown: Sequence[Group], aim: Target | None) -> dict[str, tuple[Any, str]]:
    """Every figure, and its text for the page."""
    lines = sum(1 + len(group.label) // figures.WIDTH for group in shown)
    several = sum(bool(group.agents) for group in shown)
    drawn = {
        "curves": _picture(3 if validated(shown) else 2, None, lambda axes: _curves(axes, shown)),
        "scores": _picture(1, lines, lambda axes: _scores(axes, shown)),
        "time": _picture(1, lines, lambda axes: _time(axes, shown)),
    }
    if aim is not None:
        drawn["target"] = _picture(1, lines, lambda axes: _target(axes, shown, aim))
    if several:
        drawn["agents"] = _picture(several, None, lambda axes: _agents(axes, shown))
    return drawn


def validated(shown: Sequence[Group]) -> bool:
    """Whether there are greedy validations to draw."""
    return any(np.isfinite(run.columns[GREEDY]).any() for group in shown for run in group.whole)


def _curves(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    """Greedy validations, where there are some, then training, against steps and against updates."""
    panels = [("env_steps", "return_smoothed", STEPS, TRAINING), ("update", "return_smoothed", "updates", TRAINING)]
    if len(drawn) > len(panels):
        panels.insert(0, ("env_steps", GREEDY, STEPS, "return of greedy validations"))
    for axes, (x, y, xlabel, ylabel) in zip(drawn, panels, strict=True):
        for number, group in enumerate(shown):
            _lines(axes, group, (x, y), number, group.label)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    drawn[-1].legend(*_handles(drawn), frameon=False, fontsize=8)


def _handles(drawn: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Line and label of every group: one may have no validations, another nothing but them."""
    found = {label: line for axes in drawn for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _lines(axes: Any, group: Group, columns: tuple[str, Column], number: int, label: str) -> None:
    """A thin line for every run, to its end, and a thick one as far as all go; a single run has a thick one alone."""
    color = figures.COLORS[number % len(figures.COLORS)]
    whole = group.whole
    if len(whole) > 1:
        for run in whole:
            x_T, y_T = run.curve(*columns)
            at = spread(len(x_T), POINTS)
            axes.plot(x_T[at], y_T[at], color=color, linewidth=0.6, alpha=0.5)
    x_T, y_RT = group.curve(*columns, POINTS)
    if len(x_T):
        figures.band(axes, x_T, y_RT, number, label)


def _scores(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    figures.scores(drawn[0], {group.label: group.scores.tolist() for group in shown})
    drawn[0].set_xlabel("mean return of the greedy episodes at the end")


def _target(drawn: Sequence[Any], shown: Sequence[Group], aim: Target) -> None:
    steps = {group.label: [each.env_steps for each in aim.crossings(group)] for group in shown}
    figures.arrivals(drawn[0], steps, "not reached")
    drawn[0].set_xlabel(f"{STEPS} to a return of {aim.value:g}")


def _time(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    shares = {}
    for group in shown:
        phases = dict.fromkeys(phase for run in group.whole for phase in run.profile_s)
        total = {phase: sum(run.profile_s.get(phase, 0.0) for run in group.whole) for phase in phases}
        shares[group.label] = {phase: seconds / (sum(total.values()) or 1.0) for phase, seconds in total.items()}
    figures.stacks(drawn[0], shares)
    drawn[0].set_xlabel("share of wall time")


def _agents(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    """A panel for every group that has several agents."""
    for axes, group in zip(drawn, (group for group in shown if group.agents), strict=True):
        if axes is not drawn[0]:
            axes.sharey(drawn[0])
        for number, agent in enumerate(group.agents):
            _lines(axes, group, ("env_steps", lambda run, agent=agent: run.agent(agent)), number, agent)  # type: ignore[misc]
        axes.set_title(figures.wrapped(group.label), fontsize=10)
        axes.set_xlabel(STEPS)
        axes.set_ylabel(TRAINING)
        axes.legend(frameon=False, fontsize=8, ncols=1 + len(group.agents) // 8)


def _picture(panels: int, lines: int | None, draw: Callable[[Sequence[Any]], None]) -> tuple[Any, str]:
    with figures.styled():
        drawn, axes = figures.panels(panels, lines, columns=2)
        draw(axes)
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None})
        return drawn, text.getvalue()[text.getvalue().index("<svg") :]
