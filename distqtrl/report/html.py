"""One self-contained page about any set of runs: scores, curves, targets, parameters, time, configuration, versions.

What cannot be compared is refused (other environments) or named at the top of the page (runs that are incomplete or
damaged, few seeds, runs of different lengths).
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from distqtrl import __version__
from distqtrl.config.run import differences
from distqtrl.errors import UserError
from distqtrl.files.replace import replace
from distqtrl.report import effort, figures
from distqtrl.report.describe import describe
from distqtrl.report.effort import Target
from distqtrl.report.marl_eval import raw
from distqtrl.report.pictures import pictures, validated
from distqtrl.report.runs import Group, Run, directories, grouped, read
from distqtrl.report.statistics import LEAST, interval, iqm
from distqtrl.report.verdicts import how, verdicts

FEW = 5  # seeds; a bootstrap interval over fewer is far too narrow
PARAMETERS = (
    "policy",
    "circuit",
    "qubits",
    "circuit_parameters",
    "source_parameters",
    "mapping_parameters",
    "total_parameters",
    "effective_parameters",
    "training_only_parameters",
    "policy_weights",
    "deployed_parameters",
    "compression",
)
NOISE = ("noise scale", "batch's share")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#111}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}.warn{border-left:4px solid #D55E00;padding-left:1rem}
svg{max-width:100%;height:auto}.wide{overflow-x:auto}pre{background:#f5f5f5;padding:1rem;overflow:auto}"""


def report(
    folders: Sequence[Path], page: Path, marl_eval: Path | None = None, target: float | None = None
) -> list[Path]:
    """Write the page about runs (or folders of runs), and its figures as PNG and PDF beside it; returns the files.

    marl_eval: also the file that marl-eval reads; target: the return whose cost is counted, in place of the runs' own.
    Raises UserError when a folder is not a run, or the runs' environments differ, or none is whole, or marl-eval could
    not read them.
    """
    if page.suffix.lower() not in ("", ".html", ".htm"):
        raise UserError(f"-o {page}: the page is HTML: name it {page.with_suffix('.html').name}")
    if marl_eval is not None and marl_eval.absolute() == page.absolute():
        raise UserError(f"--marl-eval {marl_eval}: that is the page's file, see -o: name another")
    groups = grouped([read(directory) for directory in directories(folders)])
    shown = [group for group in groups if group.whole]
    if not shown:
        run = groups[0].runs[0]
        raise UserError(f"no run is whole, so there is nothing to show: {run.directory}: {run.problem}")
    aim = effort.target(shown, target)
    drawn = pictures(shown, aim)
    more = {} if marl_eval is None else {marl_eval: json.dumps(raw(shown), indent=2) + "\n"}
    text = _page(groups, shown, aim, {name: svg for name, (_, svg) in drawn.items()})  # nothing is refused after it
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
        elif 1 < len(whole) < LEAST:
            out.append(f"{group.label}: {len(whole)} seeds, too few for an interval: both are drawn.")
        elif 1 < len(whole) < FEW:
            out.append(f"{group.label}: {len(whole)} seeds; an interval over fewer than {FEW} is too narrow.")
        if words := _lengths(whole):
            out.append(f"{group.label}: its runs made {words}; its mean ends with the shortest, every run is drawn.")
    if words := _lengths([run for group in groups for run in group.whole]):
        out.append(f"The runs differ in length, {words}: their scores differ in effort.")
    return out


def _lengths(runs: Sequence[Run]) -> str:
    """The shortest and the longest of runs, where they differ."""
    lengths = [len(run.columns["update"]) for run in runs]
    return f"{min(lengths)} to {max(lengths)} updates" if lengths and min(lengths) < max(lengths) else ""


def _page(groups: Sequence[Group], shown: Sequence[Group], aim: Target | None, drawn: dict[str, str]) -> str:
    config = shown[0].whole[0].config
    warned, scores = warnings(groups), {group.label: group.scores for group in shown}
    window = " or ".join(map(str, sorted({run.config.train.smoothing for group in shown for run in group.whole})))
    runs = sum(len(group.whole) for group in shown)
    parts = [
        f"<h1>{escape(config.subject)}: {_count(len(shown), 'configuration')}, {_count(runs, 'run')}</h1>",
        f"<p>Made by distqtrl {__version__} from the runs' own files.</p>",
        '<div class="warn"><h2>Read this first</h2>' + _list(warned) + "</div>" if warned else "",
        f"<h2>Scores</h2>{drawn['scores']}",
        "<p>Score: mean return of the greedy episodes at the end; a dot is a run, the bar is the IQM with its 95 % "
        "bootstrap interval (arXiv 2108.13264), from three seeds on.</p>",
        _table(["", "seeds", "score, IQM", "95 % interval", "lowest", "highest", "last tenth, IQM"], _scored(shown)),
        "<p>Last tenth: training episodes, whose actions are drawn, in a run's last tenth of updates.</p>",
        "" if len(shown) < 2 else f"<p>{escape(how(scores))}</p>",
        _list(verdicts(scores)),
        f"<h2>Learning</h2>{drawn['curves']}",
        f"<p>Returns of training are smoothed over {window} updates. Thin: every run, to its end. Thick: IQM over "
        "seeds as far as all runs of a group go, with its 95 % bootstrap interval from three seeds on. "
        f"{'' if validated(shown) else 'No run has greedy validations (evaluate.every none).'}</p>",
        "<h2>Target</h2>" + _target(shown, aim, drawn.get("target", "")),
        _speedups(shown, aim),
        "<h2>Effort</h2>" + _effort(shown),
        _agents(shown, drawn["agents"], window) if "agents" in drawn else "",
        "<h2>Parameters</h2>" + _parameters(shown),
        f"<h2>Time</h2>{drawn['time']}<p>Share of the phases in wall time, rank 0.</p>",
        "<h2>Configuration</h2>" + _configuration(shown),
        "<h2>Versions</h2>" + _versions(shown),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{escape(config.subject)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'


def _scored(shown: Sequence[Group]) -> list[list[str]]:
    rows = []
    for group in shown:
        values = group.scores
        low_high = " to ".join(map(_number, interval(iqm, values))) if len(values) >= LEAST else "none"
        trained = np.array([run.last_tenth for run in group.whole])
        middle = _number(iqm(trained[~np.isnan(trained)])) if not np.isnan(trained).all() else "no episode ended"
        ends = _number(values.min()), _number(values.max())
        rows.append([group.label, str(len(values)), _number(iqm(values)), low_high, *ends, middle])
    return rows


def _target(shown: Sequence[Group], aim: Target | None, picture: str) -> str:
    """What reaching the target cost, or why nothing is said about it."""
    if aim is None:
        return "<p>The runs' configurations name no target, or not the same: give --target RETURN.</p>"
    head = ["", "reached", "updates, median", "environment steps, median", "wall s, median"]
    return f"{picture}<p>Reached: the {escape(aim.words)}.</p>{_table(head, effort.rows(shown, aim))}"


def _speedups(shown: Sequence[Group], aim: Target | None) -> str:
    """How many times less of everything more ranks need, where groups differ in their ranks alone."""
    rows = [row for family in effort.families(shown) for row in effort.speedups(family, aim)]
    if not rows:
        return ""
    head = ["", "fewer updates to the target", "less wall time to it", "steps per second"]
    return (
        f"<h2>Speed-up over ranks</h2>{_table(head, rows)}<p>Ratios of medians over seeds, with the 95 % bootstrap "
        "interval from three seeds on.</p>"
    )


def _effort(shown: Sequence[Group]) -> str:
    """What the runs took: steps, seconds, joules; and the noise of their gradients."""
    rows, methods = [], []
    for group in shown:
        ends = np.array([[run.columns[name][-1] for name in ("env_steps", "cpu_s", "wall_s")] for run in group.whole])
        steps, *seconds = np.median(ends, axis=0)
        spent = [run.result.get("energy") or {} for run in group.whole]
        joules = [each["joules"] for each in spent if each.get("joules") is not None]
        methods += [each["method"] for each in spent if each.get("method")]
        cells = [f"{steps:,.0f}", *(f"{x:,.1f}" for x in seconds)]
        cells.append(_number(float(np.median(joules))) if joules else "not measured")
        rows.append([group.label, *cells, *(_last(group, name) for name in ("noise_scale_smoothed", "batch_share"))])
    told = "".join(f"<p>Energy of training: {escape(method)}.</p>" for method in dict.fromkeys(methods))
    return (
        f"{_table(['', 'env steps', 'CPU s per rank', 'wall s', 'joules', *NOISE], rows)}<p>Medians over seeds. Noise "
        "scale of the gradient at the end, where it is known, in environment steps (episodes where REINFORCE plays "
        f"whole ones). The batch's share of it: well below 1, more ranks help.</p>{told}"
    )


def _last(group: Group, name: str) -> str:
    """Median over the runs of the last number in a column that has one."""
    columns = [run.columns[name][np.isfinite(run.columns[name])] for run in group.whole]
    ends = [column[-1] for column in columns if len(column)]
    return _number(float(np.median(ends))) if ends else "none"


def _agents(shown: Sequence[Group], picture: str, window: str) -> str:
    """Every agent's curve, and what it got in the final evaluation."""
    rows = []
    for agent in dict.fromkeys(agent for group in shown for agent in group.agents):
        told = [[run.result.get("agents", {}).get(agent) for run in group.whole] for group in shown]
        found = [[x for x in values if x is not None] for values in told]
        rows.append([agent, *(_number(float(np.median(values))) if values else "none" for values in found)])
    return (
        f"<h2>Agents</h2>{picture}<p>Return of every agent in training episodes, smoothed over {window} updates; lines "
        "as above.</p>"
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
