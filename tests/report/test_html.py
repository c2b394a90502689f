"""The report page: its numbers, what it warns of, what it refuses; nothing from elsewhere and nothing half-written."""

import html
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from distqtrl.cli import main as cli
from distqtrl.report import figures
from distqtrl.versions import versions

FILES = ["page.html", *(f"page-{name}.{kind}" for name in ("curves", "scores", "time") for kind in ("png", "pdf"))]
GROUPS = {"circuit": (0, 1, 2), "direct": (1, 2), "frozen_random": (0,)}  # seeds


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """(folder, page) of a report over whole runs, one of them alone in its group, and one damaged run."""
    folder = tmp_path_factory.mktemp("made")
    damaged = Path(shutil.copytree(trained["early-3"], folder / "damaged"))
    (damaged / "result.json").unlink()
    runs = [trained[f"{source}-{seed}"] for source, seeds in GROUPS.items() for seed in seeds]
    page = folder / "out" / "page.html"
    assert cli.main(["report", *map(str, runs), str(damaged), "--output", str(page)]) == 0
    return folder, page.read_text()


@pytest.fixture
def scores(trained):
    """source -> the mean returns of its runs' greedy episodes."""

    def score(name):
        return json.loads((trained[name] / "result.json").read_text())["evaluation"]["mean"]

    return {source: np.array([score(f"{source}-{seed}") for seed in seeds]) for source, seeds in GROUPS.items()}


def table(page, heading):
    """First cell -> the others, of the first table below a heading."""
    text = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    rows = [re.findall("<t[dh]>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", text)]
    return {first: rest for first, *rest in rows}


def replace(run, old, new, file="config.json"):
    text = (run / file).read_text()
    assert old in text
    (run / file).write_text(text.replace(old, new))


def test_numbers_are_those_of_the_files(made, trained, scores):
    page = made[1]
    for source, seeds in GROUPS.items():
        lines = [(trained[f"{source}-{s}"] / "metrics.jsonl").read_text().splitlines() for s in seeds]
        told = [[json.loads(line) for line in run] for run in lines]
        count, middle, interval, low, high, last = table(page, "Scores")[f"source {source}"]
        assert (count, middle) == (str(len(seeds)), f"{stats.trim_mean(scores[source], 0.25):.3g}")
        assert (low, high) == (f"{min(scores[source]):.3g}", f"{max(scores[source]):.3g}")
        tenths = [(run[-2]["return_mean"] + run[-1]["return_mean"]) / 2 for run in told]
        assert last == f"{stats.trim_mean(tenths, 0.25):.3g}"
        bounds = interval.split(" to ")
        assert bounds == ["none"] if len(seeds) < 3 else float(bounds[0]) <= float(middle) <= float(bounds[1])
        steps, *_, share = table(page, "Effort")[f"source {source}"]
        assert steps == f"{np.median([run[-1]['env_steps'] for run in told]):,.0f}"
        ends = [[row["batch_share"] for row in run if row["batch_share"]][-1:] for run in told]
        assert share == (f"{np.median([end for (end,) in filter(None, ends)]):.3g}" if any(ends) else "none")
    parameters = table(page, "Parameters")
    assert parameters["policy weights"] == ["898", "898", "898"]
    assert parameters["total parameters"][:2] == ["651", "898"]  # circuit and map, the policy's own weights
    assert parameters["training only parameters"] == ["0", "0", "0"]  # REINFORCE has no value network
    versions_ = table(page, "Versions")
    assert all(versions_[name] == [version] for name, version in versions().items())
    assert html.unescape(re.search("(?s)<pre>(.*?)</pre>", page)[1]) in (
        (trained["circuit-0"] / "config.json").read_text()
    )


def test_the_page_warns_and_judges(made, scores):
    page = html.unescape(made[1])
    assert "CartPole-v1: 3 configurations, 6 runs" in page
    assert f"<li>{made[0]}/damaged: not complete: it stands at update 1. It is in no mean.</li>" in page
    assert "<li>source frozen_random: one seed, so there is no interval.</li>" in page
    assert "<li>source direct: 2 seeds, too few for an interval: both are drawn.</li>" in page
    assert "<li>source circuit: 3 seeds; an interval over fewer than 5 is too narrow.</li>" in page
    assert "<li>Nothing can be decided here: for 1 comparison take 4 seeds or more in every group.</li>" in page
    x, y = scores["circuit"], scores["direct"]
    said = f"<li>source circuit and source direct: undecided, {x.mean():.4g} against {y.mean():.4g}, p = "
    assert said in page
    assert "; 3 and 2 seeds cannot decide, their smallest p is 0.1</li>" in page
    assert page.count("undecided, a single seed says nothing about the next") == 2
    assert "No run has greedy validations" in page
    assert "name no target, or not the same: give --target RETURN" in page


def test_the_page_stands_alone(made):
    folder, page = made
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(FILES)
    for path in (folder / "out").glob("page-*"):
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
        assert path.stat().st_size > 5000
    assert not re.findall("<(?:script|link|img|iframe|object)|@import|src=", page)
    links = re.findall(r'href="(.*?)"|url\((.*?)\)', page)
    assert all((a or b).startswith("#") for a, b in links)
    assert len([ElementTree.fromstring(picture) for picture in re.findall("(?s)<svg.*?</svg>", page)]) == 3


def test_text_of_runs_is_escaped(copied, tmp_path, capfd):
    runs = copied("direct-1", "direct-2")
    replace(runs[0], '"options": {}', '"options": {"<script>": "&"}')
    assert cli.main(["report", *map(str, runs), "--json", "-o", str(tmp_path / "page.html")]) == 0
    assert json.loads(capfd.readouterr().out)["files"] == [str(tmp_path / name) for name in FILES]
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<td>options {&#x27;&lt;script&gt;&#x27;: &#x27;&amp;&#x27;}</td>" in page


def everywhere(change):
    """The same damage to every run."""
    return lambda run: [change(each) for each in run.parent.iterdir()]


REFUSED = [  # what happens to circuit-0, which is given with circuit-1; parts of the message
    (lambda run: replace(run, '"max_episode_steps": 15', '"max_episode_steps": 9'),
     ["circuit-1 has environment.max_episode_steps = 15, ", "circuit-0 has 9", "make a report of each"]),
    (lambda run: replace(run, '"seed": 0', '"seed": 1'),
     ["runs/circuit-1 and ", "runs/circuit-0 are one run twice (seed 1): give one of them"]),
    (lambda run: (run / "config.json").unlink(),
     ["circuit-0 is not a run directory (it has no config.json): give folders that train has made"]),
    (shutil.rmtree, ["circuit-0 is not a run directory"]),
    (lambda run: (shutil.rmtree(run), run.touch()), ["circuit-0 is not a run directory"]),
    (lambda run: (run / "config.json").write_text("{"), ["cannot read configuration ", "circuit-0/config.json"]),
    (lambda run: replace(run, '"seed"', '"sed"'), ["circuit-0/config.json: unknown key 'train.sed'"]),
    (lambda run: (run / "result.json").write_bytes(b"\xff{"), ["circuit-0/result.json", "writes it again"]),
    (everywhere(lambda run: (run / "metrics.jsonl").unlink()),
     ["no run is whole, so there is nothing to show: ", "circuit-0: metrics.jsonl is missing"]),
    (lambda run: (run / "result.json").write_text("[1]"), ["circuit-0/result.json", "writes it again"]),
    (lambda run: (run / "result.json").write_text('{"update": 20}'), ["circuit-0/result.json", "writes it again"]),
    (lambda run: replace(run, '"versions": {', '"versions": {"x": 2, ', "result.json"), ["versions.x = 2"]),
    (lambda run: replace(run, '"update": 20', '"agents": {"a": "x"}, "update": 20', "result.json"),
     ["circuit-0/result.json is not a result of a run (agents.a = 'x'", "writes it again"]),
    (everywhere(lambda run: replace(run, "CartPole-v1", "No-v0")), ["environment 'No-v0'"]),
    (lambda run: (run.parent.parent / "page.html").mkdir(), ["Is a directory: ", "page.html"]),
]  # fmt: skip


def refused(runs, tmp_path, capfd):
    """The one line that a report of these runs leaves; nothing else may be left."""
    before = sorted(tmp_path.rglob("*"))
    code = cli.main(["report", *map(str, runs), "-o", str(tmp_path / "page.html")])
    out, err = capfd.readouterr()
    assert sorted(tmp_path.rglob("*")) == before
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize(("damage", "messages"), REFUSED)
def test_what_is_refused_leaves_one_line_and_no_file(copied, tmp_path, capfd, damage, messages):
    runs = copied("circuit-0", "circuit-1")
    damage(runs[0])
    err = refused(runs, tmp_path, capfd)
    assert all(message in err for message in messages)


def test_a_page_is_no_picture(copied, tmp_path, capfd):
    assert cli.main(["report", *map(str, copied("circuit-0")), "-o", str(tmp_path / "page.pdf")]) == 2
    assert "page.pdf: the page is HTML: name it page.html" in capfd.readouterr().err
    assert not list(tmp_path.glob("page*"))


def test_two_files_of_one_name_are_refused(copied, tmp_path, capfd):
    page = str(tmp_path / "page.html")
    assert cli.main(["report", *map(str, copied("circuit-0")), "-o", page, "--marl-eval", page]) == 2
    assert "that is the page's file, see -o: name another" in capfd.readouterr().err
    assert not list(tmp_path.glob("page*"))


def test_a_run_whose_training_ended_no_episode_has_a_score(copied, tmp_path, capfd):
    assert cli.main(["report", *map(str, copied("silent-4", "circuit-0")), "-o", str(tmp_path / "page.html")]) == 0
    rows = table((tmp_path / "page.html").read_text(), "Scores")
    (silent,) = (cells for label, cells in rows.items() if cells[-1] == "no episode ended")
    assert float(silent[1]) > 0


def test_runs_of_unequal_length_are_all_drawn_to_their_ends(copied, tmp_path, monkeypatch):
    """20 updates and 7 of them, in one group: the mean ends where the shorter does, a thin line goes on."""
    runs = copied("circuit-0", "circuit-1")
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[1] / "metrics.jsonl").write_text("".join(lines[:7]))
    replace(runs[1], '"update": 20', '"update": 7', "result.json")
    drawn = []
    monkeypatch.setattr(
        figures, "panels", lambda *args, own=figures.panels, **kw: drawn.append(own(*args, **kw)) or drawn[-1]
    )
    assert cli.main(["report", *map(str, runs), "-o", str(tmp_path / "page.html")]) == 0
    steps, updates = drawn[0][1]
    ends = sorted((line.get_xdata()[-1], line.get_linewidth()) for line in updates.lines)
    assert ends == [(6, 0.6), (6, 1.5), (19, 0.6)]
    assert not [*steps.collections, *updates.collections]  # two seeds have no interval
    page = (tmp_path / "page.html").read_text()
    assert "circuit: its runs made 7 to 20 updates; its mean ends with the shortest, every run is drawn." in page
    assert "The runs differ in length, 7 to 20 updates: their scores differ in effort." in page


def valued(run, values, ranks=1):
    """Greedy validations in the last updates, and another number of ranks."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"ranks": ranks, "env_steps": 10 * (number + 1), "wall_s": (number + 1) / ranks}
        row |= {"validation_return": values.get(number)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_target_that_is_missed_is_never_a_number(copied, tmp_path, monkeypatch):
    """One rank needs 20 and 40 updates, 16 and never; two need 5 and 10, or never anything."""
    runs = copied("circuit-0", "circuit-1", "circuit-2", "direct-1")
    one = [Path(shutil.copytree(runs[0], tmp_path / "runs" / f"more-{n}")) for n in range(2)]
    for seed, run in enumerate(one):
        replace(run, '"seed": 0', f'"seed": {seed}')
        valued(run, {4: 9.0, 9: 500.0}, ranks=2)
    valued(runs[0], {5: 400.0, 19: 500.0})
    valued(runs[1], {9: 500.0, 19: 2.0})
    valued(runs[2], {19: 499.0})
    valued(runs[3], {19: 10.0})
    drawn = []
    monkeypatch.setattr(
        figures, "panels", lambda *args, own=figures.panels, **kw: drawn.append(own(*args, **kw)) or drawn[-1]
    )
    words = ["report", *map(str, [*runs, *one]), "--target", "500", "-o", str(tmp_path / "page.html")]
    assert cli.main(words) == 0
    page = html.unescape((tmp_path / "page.html").read_text())
    assert "the first update at which a greedy validation is 500 or more" in page
    found = table(page, "Target")
    assert found["ranks 1, source circuit"] == ["2 of 3", "20", "200", "20"]
    assert found["ranks 2, source circuit"] == ["2 of 2", "10", "100", "5"]
    assert found["ranks 1, source direct"] == ["0 of 1", *["not reached"] * 3]
    speedups = table(page, "Speed-up over ranks")
    assert speedups == {
        "": ["fewer updates to the target", "less wall time to it", "steps per second"],
        "ranks 2, source circuit beside ranks 1, source circuit": ["2", "4", "2"],
    }
    (axes,) = next(axes for _, axes in drawn if "to a return of 500" in axes[0].get_xlabel())
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert sorted(x for line in dots for x in line.get_xdata()) == [100, 100, 100, 200]
    arrows = [line for line in axes.lines if line.get_marker() == ">"]
    assert [line.get_transform() == axes.get_yaxis_transform() for line in arrows] == [True, True]  # beside the axis
    assert sorted(text.get_text() for text in axes.texts) == ["1 not reached", "1 not reached"]
    curves = drawn[0][1]
    assert len(curves) == 3
    assert curves[0].get_ylabel() == "return of greedy validations"
    assert cli.main([*words[:-4], "--target", "nan", *words[-2:]]) == 2


def test_joules_are_shown_with_their_method(copied, tmp_path):
    runs = copied("circuit-0", "circuit-1", "direct-1")
    told = (
        {"joules": 10.0, "method": "<RAPL>"},
        {"joules": 30.0, "method": "<RAPL>"},
        {"joules": None, "method": "no"},
    )
    for run, energy in zip(runs, told, strict=True):
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**result, "energy": energy}))
    assert cli.main(["report", *map(str, runs), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert [cells[3] for cells in table(page, "Effort").values()] == ["joules", "20", "not measured"]
    assert page.count("<p>Energy of training: &lt;RAPL&gt;.</p>") == page.count("<p>Energy of training: no.</p>") == 1


def test_long_labels_leave_room(copied, tmp_path):
    runs = copied("direct-1", "direct-2")
    replace(runs[0], '"gates": []', f'"gates": {[["ry", qubit] for qubit in range(12)]}'.replace("'", '"'))
    assert cli.main(["report", *map(str, runs), "-o", str(tmp_path / "page.html")]) == 0


def test_agents_have_a_figure_and_a_table(coins, made, tmp_path, capfd):
    runs = [Path(shutil.copytree(coins, tmp_path / "runs" / name)) for name in ("a", "b", "c")]
    for seed, run in enumerate(runs):
        replace(run, '"seed": 0', f'"seed": {seed}')
    replace(runs[2], '"sharing": "shared"', '"sharing": "independent"')
    for run, told in zip(runs, ({"player_1": 1.5}, {"player_1": 4.5}, {"player_0": 7.5}), strict=True):
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**result, "agents": told}))
    assert cli.main(["report", *map(str, runs), "-o", str(tmp_path / "page.html")]) == 0
    files = capfd.readouterr().out.splitlines()
    assert files[-2:] == [str(tmp_path / f"page-agents.{kind}") for kind in ("png", "pdf")]
    page = (tmp_path / "page.html").read_text()
    _, _, agents, _ = re.findall("(?s)<svg.*?</svg>", page)  # scores, curves; time
    for words, panels in (("player_0", 2), ("player_1", 2), ("sharing shared", 1), ("sharing independent", 1)):
        assert agents.count(f"<!-- {words} -->") == panels
    assert "<tr><td>player_0</td><td>none</td><td>7.5</td></tr>" in page
    assert "<tr><td>player_1</td><td>3</td><td>none</td></tr>" in page
    assert "Agents</h2>" in page
    assert "Agents</h2>" not in made[1]


def test_agents_whose_returns_are_nowhere_leave_the_page_as_it_is(coins, tmp_path):
    run = Path(shutil.copytree(coins, tmp_path / "run"))
    replace(run, "agent_returns", "of_old", "metrics.jsonl")
    assert cli.main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "run"])
