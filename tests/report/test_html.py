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
    """source -> own computation of its runs' scores."""

    def score(run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return (rows[-2]["return_mean"] + rows[-1]["return_mean"]) / 2

    return {source: [score(trained[f"{source}-{seed}"]) for seed in seeds] for source, seeds in GROUPS.items()}


def replace(run, old, new, file="config.json"):
    text = (run / file).read_text()
    assert old in text
    (run / file).write_text(text.replace(old, new))


def test_numbers_are_those_of_the_files(made, trained, scores):
    found = [re.findall("<t[dh]>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", made[1])]
    rows = {first: rest for first, *rest in found}
    for source, seeds in GROUPS.items():
        results = [json.loads((trained[f"{source}-{seed}"] / "result.json").read_text()) for seed in seeds]
        middle, interval, *others = rows[f"source {source}"][1:5]
        assert middle == f"{stats.trim_mean(scores[source], 0.25):.3g}"
        assert others[0] == f"{np.median([each['evaluation']['mean'] for each in results]):.3g}"
        assert others[1] == f"{np.median([each['env_steps'] for each in results]):,.0f}"
        lines = [(trained[f"{source}-{s}"] / "metrics.jsonl").read_text().splitlines() for s in seeds]
        told = [[json.loads(line) for line in run] for run in lines]
        ends = [[row["batch_share"] for row in run if row["batch_share"]][-1:] for run in told]
        share = f"{np.median([end for (end,) in filter(None, ends)]):.3g}" if any(ends) else "none"
        assert rows[f"source {source}"][8] == share
        low, _, high = interval.partition(" to ")
        assert low == "none" if len(seeds) == 1 else float(low) <= float(middle) <= float(high)
    assert rows["policy weights"] == ["898", "898", "898"]
    assert rows["total parameters"][:2] == ["651", "898"]  # circuit and map, the policy's own weights
    assert all(rows[name] == [version] for name, version in versions().items())
    assert html.unescape(re.search("(?s)<pre>(.*?)</pre>", made[1])[1]) in (
        (trained["circuit-0"] / "config.json").read_text()
    )


def test_the_page_warns_and_judges(made, scores):
    page = html.unescape(made[1])
    assert "CartPole-v1: 3 configurations, 6 runs" in page
    assert f"<li>{made[0]}/damaged: not complete: it stands at update 1. It is in no mean.</li>" in page
    assert "<li>source frozen_random: one seed, so there is no interval.</li>" in page
    assert "<li>source circuit: 3 seeds; an interval over fewer than 5 is too narrow.</li>" in page
    p = np.mean([(a > b) + (a == b) / 2 for a in scores["circuit"] for b in scores["direct"]])
    assert p != 0.5  # so that an exchange of the two is seen
    (judged,) = re.findall(r"<li>(.*?) \(P = (.*?),", page)  # none of a single seed
    assert (judged[0].split()[1], judged[1]) == ("circuit", f"{p:.2f}")


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
    (lambda run: replace(run, '"updates": 20', '"updates": 7'),
     ["circuit-1 has train.updates = 20, ", "circuit-0 has 7", "make a report of each"]),
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


def test_a_run_without_a_score_is_named(copied, tmp_path, capfd):
    """No episode ended in its last tenth of updates."""
    assert "silent-4" in refused(copied("silent-4"), tmp_path, capfd)


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
    _, _, agents, _ = re.findall("(?s)<svg.*?</svg>", page)
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
