"""A new algorithm is a module (or folder) of its own and one entry in ALGORITHMS."""

import json

import numpy as np
import pytest
import vanilla
from runs import tiny

from distqtrl.allreduce.communicator import Serial
from distqtrl.config import stages
from distqtrl.config.sources import preset, with_flags
from distqtrl.errors import UserError
from distqtrl.generator.controls import SOURCES
from distqtrl.report.describe import describe
from distqtrl.training.algorithms import ALGORITHMS, Algorithm
from distqtrl.training.build import prepare
from distqtrl.training.loop import train
from distqtrl.training.policy_gradient.update import update
from distqtrl.training.updates import prediction

TINY = tiny(algorithm_rollout_steps=8, train_updates=2, train_steps=None)


@pytest.mark.parametrize("name", ["cartpole", "coin-game"])
def test_an_algorithm_is_a_module_and_an_entry(tmp_path, monkeypatch, name):
    monkeypatch.setitem(ALGORITHMS, "vanilla", Algorithm(learner=vanilla.Vanilla, update=update))
    config = with_flags(preset(name), {**TINY, "algorithm.name": "vanilla"})
    run = prepare(config, Serial())
    asked, before = prediction(run), run.learner.fingerprint()
    result = train(run, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (result["status"], len(rows), run.learner.num_steps) == ("complete", 2, 2)
    assert run.learner.fingerprint() != before
    assert [np.isfinite(row["policy_loss"]) for row in rows] == [True, True]
    assert rows[-1]["circuits"] == asked["run"]["circuits"]
    assert describe(config)["training_only_parameters"] == 0


def test_the_help_of_a_field_names_every_entry():
    fields = stages.Algorithm.model_fields["name"], stages.Generator.model_fields["source"]
    for field, table in zip(fields, (ALGORITHMS, SOURCES), strict=True):
        assert all(name in field.description for name in table)


def test_an_unknown_algorithm_is_named_with_the_nearest():
    config = with_flags(preset("cartpole"), {"algorithm.name": "reinfroce"})
    for action in (lambda: prepare(config, Serial()), lambda: describe(config)):
        with pytest.raises(UserError, match=r"unknown algorithm\.name 'reinfroce': did you mean 'reinforce'"):
            action()


def test_an_algorithm_of_one_agent_says_so(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "lonely", Algorithm(learner=vanilla.Vanilla, update=update, several_agents=False))
    config = with_flags(preset("coin-game"), {**TINY, "algorithm.name": "lonely"})
    with pytest.raises(UserError, match=r"algorithm\.name lonely trains one agent, .* has 2: use ppo or reinforce"):
        prepare(config, Serial())
