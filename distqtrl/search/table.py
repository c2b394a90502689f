"""search.json: what a search was asked for, every return of every seed, and what follows from them."""

import math
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distqtrl.search import cost, rule
from distqtrl.search.grid import FORMAT, Candidate, Search, name
from distqtrl.versions import versions

Result = Callable[[Candidate | None, int], dict[str, Any] | None]


def score(result: dict[str, Any]) -> float | None:
    """The mean return of a training's final evaluation; None: the training failed."""
    value = result["evaluation"]["mean"] if result["status"] == "complete" else math.nan
    return float(value) if math.isfinite(value) else None


def about(
    search: Search, decision: rule.Decision, result: Result, costs: Mapping[Candidate, float], status: str
) -> dict[str, Any]:
    """The content of search.json; the same from the same results, whoever writes it."""
    needed = [None, *(c for c in decision.needed if c is not None)]
    rows = {candidate: _row(search, candidate, result) for candidate in needed}
    baseline, limit = rows[None], None
    if not (baseline["missing"] or baseline["failed"]):
        scores = list(baseline["returns"].values())
        limit = rule.least(scores)
    for candidate, row in rows.items():
        if candidate is not None:
            row |= _compared(row, baseline, limit)
            if search.mode == "pareto":
                row["cost"] = costs.get(candidate)
    points = {c: (costs[c], rows[c]["mean"]) for c in costs if c in rows and rows[c]["mean"] is not None}
    front = [name(candidate) for candidate in rule.front(points)]
    chosen, seed = decision.chosen, None
    if chosen is not None:
        seed = rule.median_seed(list(rows[chosen]["returns"].values()), search.seeds)
    every = [r for c in needed for k in search.seeds if (r := result(c, k)) is not None]
    return {
        "format": FORMAT,
        "status": status,
        "settings": search.settings(),
        "baseline": baseline,
        "passes_from": limit,
        "candidates": [row for candidate, row in rows.items() if candidate is not None],
        "steps": [_step(step) for step in decision.steps],
        **({"front": front, "cost_unit": cost.KINDS[search.cost].unit} if search.cost else {}),
        "chosen": None if chosen is None else {"name": name(chosen), "seed": seed},
        "problem": decision.problem,
        "budget": {
            "steps_per_run": search.config.train.steps,
            "updates_per_run": search.config.train.updates,
            "evaluation_episodes": search.config.evaluate.episodes,
            "runs": len(every),
            "env_steps": sum(r["env_steps"] for r in every),
        },
        "versions": versions(),
        "commit": _commit(),
    }


def _row(search: Search, candidate: Candidate | None, result: Result) -> dict[str, Any]:
    """A candidate's returns and what they are in the middle and around it; null for what is not known or failed."""
    found = {str(seed): result(candidate, seed) for seed in search.seeds}
    returns = {seed: None if r is None else score(r) for seed, r in found.items()}
    scores = list(returns.values())
    row: dict[str, Any] = {"name": name(candidate)}
    if candidate is not None:
        row |= {"width": candidate.width, "core_bits": list(candidate.core_bits)}
        row |= {"input_bits": candidate.input_bits, "output_bits": candidate.output_bits}
    return row | {
        "returns": returns,
        "failed": [int(seed) for seed, r in found.items() if r is not None and score(r) is None],
        "missing": [int(seed) for seed, r in found.items() if r is None],
        "mean": rule.mean(scores),
        "std": rule.deviation(scores),
        "median": rule.middle(scores),
    }


def _compared(row: dict[str, Any], baseline: dict[str, Any], limit: float | None) -> dict[str, Any]:
    """A row compared with the policy in floating point."""
    mean = baseline["mean"]
    if row["missing"] or mean is None:
        return {"passes": None, "gap": None, "gap_percent": None}
    scores, others = (list(each["returns"].values()) for each in (row, baseline))
    passes = None if limit is None else rule.passes(scores, others)
    if row["mean"] is None:
        return {"passes": passes, "gap": None, "gap_percent": None}
    gap = row["mean"] - mean
    return {"passes": passes, "gap": gap, "gap_percent": 100 * gap / abs(mean) if mean else None}


def _step(step: rule.Step) -> dict[str, Any]:
    return {
        "what": step.what,
        "tried": [name(candidate) for candidate in step.tried],
        "passing": [name(candidate) for candidate in step.passing],
        "kept": name(step.kept),
    }


def _commit() -> str | None:
    """The commit of the checkout that runs; None outside of one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
