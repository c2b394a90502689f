"""Figures from a run's own files."""

import json
from pathlib import Path
from typing import Any

BLUE, ORANGE = "#0072B2", "#D55E00"  # told apart by colour-blind readers (Okabe & Ito)


def learning_curve(run: Path) -> Path:
    """Draw RUN/learning_curve.png (return against environment steps over all ranks) from RUN/metrics.jsonl."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        trained = _points(rows, "return_mean")
        axes.plot(*trained, color=BLUE, label="training episodes, mean of each update")
        checked = _points(rows, "validation_return")
        if checked[0]:
            axes.plot(*checked, "o", color=ORANGE, label="greedy validation")
        target = config["evaluate"]["target"]
        if target is not None:
            axes.axhline(target, color="0.5", linestyle="--", linewidth=1, label=f"target {target:g}")
        axes.set_xlabel("environment steps, all ranks")
        axes.set_ylabel("return")
        axes.set_title(
            f"{config['environment']['id']}, {config['generator']['source']}, seed {config['train']['seed']}"
        )
        axes.legend(frameon=False)
        path = run / "learning_curve.png"
        figure.savefig(path, dpi=150)
    return path


def _points(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    found = [(row["env_steps"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in found], [y for _, y in found]
