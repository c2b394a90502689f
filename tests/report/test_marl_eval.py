"""The file for marl-eval: its numbers are those of the runs, and every run has the same seeds and steps."""

import json

import numpy as np
import pytest

from distqtrl.cli import main as cli
from distqtrl.errors import UserError
from distqtrl.report.marl_eval import raw
from distqtrl.report.runs import grouped, read


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def written(*runs):
    """algorithm -> seed -> steps."""
    (tasks,) = raw(grouped([read(run) for run in runs])).values()
    (algorithms,) = tasks.values()
    return algorithms


def edit(run, change):
    """Change every row of metrics.jsonl: change(number, row)."""
    every = rows(run)
    for number, row in enumerate(every):
        change(number, row)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))


def counts(steps):
    return [step["step_count"] for key, step in steps.items() if key != "absolute_metrics"]


def test_the_file_of_one_run(coins, tmp_path, capfd):
    page, file = tmp_path / "page.html", tmp_path / "new" / "raw.json"
    assert cli.main(["report", str(coins), "-o", str(page), "--marl-eval", str(file)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(file)
    ended = [row for row in rows(coins) if row["return_mean"] is not None]
    assert len(ended) < len(rows(coins))
    steps = {
        f"step_{i}": {"step_count": row["env_steps"], "return": [row["return_mean"]]} for i, row in enumerate(ended)
    }
    absolute = json.loads((coins / "result.json").read_text())["evaluation"]["mean"]
    expected = {"direct": {"seed_0": {**steps, "absolute_metrics": {"return": [absolute]}}}}
    assert json.loads(file.read_text()) == {"distqtrl.environment.coin_game": {"parallel_env": expected}}


def test_groups_are_algorithms_and_share_their_steps(trained):
    """Episodes end when they end, so runs stand at other steps after the same update."""
    found = raw(grouped([read(trained[name]) for name in ("circuit-1", "circuit-2", "direct-1", "direct-2")]))
    algorithms = found["gymnasium"]["CartPole-v1"]
    assert {name: list(seeds) for name, seeds in algorithms.items()} == {
        f"source {source}": ["seed_1", "seed_2"] for source in ("circuit", "direct")
    }
    grids = [counts(steps) for seeds in algorithms.values() for steps in seeds.values()]
    assert all(grid == grids[0] for grid in grids)
    own = rows(trained["direct-2"])
    assert own[0]["env_steps"] <= grids[0][0] < grids[0][-1] <= own[-1]["env_steps"]
    for step in list(algorithms["source direct"]["seed_2"].values())[:-1]:
        last = [row for row in own if row["env_steps"] <= step["step_count"]][-1]
        assert step["return"] == [last["return_mean"]]


def test_equal_steps_stay_as_they_are(copied):
    a, b = copied("circuit-1", "circuit-2")
    for run in (a, b):
        edit(run, lambda number, row: row.update(env_steps=100 * (number + 1)))
    edit(b, lambda number, row: row.update(return_mean=None if number == 4 else row["return_mean"]))
    (seeds,) = written(a, b).values()
    assert [counts(steps) for steps in seeds.values()] == [list(range(100, 2001, 100))] * 2
    for run, steps in zip((a, b), seeds.values(), strict=True):
        told = [row["return_mean"] for row in rows(run)]
        told[4] = told[3] if told[4] is None else told[4]
        assert [step["return"] for step in steps.values()][:-1] == [[x] for x in told]


def test_the_shortest_run_ends_all(copied):
    a, b = copied("circuit-0", "early-3")
    edit(b, lambda number, row: row.update(env_steps=rows(a)[2]["env_steps"]))
    (seeds,) = written(a, b).values()
    assert [counts(steps) for steps in seeds.values()] == [[rows(a)[2]["env_steps"]]] * 2


def test_names_have_no_commas(copied):
    a, b = copied("circuit-1", "direct-1")
    text = (b / "config.json").read_text()
    (b / "config.json").write_text(text.replace('"layers": 5', '"layers": 1'))
    assert list(written(a, b)) == ["source circuit; layers 5", "source direct; layers 1"]


def test_damaged_runs_are_left_out(copied):
    a, b = copied("circuit-1", "circuit-2")
    (b / "result.json").unlink()
    assert list(written(a, b)["circuit"]) == ["seed_1"]


def test_other_seeds_are_refused(copied, tmp_path, capfd):
    runs = copied("circuit-0", "circuit-1", "direct-1", "direct-2")
    before = sorted(tmp_path.rglob("*"))
    argv = ["report", *map(str, runs), "-o", str(tmp_path / "a.html"), "--marl-eval", str(tmp_path / "a.json")]
    assert cli.main(argv) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), sorted(tmp_path.rglob("*"))) == ("", 1, before)
    assert "the same seeds of every group: whole runs of source circuit have 0 1, those of source direct 1 2;" in err


def test_runs_without_a_common_step_are_refused(copied):
    a, b = copied("circuit-0", "circuit-1")
    edit(b, lambda number, row: row.update(env_steps=10**9 + number))
    with pytest.raises(UserError, match="no environment steps in common"):
        written(a, b)


def test_values_are_numbers(trained):
    text = json.dumps(written(trained["circuit-0"], trained["circuit-1"]), allow_nan=False)
    values = [step["return"] for seeds in json.loads(text).values() for run in seeds.values() for step in run.values()]
    assert np.isfinite(values).all()
