"""Figures: what is drawn are the numbers; files for print and screen."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from distqtrl.report import figures

RUNS = np.random.default_rng(0).normal(size=(9, 5))


@pytest.fixture
def axes():
    return figures.panels(1)[1][0]


def test_a_band_is_the_iqm_over_runs_and_its_interval(axes):
    figures.band(axes, np.arange(5), RUNS, 0, "many")
    figures.band(axes, np.arange(5), RUNS[:1], 8, "one")
    figures.band(axes, np.arange(5), RUNS[:2], 8, "two")
    (shaded,) = axes.collections  # no interval of one run, or of two
    many, one, _ = axes.lines
    np.testing.assert_allclose(many.get_ydata(), stats.trim_mean(RUNS, 0.25, axis=0))
    np.testing.assert_allclose(one.get_ydata(), RUNS[0])
    assert (many.get_color(), many.get_linestyle()) != (one.get_color(), one.get_linestyle())
    x, y = shaded.get_paths()[0].vertices.T
    for t in range(5):
        assert RUNS[:, t].min() <= y[x == t].min() < many.get_ydata()[t] < y[x == t].max() <= RUNS[:, t].max()


def test_scores_are_dots_with_iqm_and_interval(axes):
    figures.scores(axes, {"many": RUNS[:, 0], "one": RUNS[:1, 0]})
    dots, bar, interval, dot, _ = (line.get_xdata() for line in axes.lines)  # no interval of one run
    assert (list(dots), list(dot)) == (list(RUNS[:, 0]), [RUNS[0, 0]])
    assert bar[0] == pytest.approx(stats.trim_mean(RUNS[:, 0], 0.25))
    assert RUNS[:, 0].min() <= interval[0] < bar[0] < interval[1] <= RUNS[:, 0].max()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["many", "one"]


def test_two_scores_have_no_interval(axes):
    figures.scores(axes, {"two": RUNS[:2, 0]})
    dots, bar = axes.lines
    assert (list(dots.get_xdata()), bar.get_xdata()[0]) == (list(RUNS[:2, 0]), RUNS[:2, 0].mean())


def test_arrivals_that_never_came_have_no_place_on_the_axis(axes):
    figures.arrivals(axes, {"all": [3.0, 1.0], "some": [5.0, np.inf, np.inf], "none": [np.inf]}, "not reached")
    on = [line for line in axes.lines if line.get_transform() != axes.get_yaxis_transform()]
    assert sorted(x for line in on for x in line.get_xdata()) == [1, 2, 2, 3, 5]  # two runs and their median, one run
    assert [text.get_text() for text in axes.texts] == ["2 not reached", "1 not reached"]


def test_stacks_and_points(axes):
    figures.stacks(axes, {"a": {"x": 0.25, "y": 0.75}, "b": {"y": 0.5, "x": 0.5}})
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 0.25), (0, 0.5), (0.25, 0.75), (0.5, 0.5)]
    axes = figures.panels(1)[1][0]
    rows = [(1, 4, 2, np.inf), (2, np.inf, 1, np.inf), (3, np.nan, 1, 2), (4, 8, 8, 9), (5, 4, 0, 6)]
    figures.points(axes, rows, 0, "case")
    assert np.array(axes.lines[0].get_data()).tolist() == [[1, 4, 5], [4, 8, 4]]  # finite ones only
    assert [bar[:, 1].tolist() for bar in axes.collections[0].get_segments()] == [[2, 8], [8, 9], [2, 6]]
    arrows = [np.array(line.get_data()).tolist() for line in axes.lines[-2:]]
    assert arrows == [[[1], [8]], [[5], [2]]]  # where the bar has no end, and where it reaches 0


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_panels_in_rows(number, rows):
    figure, axes = figures.panels(number, columns=2)
    assert len(axes) == len(figure.axes) == number
    assert figure.get_size_inches().tolist() == [6.4 * min(number, 2), 4.4 * rows]


def test_a_learning_curve_has_a_thin_line_per_agent(coins, trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "panels", lambda *args, own=figures.panels: drawn.append(own(*args)) or drawn[-1])
    for run in (coins, trained["circuit-0"]):
        figures.learning_curve(Path(shutil.copytree(run, tmp_path / run.name)))
    (mean, *agents), one = (axes.lines for _, (axes,) in drawn)
    assert [line.get_label() for line in agents] == ["player_0", "player_1"]
    assert max(line.get_linewidth() for line in agents) < mean.get_linewidth()
    rows = [json.loads(line) for line in (coins / "metrics.jsonl").read_text().splitlines()]
    ended = [row for row in rows if row["agent_returns"]]
    for line in agents:
        expected = [[row["env_steps"], row["agent_returns"][line.get_label()]] for row in ended]
        assert line.get_xydata().tolist() == expected
    np.testing.assert_allclose(np.mean([line.get_ydata() for line in agents], axis=0), mean.get_ydata())
    assert len(one) == 1


def test_files_for_print_and_screen(tmp_path):
    with figures.styled():
        figure, (axes,) = figures.panels(1, lines=2)
        figures.scores(axes, {"a.b": RUNS[:, 0]})
        png, pdf = figures.save(figure, tmp_path / "name.v1")
    assert [png.name, pdf.name] == ["name.v1.png", "name.v1.pdf"]
    assert matplotlib.image.imread(png).std() > 0.01  # not blank
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"/Type3" not in pdf.read_bytes()  # fonts that journals take


def test_figures_do_not_depend_on_the_users_settings(trained, tmp_path, monkeypatch):
    run = shutil.copytree(next(iter(trained.values())), tmp_path / "run")
    plain = figures.learning_curve(run).read_bytes()
    monkeypatch.setenv("MPLBACKEND", "module://no_such_notebook")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9)
    assert figures.learning_curve(run).read_bytes() == plain
    assert matplotlib.rcParams["text.usetex"]


def test_a_picture_that_cannot_be_drawn_is_one_line(trained, tmp_path):
    run = shutil.copytree(next(iter(trained.values())), tmp_path / "run")
    assert figures.undrawn(run) == ""
    before = (run / "learning_curve.png").read_bytes()
    (run / "metrics.jsonl").write_text('{"env\n\n')
    said = figures.undrawn(run)
    assert said.startswith(f"warning: {run}/learning_curve.png is not drawn (")
    assert "\n" not in said
    assert (run / "learning_curve.png").read_bytes() == before


def test_the_backend_that_a_notebook_names_stays():
    opened = "import distqtrl.report.figures as f, sys; f.styled().__enter__()"
    code = f"{opened}; print(sys.modules['matplotlib'].get_backend())"
    env = {**os.environ, "MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "svg\n"
