"""Runs as the raw data of marl-eval (github.com/instadeepai/marl-eval), as BenchMARL writes them.

    {environment: {task: {algorithm: {"seed_0": {
        "step_0": {"step_count": 800, "return": [mean of the training episodes]},
        ...,
        "absolute_metrics": {"return": [mean of the final evaluation]}}}}}}

It compares algorithms and seeds by their keys, so all algorithms must have the same seeds and all seeds the same steps;
an algorithm's name must have no comma. Its check of the data wants the same metrics in every step and in
absolute_metrics, so there is no elapsed_time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distqtrl.environment.parallel import is_parallel
from distqtrl.errors import UserError
from distqtrl.report.runs import Array, Group, Run
from distqtrl.report.statistics import on_grid


def raw(groups: Sequence[Group]) -> dict[str, Any]:
    """The whole runs of the groups, which are the algorithms.

    A step is an update in which an episode ended. Where updates of runs end at different environment steps, all are
    read at those of one run, and where runs have different lengths, as far as all go. Raises UserError where seeds
    differ, and where the runs have no step in common.
    """
    runs = [run for group in groups for run in group.whole]
    _check_seeds(groups)
    grid_T = _grid([_known(run) for run in runs])
    if not len(grid_T):
        raise UserError("--marl-eval: these runs have no environment steps in common: give runs of one budget")
    environment, task = _named(runs[0].config.environment.id)
    algorithms = {
        group.label.replace(",", ";"): {f"seed_{run.config.train.seed}": _run(run, grid_T) for run in group.whole}
        for group in groups
    }
    return {environment: {task: algorithms}}


def _run(run: Run, grid_T: Array) -> dict[str, Any]:
    known, returns = _known(run)
    returns_T = on_grid(known, returns, grid_T)
    steps = {
        f"step_{number}": {"step_count": int(step), "return": [float(mean)]}
        for number, (step, mean) in enumerate(zip(grid_T, returns_T, strict=True))
    }
    return {**steps, "absolute_metrics": {"return": [run.result["evaluation"]["mean"]]}}


def _known(run: Run) -> Array:
    """(2, updates) environment steps and mean return of the updates that have both."""
    rows = np.array([run.columns[name] for name in ("env_steps", "return_mean")])
    return rows[:, np.isfinite(rows).all(axis=0)]


def _grid(known: Sequence[Array]) -> Array:
    """Environment steps from where all runs have a return to where the shortest ends: of the run with most of them."""
    if not all(steps.size for steps, _ in known):
        return np.zeros(0)
    start, end = max(steps[0] for steps, _ in known), min(steps[-1] for steps, _ in known)
    return max((steps[(start <= steps) & (steps <= end)] for steps, _ in known), key=len)


def _check_seeds(groups: Sequence[Group]) -> None:
    seeds = [sorted(run.config.train.seed for run in group.whole) for group in groups]
    for group, own in zip(groups, seeds, strict=True):
        if own != seeds[0]:
            a, b = (" ".join(map(str, numbers)) for numbers in (seeds[0], own))
            raise UserError(
                f"--marl-eval needs the same seeds of every group: whole runs of {groups[0].label} have {a}, those of "
                f"{group.label} {b}; leave the others out"
            )


def _named(name: str) -> tuple[str, str]:
    """Environment and task of an environment's id.

    >>> _named("mpe2/simple_spread_v3"), _named("CartPole-v1")
    (('mpe2', 'simple_spread_v3'), ('gymnasium', 'CartPole-v1'))
    """
    if not is_parallel(name):
        return "gymnasium", name
    environment, _, task = name.rpartition("/")
    return environment, task
