"""One self-contained page about any set of runs: curves, parameters, scores, time, configuration, versions.

What must not be averaged is refused (other environments or budgets) or named at the top of the page (runs that are
incomplete or damaged, single seeds, runs of different lengths).
"""

import io
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl import __version__
from distqtrl.config.run import differences
from distqtrl.errors import UserError
from distqtrl.files.replace import replace
from distqtrl.report import figures
from distqtrl.report.describe import describe
from distqtrl.report.marl_eval import raw
from distqtrl.report.runs import Group, directories, grouped, read
from distqtrl.report.statistics import interval, iqm, probability_of_improvement, verdict

FEW = 5  # seeds; a bootstrap interval over fewer is far too narrow
POINTS = 400  # of a curve on the page
PARAMETERS = (
    "policy",
    "circuit",
    "qubits",
    "circuit_parameters",
    "source_parameters",
    "mapping_parameters",
    "total_parameters",
    "effective_parameters",
    "policy_weights",
    "deployed_parameters",
    "compression",
)
NOISE = ("noise scale", "batch's share")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#111}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}.warn{border-left:4px solid #D55E00;padding-left:1rem}
svg{max-width:100%;height:auto}pre{background:#f5f5f5;padding:1rem;overflow:auto}"""


def report(folders: Sequence[Path], page: Path, marl_eval: Path | None = None) -> list[Path]:
    """Write the page about runs (or folders of runs), and its figures as PNG and PDF beside it; returns the files.

    marl_eval: also the file that marl-eval reads. Raises UserError when a folder is not a run, or the runs'
    environments or budgets differ, or none is whole, or marl-eval could not read them.
    """
    groups = grouped([read(directory) for directory in directories(folders)])
    shown = [group for group in groups if group.whole]
    if not shown:
        run = groups[0].runs[0]
        raise UserError(f"no run is whole, so there is nothing to show: {run.directory}: {run.problem}")
    drawn = _pictures(shown)
    more = {} if marl_eval is None else {marl_eval: json.dumps(raw(shown), indent=2) + "\n"}
    text = _page(groups, shown, {name: svg for name, (_, svg) in drawn.items()})  # all that can be refused is before
    for path, content in {page: text, **more}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content.encode())
    with figures.styled():
        saved = [figures.save(f, page.with_name(f"{page.stem}-{name}")) for name, (f, _) in drawn.items()]
    return [page, *(path for paths in saved for path in paths), *more]


def warnings(groups: Sequence[Group]) -> list[str]:
    """What a reader must know before any number: a line each."""
    out = []
    for group in groups:
        out += [f"{run.directory}: {run.problem}. It is in no mean." for run in group.runs if run.problem]
        whole = group.whole
        if len(whole) == 1:
            out.append(f"{group.label}: one seed, so there is no interval.")
        elif 1 < len(whole) < FEW:
            out.append(f"{group.label}: {len(whole)} seeds; an interval over fewer than {FEW} is too narrow.")
        lengths = [len(run.columns["update"]) for run in whole]
        if lengths and min(lengths) < max(lengths):
            out.append(
                f"{group.label}: its runs made {min(lengths)} to {max(lengths)} updates; curves end with the shortest, "
                "scores are of each run's own last tenth."
            )
    lengths = [len(run.columns["update"]) for group in groups for run in group.whole]
    if lengths and min(lengths) < max(lengths):
        out.append(
            f"The runs differ in length, {min(lengths)} to {max(lengths)} updates: their scores differ in effort."
        )
    return out


def _page(groups: Sequence[Group], shown: Sequence[Group], pictures: dict[str, str]) -> str:
    config = shown[0].whole[0].config
    environment = config.subject
    warned = warnings(groups)
    window, runs = config.train.smoothing, sum(len(group.whole) for group in shown)
    parts = [
        f"<h1>{escape(environment)}: {_count(len(shown), 'configuration')}, {_count(runs, 'run')}</h1>",
        f"<p>Made by distqtrl {__version__} from the runs' own files.</p>",
        '<div class="warn"><h2>Read this first</h2>' + _list(warned) + "</div>" if warned else "",
        f"<h2>Learning</h2>{pictures['curves']}",
        f"<p>Return of training episodes, smoothed over {window} updates; IQM over seeds with its 95 % bootstrap "
        "interval (arXiv 2108.13264).</p>",
        f"<h2>Scores and controls</h2>{pictures['scores']}",
        "<p>Score: mean return of the last tenth of updates; a dot is a run, the bar is the IQM with its interval.</p>",
        _table(
            ["", "seeds", "score, IQM", "95 % interval", "greedy", "env steps", "CPU s per rank", "wall s", *NOISE],
            _rows(shown),
        ),
        "<p>Noise scale of the gradient at the end, in environment steps (episodes where REINFORCE plays whole ones): "
        "median over seeds that have an estimate. The batch's share of it: well below 1, more ranks help.</p>",
        _list(_verdicts(shown)),
        _agents(shown, pictures["agents"], window) if "agents" in pictures else "",
        "<h2>Parameters</h2>" + _parameters(shown),
        f"<h2>Time</h2>{pictures['time']}<p>Share of the phases in wall time, rank 0.</p>",
        "<h2>Configuration</h2>" + _configuration(shown),
        "<h2>Versions</h2>" + _versions(shown),
    ]
    title = f"<title>{escape(environment)}</title>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>{"".join(parts)}</html>\n'
    )


def _rows(shown: Sequence[Group]) -> list[list[str]]:
    rows = []
    for group in shown:
        values, whole = group.scores, group.whole
        low_high = " to ".join(map(_number, interval(iqm, values))) if len(values) > 1 else "none"
        greedy = np.median([run.result["evaluation"]["mean"] for run in whole])
        last = [np.median([run.columns[name][-1] for run in whole]) for name in ("env_steps", "cpu_s", "wall_s")]
        cells = [
            _number(iqm(values)),
            low_high,
            _number(greedy),
            f"{last[0]:,.0f}",
            f"{last[1]:,.1f}",
            f"{last[2]:,.1f}",
            *(_last(group, name) for name in ("noise_scale_smoothed", "batch_share")),
        ]
        rows.append([group.label, str(len(values)), *cells])
    return rows


def _last(group: Group, name: str) -> str:
    """Median over the runs of the last number in a column that has one."""
    columns = [run.columns[name][np.isfinite(run.columns[name])] for run in group.whole]
    ends = [column[-1] for column in columns if len(column)]
    return _number(float(np.median(ends))) if ends else "none"


def _verdicts(shown: Sequence[Group]) -> list[str]:
    """Every group compared with the first one trained through a circuit (or the first one at all)."""
    reference = next((g for g in shown if g.whole[0].config.generator.source == "circuit"), shown[0])
    out = []
    for group in shown:
        x, y = reference.scores, group.scores
        if group is not reference and min(len(x), len(y)) > 1:
            p = probability_of_improvement(x, y)
            out.append(verdict(reference.label, group.label, p, *interval(probability_of_improvement, x, y)))
    return out


def _agents(shown: Sequence[Group], picture: str, window: int) -> str:
    """Every agent's curve, and what it got in the final evaluation."""
    rows = []
    for agent in dict.fromkeys(agent for group in shown for agent in group.agents):
        told = [[run.result.get("agents", {}).get(agent) for run in group.whole] for group in shown]
        found = [[x for x in values if x is not None] for values in told]
        rows.append([agent, *(_number(float(np.median(values))) if values else "none" for values in found)])
    return (
        f"<h2>Agents</h2>{picture}<p>Return of every agent in training episodes, smoothed over {window} updates; IQM "
        "over seeds with its 95 % bootstrap interval.</p>"
        f"{_table(['greedy, median over seeds', *(group.label for group in shown)], rows)}"
    )


def _parameters(shown: Sequence[Group]) -> str:
    facts = [describe(group.whole[0].config) for group in shown]
    rows = [[name.replace("_", " "), *(str(each[name]) for each in facts)] for name in PARAMETERS]
    return _table(["", *(group.label for group in shown)], rows)


def _configuration(shown: Sequence[Group]) -> str:
    first = shown[0].whole[0].config
    out = ""
    for group in shown[1:]:
        changed = differences(first, group.whole[0].config)
        words = (f"{key}: {a} → {b}" for key, (a, b) in changed.items() if key not in ("train.seed", "train.directory"))
        out += f"<h3>{escape(group.label)}</h3>{_list(list(words))}"
    text = escape(json.dumps(first.model_dump(mode="json"), indent=2))
    return f"<details><summary>{escape(shown[0].label)}</summary><pre>{text}</pre></details>{out}"


def _versions(shown: Sequence[Group]) -> str:
    found: dict[str, set[str]] = {}
    for run in (run for group in shown for run in group.whole):
        for name, version in run.result.get("versions", {"versions": "not recorded"}).items():
            found.setdefault(name, set()).add(version)
    return _table(["package", "version"], [[name, ", ".join(sorted(versions))] for name, versions in found.items()])


def _curves(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    for axes, name in zip(drawn, ("update", "env_steps"), strict=True):
        for number, group in enumerate(shown):
            y_RT, x_RT = group.column("return_smoothed"), group.column(name)
            at = np.unique(np.linspace(0, y_RT.shape[1] - 1, POINTS).astype(int))
            figures.band(axes, np.median(x_RT, axis=0)[at], y_RT[:, at], number, group.label)
        axes.set_ylabel("smoothed return of training")
    drawn[0].set_xlabel("updates")
    drawn[1].set_xlabel("environment steps of all ranks, median over seeds")
    drawn[0].legend(frameon=False, fontsize=8)


def _scores(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    figures.scores(drawn[0], {group.label: group.scores.tolist() for group in shown})
    drawn[0].set_xlabel("mean return of the last tenth of updates")


def _time(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    shares = {}
    for group in shown:
        total = {phase: sum(run.profile_s[phase] for run in group.whole) for phase in group.whole[0].profile_s}
        shares[group.label] = {phase: seconds / sum(total.values()) for phase, seconds in total.items()}
    figures.stacks(drawn[0], shares)
    drawn[0].set_xlabel("share of wall time")


def _agents_curves(drawn: Sequence[Any], shown: Sequence[Group]) -> None:
    """A panel for every group that has several agents."""
    for axes, group in zip(drawn, (group for group in shown if group.agents), strict=True):
        if axes is not drawn[0]:
            axes.sharey(drawn[0])
        x_T = np.median(group.column("env_steps"), axis=0)
        at = np.unique(np.linspace(0, len(x_T) - 1, POINTS).astype(int))
        for number, agent in enumerate(group.agents):
            figures.band(axes, x_T[at], group.agent_column(agent)[:, at], number, agent)
        axes.set_title(figures.wrapped(group.label), fontsize=10)
        axes.set_xlabel("environment steps of all ranks, median over seeds")
        axes.set_ylabel("smoothed return of training")
        axes.legend(frameon=False, fontsize=8, ncols=1 + len(group.agents) // 8)


def _pictures(shown: Sequence[Group]) -> dict[str, tuple[Any, str]]:
    """Every figure, and its text for the page."""
    lines = sum(1 + len(group.label) // figures.WIDTH for group in shown)
    several = sum(bool(group.agents) for group in shown)
    drawn = {
        "curves": _picture(shown, 2, None, _curves),
        "scores": _picture(shown, 1, lines, _scores),
        "time": _picture(shown, 1, lines, _time),
    }
    return drawn | ({"agents": _picture(shown, several, None, _agents_curves)} if several else {})


def _picture(
    shown: Sequence[Group], panels: int, lines: int | None, draw: Callable[[Sequence[Any], Sequence[Group]], None]
) -> tuple[Any, str]:
    with figures.styled():
        drawn, axes = figures.panels(panels, lines, columns=2)
        draw(axes, shown)
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None})
        return drawn, text.getvalue()[text.getvalue().index("<svg") :]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
