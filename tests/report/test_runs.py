"""Run directories: damaged ones are named and in no mean; groups differ by their seed alone."""

import json
import shutil

import numpy as np
import pytest

from distqtrl.report.html import warnings
from distqtrl.report.runs import directories, grouped, read


def own_score(run, updates=2):
    """The mean return of the last tenth of 20 updates, from the file."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sum(row["return_mean"] for row in rows[-updates:]) / updates


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
    assert group.column("return_mean").shape == (2, 20)
    assert "circuit: 2 seeds; an interval over fewer than 5 is too narrow." in warnings(groups)


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


def test_an_early_end_ends_the_groups_curves(trained):
    runs = [trained[name] for name in ("circuit-0", "early-3", "circuit-1")]
    (group,) = groups = grouped([read(run) for run in runs])
    assert group.column("env_steps").tolist() == [[run.columns["env_steps"][0]] for run in group.runs]
    assert group.scores.tolist() == [own_score(runs[0]), own_score(runs[1], 1), own_score(runs[2])]
    text = "\n".join(warnings(groups))
    assert "circuit: its runs made 1 to 20 updates; curves end with the shortest" in text
    assert "The runs differ in length, 1 to 20 updates" in text


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
    smoothed = np.mean([group.agent_column(agent) for agent in group.agents], axis=0)
    np.testing.assert_allclose(smoothed, group.column("return_smoothed"))


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
    assert group.agent_column("player_0").shape == (2, 9)
    assert group.column("return_smoothed").shape == (3, 9)
