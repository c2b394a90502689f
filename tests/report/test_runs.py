"""Run directories: damaged ones are named and in no mean; groups differ by their seed alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqtrl.config.run import Config
from distqtrl.report.html import warnings
from distqtrl.report.runs import Group, Run, directories, grouped, read


def own_score(run):
    """The mean return of the greedy episodes at the end, from the file."""
    return json.loads((run / "result.json").read_text())["evaluation"]["mean"]


def lines(change):
    """Damage that changes the list of metrics.jsonl's lines (bytes)."""

    def damage(run):
        path = run / "metrics.jsonl"
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return damage


def replace(path, *pairs):
    for old, new in pairs:
        path.write_text(path.read_text().replace(old, new))


def told(returns):
    """Damage that changes agent_returns (JSON) of all updates."""
    return lambda run: replace(run / "metrics.jsonl", ('"wall_s": ', f'"agent_returns": {returns}, "wall_s": '))


@pytest.mark.parametrize(
    ("problem", "damage"),
    [
        ("metrics.jsonl is missing", lambda run: (run / "metrics.jsonl").unlink()),
        ("metrics.jsonl is empty", lines(lambda all: [])),
        ("metrics.jsonl cannot be read from line 20 on", lines(lambda all: [*all[:-1], all[-1][:90]])),
        ("metrics.jsonl cannot be read from line 6 on", lines(lambda all: [*all[:5], b"\xff\x00\x9c{\n", *all[6:]])),
        ("metrics.jsonl: line 4 is not update 3", lines(lambda all: [*all[:3], *all[2:]])),
        ("metrics.jsonl: line 2 is not update 1", lines(lambda all: [all[0], b"null\n", *all[2:]])),
        ("metrics.jsonl holds 17 updates, the run made 20", lines(lambda all: all[:-3])),
        ("not complete: it stands at update 20", lambda run: (run / "result.json").unlink()),
        (
            "metrics.jsonl: line 1: return_mean = 'x': Input should be a valid number",
            lambda run: replace(run / "metrics.jsonl", ('"return_mean": ', '"return_mean": "x", "_": ')),
        ),
        ("metrics.jsonl: line 1: agent_returns = ['player_0']: Input should be an object", told('["player_0"]')),
        (
            "metrics.jsonl: line 1: agent_returns.player_0 = 'much': Input should be a valid number",
            told('{"player_0": "much"}'),
        ),
        (
            "metrics.jsonl: line 1: agent_returns.player_0 = {'mean': 1}: Input should be a valid number",
            told('{"player_0": {"mean": 1}}'),
        ),
    ],
)
def test_a_damaged_run_is_named_and_in_no_mean(copied, problem, damage):
    a, b, c = copied("circuit-0", "circuit-1", "circuit-2")
    damage(b)
    (group,) = groups = grouped([read(run) for run in (a, b, c)])
    assert [run.problem for run in group.runs] == ["", problem, ""]
    assert f"{b}: {problem}. It is in no mean." in warnings(groups)
    assert group.scores.tolist() == [own_score(a), own_score(c)]
    assert group.curve("update", "return_mean", 400)[1].shape == (2, 20)
    assert "circuit: 2 seeds, too few for an interval: both are drawn." in warnings(groups)


def test_labels_name_what_differs(copied, trained):
    def labels(*runs):
        return {group.label: [run.config.train.seed for run in group.runs] for group in grouped([*map(read, runs)])}

    whole = [trained[name] for name in ("circuit-0", "direct-1", "circuit-1", "early-3", "direct-2")]
    assert labels(*whole) == {"source circuit": [0, 1, 3], "source direct": [1, 2]}
    a, b = copied("circuit-0", "circuit-1")
    assert labels(a, b) == {"circuit": [0, 1]}
    for file in ("metrics.jsonl", "result.json"):
        replace(b / file, ('"ranks": 1', '"ranks": 4'))
    assert labels(a, b) == {"ranks 1": [0], "ranks 4": [1]}
    replace(b / "config.json", ('"layers": 5', '"layers": 1'), ('"checkpoint_every": 100', '"checkpoint_every": 3'))
    assert labels(a, b) == {"ranks 1, layers 5": [0], "ranks 4, layers 1": [1]}


def test_an_early_end_is_a_run_of_its_own_length(trained):
    runs = [trained[name] for name in ("circuit-0", "early-3", "circuit-1")]
    (group,) = groups = grouped([read(run) for run in runs])
    x_T, y_RT = group.curve("update", "env_steps", 400)
    assert (x_T.tolist(), y_RT.tolist()) == ([0], [[run.columns["env_steps"][0]] for run in group.runs])
    assert [len(run.curve("update", "env_steps")[0]) for run in group.runs] == [20, 1, 20]
    assert group.scores.tolist() == [own_score(run) for run in runs]
    text = "\n".join(warnings(groups))
    assert "circuit: its runs made 1 to 20 updates; its mean ends with the shortest" in text
    assert "The runs differ in length, 1 to 20 updates" in text


def test_the_last_tenth_of_training(trained):
    run = read(trained["circuit-0"])
    rows = [json.loads(line) for line in (trained["circuit-0"] / "metrics.jsonl").read_text().splitlines()]
    assert run.last_tenth == (rows[-2]["return_mean"] + rows[-1]["return_mean"]) / 2
    assert np.isnan(read(trained["silent-4"]).last_tenth)


def curved(*curves):
    """A group of runs with these (steps, values)."""
    runs = []
    for steps, values in curves:
        columns = {"env_steps": np.array(steps, dtype=float), "y": np.array(values, dtype=float)}
        runs.append(Run(Path("run"), Config(), {}, columns, {}))
    return Group("group", runs)


steps = st.lists(st.integers(1, 50), min_size=1, max_size=12).map(lambda steps: np.cumsum(steps))
curves = st.lists(
    steps.flatmap(
        lambda x: st.tuples(st.just(x), st.lists(st.floats(-9, 9) | st.just(np.nan), min_size=len(x), max_size=len(x)))
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=80)
@given(curves=curves, points=st.integers(1, 9))
def test_the_means_of_runs_of_any_lengths_hold_what_was_known(curves, points):
    """Their places are those of the runs, up to where the first run ends; a value is the last known one."""
    group = curved(*curves)
    known = [[(x, y) for x, y in zip(*curve, strict=True) if not np.isnan(y)] for curve in curves]
    known = [pairs for pairs in known if pairs]
    x_T, y_RT = group.curve("env_steps", "y", points)
    assert len(x_T) <= points
    assert y_RT.shape == (len(known), len(x_T))
    end = min((pairs[-1][0] for pairs in known), default=0)
    assert (x_T <= end).all()
    assert (np.diff(x_T) > 0).all()
    for pairs, y_T in zip(known, y_RT, strict=True):
        for x, y in zip(x_T, y_T, strict=True):
            before = [value for at, value in pairs if at <= x]
            assert np.array_equal([y], before[-1:] or [np.nan], equal_nan=True)


@settings(deadline=None, max_examples=80)
@given(curve=curves.map(lambda curves: curves[0]), target=st.floats(-10, 10))
def test_a_target_is_reached_at_the_first_value_or_never(curve, target):
    (run,) = curved(curve).runs
    run.columns |= {"wall_s": 2 * run.columns["env_steps"]}
    first = next((at for at, y in enumerate(curve[1]) if y >= target), None)
    found = run.reached(target, "y")
    assert found == ((np.inf,) * 3 if first is None else (first + 1, curve[0][first], 2 * curve[0][first]))


def test_labels_of_many_differences_are_as_short_as_tells_them_apart(copied):
    a, b, c = copied("circuit-0", "circuit-1", "circuit-2")
    many = ('"layers": 5', '"layers": 1'), ('"smoothing": 10', '"smoothing": 3'), ('"threads": 1', '"threads": 2')
    for run in (b, c):
        replace(run / "config.json", *many, ('"validation_episodes": 40', '"validation_episodes": 7'))
    assert [group.label for group in grouped([*map(read, (a, b))])] == ["smoothing 10, …", "smoothing 3, …"]
    replace(c / "config.json", ('"backend": "statevector"', '"backend": "torch"'))
    replace(b / "config.json", ('"source": "circuit"', '"source": "direct"'))  # is named, as whoever reads looks for it
    labels = [group.label for group in grouped([*map(read, (a, b, c))])]
    assert len(set(labels)) == 3
    assert all(label.endswith(", …") and label.count(",") == 2 for label in labels)
    assert [label.split(",")[0] for label in labels] == ["source circuit", "source direct", "source circuit"]


def test_labels_that_are_cut_are_still_different(copied):
    a, b = copied("circuit-0", "circuit-1")
    for run, letter in ((a, "x"), (b, "y")):
        replace(run / "config.json", ('"options": {}', f'"options": {{"{"long" * 20}": "{letter}"}}'))
    first, second = [group.label for group in grouped([*map(read, (a, b))])]
    assert len(first) < 60
    assert second == f"{first} #2"


def test_directories_are_found_one_or_two_levels_down(copied, tmp_path):
    a, b = copied("circuit-0", "circuit-1")
    deep = shutil.copytree(a, tmp_path / "runs" / "study" / "c")
    assert directories([b, tmp_path / "runs", b]) == [b, a, deep]
    assert directories([tmp_path / "nowhere"]) == [tmp_path / "nowhere"]  # refused by read


def test_a_run_without_its_configuration_is_found(copied, tmp_path):
    a, b = copied("circuit-0", "circuit-1")
    (a / "config.json").unlink()
    assert directories([tmp_path / "runs"]) == [a, b]


def test_a_run_that_never_began_changes_no_label(copied):
    a, b = copied("circuit-0", "circuit-1")
    for file in ("metrics.jsonl", "result.json"):
        (b / file).unlink()
    assert grouped([read(a), read(b)])[0].label == "circuit"


def test_agents_have_columns(coins):
    (group,) = grouped([read(coins)])
    rows = [json.loads(line) for line in (coins / "metrics.jsonl").read_text().splitlines()]
    assert None in [row["agent_returns"] for row in rows]
    assert group.agents == ["player_0", "player_1"]
    run = group.runs[0]
    for agent, column in run.agent_returns.items():
        expected = [(row["agent_returns"] or {}).get(agent, np.nan) for row in rows]
        np.testing.assert_array_equal(column, expected)
    smoothed = np.mean([run.agent(agent) for agent in group.agents], axis=0)
    np.testing.assert_allclose(smoothed, run.columns["return_smoothed"])


def test_one_agent_has_none(trained):
    (group,) = grouped([read(trained["circuit-0"])])
    assert (group.agents, group.runs[0].agent_returns) == ([], {})


def test_agents_may_be_missing(coins, tmp_path):
    """In all updates of a run, or in some of them."""
    a, b, c = (shutil.copytree(coins, tmp_path / name) for name in "abc")
    for seed, run in enumerate((a, b, c)):
        replace(run / "config.json", ('"seed": 0', f'"seed": {seed}'))
    replace(a / "metrics.jsonl", ("agent_returns", "of_old"))
    lines(lambda every: [every[0].replace(b"agent_returns", b"of_old"), *every[1:]])(b)
    (group,) = grouped([read(run) for run in (a, b, c)])
    assert [run.problem for run in group.runs] == ["", "", ""]
    assert [sorted(run.agent_returns) for run in group.runs] == [[], group.agents, group.agents]
    known = [group.curve("update", column, 400)[1] for column in (lambda run: run.agent("player_0"), "return_smoothed")]
    assert [len(y_RT) for y_RT in known] == [2, 3]
