"""Table and figure of a search for bit widths, from the content of its search.json."""

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from distqtrl.report import figures
from distqtrl.report.statistics import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
PASSES = {True: "passes", False: "does not pass", None: "nothing to compare it with"}
YES, NO = figures.COLORS[3], figures.COLORS[1]


def page(about: dict[str, Any]) -> str:
    """search.md."""
    settings, budget, unit = about["settings"], about["budget"], about.get("cost_unit")
    config = settings["config"]
    amount = ", ".join(f"{budget[f'{x}_per_run']:,} {x}" for x in ("steps", "updates") if budget[f"{x}_per_run"])
    words = ["policy", "width", "core bits", "in", "out", "mean", "std (n-1)", "median", "gap", "gap %", "passes"]
    words += [unit, "front"] if unit else []
    lines = [
        f"# Bit widths for {config['environment']['id']}",
        "",
        f"{config['algorithm']['name'].upper()}, seeds {' '.join(map(str, settings['seeds']))}, {amount} each, "
        f"{budget['evaluation_episodes']} greedy episodes at the end. {budget['runs']} trainings, "
        f"{budget['env_steps']:,} environment steps in all. State: {about['status']}.",
        "",
        *summary(about),
        "",
        "A policy passes when its mean over the seeds reaches the mean in floating point minus one sample deviation; "
        "that is lenient, so the gap to the mean is given, too.",
        *(["Steps went downwards and ended at the first failure."] if settings["stop_at_failure"] else []),
        "",
        f"| {' | '.join(words)} |",
        "|---|" + "--:|" * (len(words) - 1),
        *(_line(row, about) for row in [about["baseline"], *about["candidates"]]),
    ]
    return "\n".join(lines) + "\n"


def summary(about: dict[str, Any]) -> list[str]:
    """What was decided, in a few lines."""
    lines = []
    for step in about["steps"]:
        passing = ", ".join(step["passing"]) or "nothing passes, the largest stays"
        lines.append(f"{step['what']}: tried {len(step['tried'])}, passing: {passing}; kept {step['kept']}")
    if about.get("front"):
        lines.append(f"front of return and cost: {', '.join(about['front'])}")
    if about["problem"]:
        lines.append(about["problem"])
    if about["chosen"] is None:
        lines.append("nothing is chosen" if about["status"] == "complete" else "nothing is chosen yet")
    else:
        row = next(row for row in about["candidates"] if row["name"] == about["chosen"]["name"])
        lines.append(
            f"chosen: {row['name']}, mean return {_number(row['mean'])}, gap {_gap(row)}, {PASSES[row['passes']]}"
        )
    return [f"* {line}" for line in lines]


def _line(row: Row, about: dict[str, Any]) -> str:
    cells = [row["name"]]
    if "width" in row:
        cells += [str(row["width"]), " ".join(map(str, row["core_bits"]))]
        cells += [str(row["input_bits"]), str(row["output_bits"])]
    else:
        cells += [" ".join(map(str, about["settings"]["config"]["policy"]["hidden"])), "", "", ""]
    cells += [_number(row[key]) for key in ("mean", "std", "median")]
    cells += [_number(row.get("gap")), _number(row.get("gap_percent")), _verdict(row)]
    if about.get("cost_unit"):
        cells += [_number(row.get("cost")), "yes" if row["name"] in about["front"] else ""]
    return f"| {' | '.join(cells)} |"


def _verdict(row: Row) -> str:
    if row["failed"]:
        return f"failed: seed {' '.join(map(str, row['failed']))}"
    if row["missing"]:
        return f"{len(row['missing'])} to do"
    return {True: "yes", False: "no", None: ""}[row.get("passes")]


def _gap(row: Row) -> str:
    percent = "" if row["gap_percent"] is None else f" ({row['gap_percent']:+.1f} %)"
    return f"{_number(row['gap'])}{percent}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def figure(about: dict[str, Any], file: BinaryIO) -> None:
    """search.png: every seed's return, and the mean with its 95 % bootstrap interval; and return against cost."""
    rows, costly = (
        [about["baseline"], *about["candidates"]],
        [r for r in about["candidates"] if r.get("cost") is not None],
    )
    with figures.styled():
        drawing, axes = figures.panels(2 if costly else 1, len(rows))
        _returns(axes[0], rows)
        if costly:
            _front(axes[1], costly, about)
        for panel, span in zip(axes, ("axvspan", "axhspan"), strict=False):
            if about["passes_from"] is not None:
                mean, std = about["baseline"]["mean"], about["baseline"]["std"]
                band = {"color": "0.5", "alpha": 0.15, "linewidth": 0, "label": "floating point, mean ± deviation"}
                getattr(panel, span)(mean - std, mean + std, **band)
        if about["passes_from"] is not None:
            axes[0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
        drawing.savefig(file, format="png", dpi=150)


def _returns(axes: "Axes", rows: list[Row]) -> None:
    for y, row in enumerate(rows):
        found = np.array([x for x in row["returns"].values() if x is not None])
        axes.plot(found, np.full(len(found), y), "o", color=figures.COLORS[2], markersize=4, alpha=0.5, linewidth=0)
        if row["mean"] is not None:
            color = {True: YES, False: NO, None: figures.COLORS[0]}[row.get("passes")]
            axes.plot([row["mean"]] * 2, [y - 0.3, y + 0.3], color=color, linewidth=2.5)
            if len(found) > 1:
                axes.plot(interval(np.mean, found), [y, y], color=figures.COLORS[0], linewidth=1.5)
    notes = [_verdict(row).replace("yes", "passes").replace("no", "does not pass") for row in rows]
    labels = [", ".join(filter(None, (row["name"], note))) for row, note in zip(rows, notes, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("return of the final evaluation: seeds, mean, 95 % interval")


def _front(axes: "Axes", rows: list[Row], about: dict[str, Any]) -> None:
    for row in rows:
        on = row["name"] in about["front"]
        color = YES if row["passes"] else NO
        axes.plot(row["cost"], row["mean"], "o" if row["passes"] else "x", color=color, alpha=1 if on else 0.4)
        if on:
            axes.annotate(
                row["name"], (row["cost"], row["mean"]), fontsize=7, xytext=(4, -8), textcoords="offset points"
            )
    kept = sorted((row["cost"], row["mean"]) for row in rows if row["name"] in about["front"])
    axes.step(*np.array(kept).T, where="post", color=figures.COLORS[0], linewidth=1)
    if max(row["cost"] for row in rows) > 10 * min(row["cost"] for row in rows) > 0:
        axes.set_xscale("log")
    axes.set_xlabel(about["cost_unit"])
    axes.set_ylabel("mean return")
