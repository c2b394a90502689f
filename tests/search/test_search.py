"""The choice of bit widths: its rule and front on numbers, its workers on small trainings that are killed and go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
from needs import need
from runs import as_words, tiny

from distqtrl.allreduce.communicator import Serial
from distqtrl.cli import main as cli
from distqtrl.cli import search_bits
from distqtrl.cli.parser import parse
from distqtrl.errors import Diverged, UserError
from distqtrl.files.lock import locked
from distqtrl.policy import policy_file
from distqtrl.record import directory as run_directory
from distqtrl.search import cost, rule, workers
from distqtrl.search.grid import Candidate, name

PAPER = {  # width, core bits, input bits; mean and sample deviation in floating point, mean of what is selected
    "Humanoid": (16, 3, 4, 6262, 513, 5761),
    "Walker2d": (128, 2, 3, 4977, 395, 4623),
    "Ant": (64, 2, 3, 5089, 943, 4340),
    "HalfCheetah": (256, 3, 8, 11066, 1190, 10156),
    "Hopper": (16, 2, 6, 2710, 712, 2126),
}
FLAGS = as_words(
    tiny(
        generator_source="direct",
        train_steps=320,
        algorithm_rollout_steps=8,
        environment_local_num=4,
        train_checkpoint_every=1,
        quantize_warmup=2,
    )
)
GRID = {"widths": "4,2", "core-bits": "3,2", "input-bits": "8,4", "seeds": "0-1", "target": "c"}
GRID |= {"vectors": "100", "episodes": "2"}
SMALL = [*as_words(GRID), *FLAGS]
COMMAND = ["search-bits", "cartpole", *SMALL]
pytestmark = pytest.mark.xdist_group("search")  # which share what one process finds


def asked(*words):
    args, flags = parse(["search-bits", "cartpole", "-o", "nowhere", *words])
    return search_bits.search(args, flags)


def spread(mean, deviation, num=10):
    """Returns with this mean and this sample deviation."""
    step = deviation * sqrt((num - 1) / num)
    return [mean + step * (-1) ** i for i in range(num)]


def table(scores, others=None):
    """What is known, by names; others is what all candidates without a name have."""
    return lambda candidate: scores.get(name(candidate), others)


@pytest.mark.parametrize("task", PAPER)
@pytest.mark.parametrize("flags", [[], ["--stop-at-failure"]])
def test_the_papers_choices(task, flags):
    width, core, inputs, mean, deviation, selected = PAPER[task]
    floating = spread(mean, deviation)

    def known(candidate):
        if candidate is None:
            return floating
        enough = candidate.width >= width and candidate.core_bits[0] >= core and candidate.input_bits >= inputs
        return spread(selected if enough else mean - 2 * deviation, deviation)

    decision = rule.three_steps(asked("--seeds", "0-9", *flags), known)
    assert decision.decided
    assert decision.chosen == Candidate(width, (core,), inputs, 8)
    assert decision.problem == ""
    assert [step.what for step in decision.steps] == ["core bits", "width", "input bits"]


def test_the_deviation_is_the_samples():
    """Humanoid's choice would not pass with the population's."""
    *_, mean, deviation, selected = PAPER["Humanoid"]
    assert rule.least(spread(mean, deviation)) == pytest.approx(mean - deviation)
    assert rule.passes(spread(selected, 825), spread(mean, deviation))
    assert selected < mean - deviation * sqrt(0.9)


def test_what_just_reaches_the_limit_passes():
    assert rule.passes([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert not rule.passes([1.0, 1.0, 0.999], [1.0, 2.0, 3.0])


def test_all_of_a_step_is_needed_before_the_next():
    search = asked("--widths", "4,8", "--core-bits", "2,3", "--input-bits", "4")
    names = [name(candidate) for candidate in rule.three_steps(search, lambda _: None).needed]
    assert names == ["float", "w8-c3-i8-o8", "w8-c2-i8-o8"]
    good = [1.0] * 5
    decision = rule.three_steps(search, table({"float": good, "w8-c3-i8-o8": good, "w8-c2-i8-o8": good}))
    assert [name(candidate) for candidate in decision.needed[3:]] == ["w4-c2-i8-o8"]
    assert not decision.decided
    downwards = rule.three_steps(asked("--widths", "4,8", "--core-bits", "2,3", "--stop-at-failure"), lambda _: None)
    assert [name(candidate) for candidate in downwards.needed] == ["float", "w8-c3-i8-o8"]


def test_a_smaller_one_may_pass_after_a_failure():
    scores = {"float": [1.0, 2.0], "w4-c7-i8-o8": [0.0, 0.0]}
    words = ["--widths", "4", "--core-bits", "8,7,6", "--input-bits", "8", "--seeds", "0-1"]
    assert rule.three_steps(asked(*words), table(scores, [2.0, 2.0])).chosen == Candidate(4, (6,))
    decision = rule.three_steps(asked(*words, "--stop-at-failure"), table(scores, [2.0, 2.0]))
    assert decision.chosen == Candidate(4, (8,))
    assert "w4-c6-i8-o8" not in [name(candidate) for candidate in decision.needed]


def test_nothing_passes():
    decision = rule.three_steps(asked("--seeds", "0-1"), table({"float": [1.0, 2.0]}, [0.0, 0.0]))
    assert decision.decided
    assert decision.chosen == Candidate(256, (8,), 8, 8)
    assert decision.problem == "nothing passes the step of core bits and width and input bits: the largest is kept"


def test_when_every_training_of_what_is_kept_failed_nothing_is_chosen():
    decision = rule.three_steps(asked("--seeds", "0-1"), table({"float": [1.0, 2.0]}, [None, None]))
    assert (decision.decided, decision.chosen) == (True, None)
    assert decision.problem.startswith("every training of w256-c8-i8-o8 failed")


def test_a_failed_training_counts():
    good = [2.0, 2.0]
    scores = {"float": [1.0, 2.0], "w4-c2-i8-o8": [9.0, None]}
    words = ["--widths", "4", "--core-bits", "3,2", "--input-bits", "8", "--seeds", "0-1"]
    assert rule.three_steps(asked(*words), table(scores, good)).chosen == Candidate(4, (3,))
    decision = rule.three_steps(asked(*words), table({"float": [1.0, None]}, good))
    assert (decision.decided, decision.chosen, decision.needed) == (True, None, (None,))
    assert "floating point failed" in decision.problem
    assert rule.mean([9.0, None]) is None
    assert rule.median_seed([None, None], [0, 1]) is None


def test_front():
    points = {"a": (1, 1.0), "b": (2, 3.0), "c": (2, 2.0), "d": (3, 3.0), "e": (1, 1.0), "f": (4, 4.0)}
    assert rule.front(points) == ["a", "e", "b", "f"]


def test_pareto_takes_the_cheapest_that_passes():
    missing(cost.check, "memory")
    words = "--mode pareto --cost memory --widths 4 --core-bits 3,2:2,1 --input-bits 4 --output-bits 8 --seeds 0-1"
    search = asked("--policy.hidden", "4", *words.split())
    a, b, c = rule.every(search)
    scores = {"float": [2.0, 3.0], name(a): [3.0, 3.0], name(b): [2.0, 2.0], name(c): [0.0, 0.0]}
    assert not rule.pareto(search, table(scores), {a: 3.0, b: 2.0}).decided
    costs = {a: 3.0, b: 2.0, c: 1.0}
    assert rule.pareto(search, table(scores), costs).chosen == b
    assert rule.pareto(search, table({**scores, name(b): [9.0, None]}), {a: 3.0, c: 1.0}).chosen == a
    decision = rule.pareto(search, table({**scores, "float": [9.0, 9.0]}), costs)
    assert (decision.chosen, decision.problem) == (a, "nothing on the front passes: the best return is chosen")
    assert rule.pareto(search, table({"float": [1.0, 2.0]}, [None, 1.0]), {}).chosen is None
    decision = rule.pareto(search, table({**scores, "float": [9.0, None]}), costs)
    assert decision.chosen == a
    assert decision.problem.startswith("there is no deviation in floating point to compare with")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--core-bits", "9"], "--core-bits 9: write numbers from 1 to 8"),
        (["--core-bits", "3,3"], "--core-bits 3,3: names a number twice"),
        (["--generator.source", "equal_mlp"], "generator.source = equal_mlp has a width of its own"),
        (["--core-bits", "4:2"], "--core-bits 4:2: the rule takes one number for all layers: use --mode pareto"),
        (["--mode", "pareto", "--core-bits", "4:2:2"], "--core-bits 4:2:2: the policy has 2 layers: give 1 or 2"),
        (["--input-bits", "0"], "--input-bits 0: 0 does not fit: at least 1, at most 8"),
        (["--widths", "big"], "--widths: 'big' is not a list of numbers"),
        (["--output-bits", "8,4"], "--output-bits 8,4: the rule keeps one number"),
        (["--seeds", "0"], "--seeds 0: the rule needs the deviation over seeds: give 2 or more"),
        (["--seeds", "3-1"], "--seeds: '3-1' is not a list of numbers"),
        (["--cost", "luts"], "--cost luts: the rule looks at no cost"),
        (["--mode", "pareto", "--cost", "energy"], "--cost energy needs --energy WATTS,JOULES"),
        (["--mode", "pareto", "--energy", "1,1"], "--energy 1,1: only --cost energy has a use for it"),
        (["--mode", "pareto", "--stop-at-failure"], "--stop-at-failure belongs to --mode rule"),
        (["--target", "wasm"], "--target 'wasm'"),
        (["--train.seed", "1"], "--train.seed: the search sets it itself: remove it, and give --seeds"),
        (["--quantize.core_bits", "3"], "remove it, and give --core-bits"),
        (["--policy.hidden", "none"], "policy.hidden is empty"),
        (["--qpu.replicas", "2"], "qpu.replicas = 2: every training of a search runs in one thread"),
        (["--environment.observation", "a"], "CartPole-v1: environment.observation = 'a' is not there"),
        (["--core-bit", "3"], "unknown key 'core-bit'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capfd, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search-bits", "cartpole", "-o", "made", *words]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert (err.count("\n"), out, list(tmp_path.iterdir())) == (1, "", [])


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="--cost memory: no arm-none-eabi-gcc: install the Debian package"):
        cost.check("memory")


def test_dry_run(capfd):
    words = ["search-bits", "cartpole", "-o", "nowhere", "--dry-run"]
    assert cli.main(words) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "at most 90 runs"  # 1 + 7 + 4 + 6 policies of 5 seeds
    assert cli.main([*words, "--json", "--mode", "pareto", "--seeds", "0-1", "--widths", "8"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["runs"] == 2 * (1 + 7 * 7)
    assert not Path("nowhere").exists()


# ---- small searches


def started(folder, *words):
    command = [sys.executable, "-m", "distqtrl", *COMMAND, "-o", folder, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that one process went through undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "search"
    with started(folder, "--json") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out) == {"search": str(folder), **found(folder)}
    return folder


def found(folder):
    return json.loads((folder / "search.json").read_text())


def test_what_it_leaves(whole):
    assert {path.name for path in whole.iterdir()} == {
        "search.json",
        "search.md",
        "search.png",
        "runs",
        "chosen",
        "locks",
    }
    about = found(whole)
    assert about["status"] == "complete"
    assert about["settings"]["seeds"] == [0, 1]
    assert about["settings"]["config"]["quantize"]["warmup"] == 2
    runs = {path.name for path in (whole / "runs").iterdir()}
    rows = {row["name"]: row for row in [about["baseline"], *about["candidates"]]}
    assert runs == {f"{row}-seed{seed}" for row in rows for seed in (0, 1)}
    assert about["budget"]["runs"] == len(runs)
    assert about["budget"]["env_steps"] == 320 * len(runs)
    for row, values in rows.items():
        for seed in (0, 1):
            result = json.loads((whole / "runs" / f"{row}-seed{seed}" / "result.json").read_text())
            assert values["returns"][str(seed)] == result["evaluation"]["mean"]
    known = {row: list(values["returns"].values()) for row, values in rows.items()}
    search = asked(*SMALL)
    decision = rule.three_steps(search, table(known))
    assert about["chosen"]["name"] == name(decision.chosen)
    manifest = json.loads((whole / "chosen" / "manifest.json").read_text())
    assert manifest["policy"]["file"] == str(
        whole / "runs" / f"{about['chosen']['name']}-seed{about['chosen']['seed']}" / "policy.safetensors"
    )
    assert manifest["quantized"] == "while training"
    assert f"| {name(decision.chosen)} |" in (whole / "search.md").read_text()
    assert (whole / "search.png").read_bytes().startswith(b"\x89PNG")


def test_killed_stopped_and_resumed_it_finds_the_same(whole, tmp_path, forked_ranks):
    folder = tmp_path / "search"
    runs, command = folder / "runs", ["-m", "distqtrl", *COMMAND, "-o", str(folder)]
    code, out, err = forked_ranks(2, command, when=[(runs / "w4-c3-i8-o8-seed1" / "metrics.jsonl", signal.SIGKILL)])
    assert code == -signal.SIGKILL, out + err
    assert found(folder)["status"] == "running"

    code, out, err = forked_ranks(2, command, when=[(runs / "w2-c2-i8-o8-seed0" / "config.json", signal.SIGUSR1)])
    assert code == 75, out + err
    assert found(folder)["status"] == "running"
    assert "and saved" in err

    with started(folder) as one, started(folder) as other:  # as tasks of an array
        while "starts" not in (line := one.stderr.readline()) and "resumes" not in line:
            assert line, "it ended"
        one.kill()
        out, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    assert "chosen: " in out
    assert found(folder) == found(whole)
    assert (folder / "search.md").read_text() == (whole / "search.md").read_text()
    for run in (whole / "runs").iterdir():
        policy = (run / "policy.safetensors").read_bytes()
        assert (runs / run.name / "policy.safetensors").read_bytes() == policy


def test_a_complete_search_stays_as_it_is(whole, capfd):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.parent.name != "locks"}
    assert cli.main([*COMMAND, "-o", str(whole)]) == 0
    assert "chosen: " in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop-at-failure"], "was started with stop_at_failure = False, not True"),
        (["--seeds", "0-2"], "was started with seeds = [0, 1], not [0, 1, 2]"),
        (["--algorithm.gamma", "0.5"], "was started with algorithm.gamma = 0.98, not 0.5"),
    ],
)
def test_other_settings_are_refused(whole, capfd, words, message):
    assert cli.main([*COMMAND, "-o", str(whole), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert "another -o" in line


def test_a_folder_of_something_else_is_refused(tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main([*COMMAND, "-o", str(tmp_path)]) == 2
    assert "is not a search (it has no search.json)" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_worker_that_dies_while_it_begins_leaves_a_search(tmp_path, monkeypatch):
    def dying(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(workers.page, "figure", dying)
        assert cli.main([*COMMAND, "-o", str(tmp_path)]) == 130
    search = asked(*SMALL, "-o", str(tmp_path))
    begun = tmp_path / "runs" / "float-seed0"
    begun.mkdir(parents=True)
    for left in ("lock", "config.json.partial"):
        (begun / left).touch()
    workers._begin(workers.Worker(search, [], print))
    run_directory.claim(begun, search.configuration(None, 0), Serial())


def test_floating_point_has_the_largest_width():
    search = asked("--widths", "32,8", "--policy.hidden", "16", "16")
    assert search.configuration(None, 0).policy.hidden == (32, 32)


LOSING = """
import sys
from distqtrl.cli import main as cli
from distqtrl.allreduce.agreement import Refused
from distqtrl.allreduce.connect import announced
from distqtrl.search import workers

def train(*_):
    raise Refused("the device is gone")

if announced("rank", without=0) == 1:
    workers.train = train
sys.exit(cli.main(sys.argv[1:]))
"""


def test_what_one_rank_refuses_ends_all(tmp_path, forked_ranks):
    """It does not leave the others waiting for it at the end."""
    code, out, err = forked_ranks(2, ["-c", LOSING, *COMMAND, "-o", str(tmp_path / "search")])
    assert (code, out) == (2, "")
    assert "distqtrl: rank 1: the device is gone" in err


def test_it_waits_for_what_another_process_trains(whole, tmp_path):
    """Every run but one is there; that one is locked, then it is free and gets trained."""
    folder, left = tmp_path / "search", "w4-c2-i8-o8-seed1"
    shutil.copytree(whole, folder)
    (folder / "search.json").write_text(json.dumps({**found(folder), "status": "running"}))
    shutil.rmtree(folder / "chosen")
    shutil.rmtree(folder / "runs" / left)
    with locked(folder / "locks" / left) as lock:
        process = started(folder)
        told = ""
        while "waiting" not in told:
            told = process.stderr.readline()
            assert told, "it ended"
        assert told == f"waiting for {left}, which process {os.getpid()} on host {os.uname().nodename} is doing\n"
        lock.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"{left}: starts" in err
    assert found(folder) == found(whole)


def test_a_training_that_diverges_is_shown_and_the_search_goes_on(tmp_path, capfd, monkeypatch):
    train = workers.train

    def failing(run, directory, pending):
        if directory.name == "w4-c2-i8-o8-seed1":
            raise Diverged("gradient is not finite")
        return train(run, directory, pending)

    monkeypatch.setattr(workers, "train", failing)
    folder = tmp_path / "search"
    words = ["--widths", "4", "--input-bits", "8"]
    assert cli.main([*COMMAND, *words, "-o", str(folder)]) == 0
    about = found(folder)
    row = next(row for row in about["candidates"] if row["name"] == "w4-c2-i8-o8")
    assert (row["failed"], row["passes"], row["mean"]) == ([1], False, None)
    assert row["returns"]["0"] is not None
    assert about["chosen"]["name"] == "w4-c3-i8-o8"
    assert "failed: seed 1" in (folder / "search.md").read_text()
    assert "w4-c2-i8-o8-seed1: failed, gradient is not finite" in capfd.readouterr().err


def test_when_floating_point_diverges_nothing_is_chosen(tmp_path, capfd):
    words = ["--algorithm.learning_rate", "1e38", "--algorithm.value_learning_rate", "1e38"]
    assert cli.main([*COMMAND, *words, "-o", str(tmp_path / "search")]) == 1
    out, err = capfd.readouterr()
    assert "float-seed0: failed, " in err
    assert "a training in floating point failed: there is nothing to compare with" in out
    assert "nothing is chosen" in out
    assert not (tmp_path / "search" / "chosen").exists()


def test_pareto(tmp_path, capfd):
    missing(cost.check, "memory")
    folder = tmp_path / "search"
    words = [
        "--mode",
        "pareto",
        "--cost",
        "memory",
        "--widths",
        "4",
        "--core-bits",
        "3,2:1",
        "--input-bits",
        "4",
        "--output-bits",
        "4",
    ]
    assert cli.main([*COMMAND, *words, "-o", str(folder)]) == 0
    about = found(folder)
    assert [row["name"] for row in about["candidates"]] == ["w4-c3-i4-o4", "w4-c2.1-i4-o4"]
    large, little = (row["cost"] for row in about["candidates"])
    assert min(large, little) > 100  # bytes of compiled C: two weights of few bits may share a word, which is padded
    assert about["chosen"]["name"] in about["front"]
    assert about["cost_unit"].startswith("bytes")
    assert "front of return and cost: " in capfd.readouterr().out


def test_costs_of_a_core(whole, monkeypatch):
    """The core itself stands in for its netlist, whose simulation tests/export has."""
    missing(cost.check, "energy")
    about = found(whole)
    path = whole / "runs" / f"{about['chosen']['name']}-seed0" / "policy.safetensors"
    assert cost.cost("luts", path, "folded", None) > 100
    monkeypatch.setattr(cost.synthesis, "netlist", lambda text, top: text)
    monkeypatch.setattr(cost.tools, "cells", lambda: None)
    monkeypatch.setattr(cost.simulate, "toggles", lambda simulator: 2800)
    seconds = cost.cost("energy", path, "unrolled", (1.0, 0.0))
    num = len(cost._seen(policy_file.load(path)))
    assert cost.cost("energy", path, "unrolled", (1.0, 3.0)) == pytest.approx(seconds + 3 * 2800 / num)
    clocks = seconds / cost.CLOCK_NS * 1e9
    assert clocks == pytest.approx(round(clocks))
    assert 2 < clocks < 100


def missing(check, kind):
    try:
        check(kind)
    except UserError as error:
        need(str(error))
