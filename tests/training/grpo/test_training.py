"""GRPO in the loop: what is equal over ranks and after a break, what reaches the policy, what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from decoders import write
from needs import need
from runs import as_words

import distqtrl
from distqtrl.cli import main as cli
from distqtrl.errors import UserError
from distqtrl.language import adapted

TASK = """
def question(split, number):
    return f"{number % 7}+", "1"


def reward(completion, answer):
    return sum(map(ord, completion)) % 7 / 7
"""
SMALL = {
    "train.updates": 2,
    "language.prompts": 4,
    "language.group": 4,
    "language.max_tokens": 4,
    "adapter.rank": 2,
    "adapter.precision": "none",
    "rollout.noise": "none",
    "evaluate.episodes": 8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a decoder and a task."""
    need_transformers()
    folder = tmp_path_factory.mktemp("grpo")
    write(folder / "base", "qwen2")
    (folder / "task.py").write_text(TASK)
    return folder


def need_transformers():
    try:
        import transformers  # noqa: F401
    except ImportError:
        need("there is no transformers: pip install 'distqtrl[llm]'")


@pytest.fixture
def trained(place, tmp_path):
    """trained(name, changes) -> the run directory's update and metrics."""

    def train(name, **changes):
        flags = SMALL | {"language.base": str(place / "base"), "language.task": str(place / "task.py")}
        config = distqtrl.preset("qerl-arithmetic", flags | {k.replace("__", "."): v for k, v in changes.items()})
        distqtrl.train(config, tmp_path / name)
        return left(tmp_path / name)

    return train


def left(run):
    """A run's update and metrics."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return adapted.load(run / "policy.safetensors"), rows


@pytest.mark.parametrize("minibatches", [1, 2])
def test_ranks_times_prompts_is_what_counts(trained, minibatches):
    same = {"train__precision": "float64", "algorithm__minibatches": minibatches, "algorithm__epochs": 2}
    (one, rows), (two, others) = trained("one", **same), trained("two", qpu__replicas=2, language__prompts=2, **same)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in others]
    assert [row["gradient_norm"] for row in others] == pytest.approx([row["gradient_norm"] for row in rows], rel=1e-9)
    assert rows[0]["gradient_norm"] > 0
    moved = np.linalg.norm(one.factors_F - one.start_F)
    assert np.linalg.norm(one.factors_F - two.factors_F) < 1e-6 * moved


def test_the_command_on_two_ranks_is_two_replicas(trained, forked_ranks, place, tmp_path):
    """Over MPI: the same bits, and a break changes none."""
    flags = SMALL | {"language.base": place / "base", "language.task": place / "task.py", "language.prompts": 2}
    for updates in (1, 2):
        words = as_words(flags | {"train.updates": updates})
        command = ["-m", "distqtrl", "train", "qerl-arithmetic", *words, "--run", str(tmp_path / "ranks")]
        code, out, err = forked_ranks(2, command)
        assert code == 0, err
    assert ", 2 ranks, resumes after 1 update" in err + out
    (ranks, rows), (two, others) = left(tmp_path / "ranks"), trained("replicas", qpu__replicas=2, language__prompts=2)
    assert torch.equal(ranks.factors_F, two.factors_F)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in others]


def test_the_first_step_is_of_the_policy_that_acted(trained):
    _, rows = trained("plain", train__updates=1)
    assert rows[0]["approx_kl"] == pytest.approx(0, abs=1e-6)
    _, rows = trained("rounded", train__updates=1, rollout__precision="int4")
    assert rows[0]["approx_kl"] > 1e-5  # the ratio is taken over what acted


def test_weights_of_tokens_hold_what_acted_differently(trained):
    _, rows = trained("capped", train__updates=1, rollout__precision="int4", algorithm__cap=2.0)
    assert rows[0]["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["gradient_norm"] > 0


def test_noise_reaches_every_norm_and_is_told(trained):
    noise = {"rollout.noise": "exponential", "rollout.noise_stages": 3}
    _, rows = trained("noisy", train__updates=3, **{k.replace(".", "__"): v for k, v in noise.items()})
    assert [row["noisy_layers"] for row in rows] == [0, 5, 5]  # two of each of two blocks, and the last


@pytest.mark.parametrize("source", ["circuit", "frozen_random", "random_subspace"])
def test_factors_may_be_generated(trained, source):
    numbers = {"generator__numbers": 40} if source == "random_subspace" else {}
    update, rows = trained(source, generator__source=source, **numbers)
    assert not torch.equal(update.factors_F, update.start_F)
    assert rows[0]["approx_kl"] == pytest.approx(0, abs=1e-6)  # it begins at the base


def test_a_break_changes_no_bit(trained, tmp_path, place):
    whole, _ = trained("whole", train__updates=4)
    flags = SMALL | {"language.base": str(place / "base"), "language.task": str(place / "task.py")}
    for updates in (2, 4):
        config = distqtrl.preset("qerl-arithmetic", flags | {"train.updates": updates})
        result = distqtrl.train(config, tmp_path / "broken")
    again = adapted.load(tmp_path / "broken" / "policy.safetensors")
    assert torch.equal(whole.factors_F, again.factors_F)
    assert result["env_steps"] == 4 * 4 * 4


def test_a_task_that_rewards_everything_alike_is_told_of_once(trained, place, capfd):
    (place / "alike.py").write_text(TASK.replace("sum(map(ord, completion)) % 7 / 7", "0.1"))
    update, rows = trained("alike", train__updates=3, language__task=str(place / "alike.py"))
    assert [row["equal_groups"] for row in rows] == [1, 1, 1]
    assert torch.equal(update.factors_F, update.start_F)
    assert capfd.readouterr().err.count("every group's rewards are equal") == 1


def test_evaluate_and_export(trained, tmp_path, capfd):
    trained("run", train__updates=1)
    words = ["evaluate", str(tmp_path / "run"), "--episodes", "5", "--json"]
    assert cli.main(words) == 2  # the file names a program
    err = capfd.readouterr().err
    assert "/task.py, which is run: if you trust it, add --import-environment\n" in err
    assert cli.main([*words, "--import-environment"]) == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 5
    for target, file in (("merged", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        words = ["export", str(tmp_path / "run"), "-o", str(tmp_path / target), "--target", target]
        assert cli.main(words) == 0
        assert (tmp_path / target / file).exists()
    loaded = distqtrl.load(tmp_path / "run")
    assert isinstance(loaded, adapted.Adapted)
    assert loaded.task.question("test", 0).prompt  # of a process, which goes to no other one
    assert torch.equal(pickle.loads(pickle.dumps(loaded)).factors_F, loaded.factors_F)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language.base": None}, "language.base is not set: give the directory of a language model"),
        ({"algorithm.minibatches": 5}, "leaves some empty: 4 prompts"),
        ({"adapter.base": "policy.safetensors"}, "adapter.base = policy.safetensors has no meaning"),
        ({"quantize.aware": True, "rollout.noise": "none"}, "quantize.aware = True has no meaning"),
        ({"allreduce.aggregation": "average"}, "allreduce.aggregation = average has no meaning"),
        ({"generator.source": "equal_mlp"}, "generator.source = equal_mlp has no meaning"),
        ({"policy.convolutions": ["8x3"]}, "policy.convolutions = 8x3 has no meaning"),
        ({"algorithm.temperature": 0.7}, r"has no meaning .* drawn at language\.temperature\): leave it out"),
        ({"language.max_tokens": 1000}, "exceed the context"),
        ({"generator.source": "random_subspace", "generator.numbers": 10**7}, "generator.numbers"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(place, tmp_path, changes, said):
    flags = SMALL | {"language.base": str(place / "base"), "language.task": str(place / "task.py")} | changes
    with pytest.raises(UserError, match=said):
        distqtrl.train(distqtrl.preset("qerl-arithmetic", flags), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_base_is_refused(trained, place, tmp_path, capfd):
    trained("run", train__updates=1)
    weights = place / "base" / "model.safetensors"
    before = weights.read_bytes()
    try:
        write(place / "other", "qwen2", scale=2.0)
        weights.write_bytes((place / "other" / "model.safetensors").read_bytes())
        assert cli.main(["evaluate", str(tmp_path / "run"), "--import-environment"]) == 2
        assert "is not the decoder that this update was trained" in capfd.readouterr().err
        assert cli.main(["train", *as_words({"train.updates": 3}), "--resume", str(tmp_path / "run")]) == 2
        assert "another decoder" in capfd.readouterr().err
    finally:
        weights.write_bytes(before)


def test_a_run_goes_on_from_every_folder(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = as_words(SMALL | {"language.base": "base", "language.task": "task.py", "train.updates": 1})
    assert cli.main(["train", "qerl-arithmetic", *words, "--run", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "run", "--train.updates", "2"]) == 0
    assert cli.main(["evaluate", "run", "--episodes", "2", "--import-environment"]) == 0
    assert cli.main(["export", "run", "-o", "merged"]) == 0


def test_a_base_that_has_gone_is_asked_for(trained, place, tmp_path, capfd):
    trained("run", train__updates=1)
    moved = (place / "base").rename(place / "moved")
    try:
        assert cli.main(["evaluate", str(tmp_path / "run"), "--import-environment"]) == 2
    finally:
        moved.rename(place / "base")
    err = capfd.readouterr().err
    assert f"{place / 'base'} is not a directory here, and held the decoder that this update was trained for" in err
