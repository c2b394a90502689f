"""Configurations: one validation for presets, files and flags, and messages that help."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distqtrl.config import sources
from distqtrl.config.run import Config, differences, save, validated
from distqtrl.config.sources import load, preset, presets, with_flags
from distqtrl.errors import UserError

MENDED = {
    "qtrl-cartpole-500": {
        "mapping.activation",
        "mapping.output",
        "environment.max_episode_steps",
        "algorithm.baseline",
        "algorithm.value_learning_rate",
    },
    "qtrl-minigrid-corrected": {
        "mapping.activation",
        "mapping.output",
        "policy.normalize_observations",
        "algorithm.baseline",
        "algorithm.value_learning_rate",
    },
    "dist-qtrl": {"circuit.layers"},
}


def test_every_preset_is_valid_and_described():
    for name, text in presets().items():
        assert isinstance(preset(name), Config)
        assert len(text) > 20


def test_saved_configuration_is_the_same(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(save(preset("cartpole")))
    assert load(path) == preset("cartpole")


def test_toml_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[environment]\nid = "Acrobot-v1"\nkwargs = {render_mode = "rgb_array"}\n')
    assert load(path).environment.kwargs == {"render_mode": "rgb_array"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"policy.hidden": ["32", "16"]}, (32, 16)),
        ({"policy.hidden": ["32,16"]}, (32, 16)),
        ({"policy.hidden": ["none"]}, ()),
        ({"policy.hidden": "7"}, (7,)),
    ],
)
def test_list_flags(flags, expected):
    assert with_flags(Config(), flags).policy.hidden == expected


def test_flags_replace_single_fields():
    flags = {"evaluate.target": "none", "environment.kwargs": '{"a": 1}', "mapping.activation": "none"}
    changed = with_flags(preset("cartpole"), flags)
    assert changed.evaluate.target is None
    assert changed.environment.kwargs == {"a": 1}
    assert changed.mapping.activation == "none"
    assert changed.algorithm == preset("cartpole").algorithm


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"algorithm.learningrate": "1"},
            "unknown key 'algorithm.learningrate': did you mean 'algorithm.learning_rate'?",
        ),
        ({"zzzzzz.qqqqqq": "1"}, "unknown key 'zzzzzz.qqqqqq': none of the known names is near; see --help"),
        ({"algorithm.epochs": "x"}, "flags: algorithm.epochs = 'x': Input should be a valid integer"),
        ({"algorithm.gamma": "1.5"}, "flags: algorithm.gamma = '1.5': Input should be less than or equal to 1"),
        ({"algorithm.learning_rate": "nan"}, "flags: algorithm.learning_rate = 'nan': Input should be"),
        ({"algorithm.epochs": ["1", "2"]}, "flags: algorithm.epochs takes one value, got 2: 1 2"),
        ({"environment.kwargs": "{"}, "flags: environment.kwargs = '{' is not JSON"),
        ({"quantize.input_bits": "9"}, "flags: quantize.input_bits = '9': Input should be less than or equal to 8"),
        ({"quantize.core_bits": ["2", "0"]}, "flags: quantize.core_bits = '0': Input should be greater than or equal"),
        ({"quantize.core_bits": "none"}, "flags: quantize.core_bits = []: Tuple should have at least 1 item"),
        ({"algorithm.name": "reinforce", "algorithm.baseline": "false"}, "algorithm.baseline false needs"),
        ({"evaluate.target": "1"}, "evaluate.target needs evaluate.every"),
        ({"evaluate.keep": "best"}, "evaluate.keep best needs evaluate.every"),
        ({"evaluate.keep": "best", "evaluate.every": "2", "algorithm.name": "grpo"}, "leaves its last"),
        ({"train.steps": "none"}, "train.steps none needs train.updates"),
        ({"algorithm.normalize_over": "episode"}, "algorithm.normalize_over episode needs algorithm.rollout episodes"),
        ({"algorithm.critic_norm": "layer_norm"}, "layer_norm normalises SAC's critics, algorithm.name ppo has"),
        ({"algorithm.rate_scaling": "2"}, "flags: algorithm.rate_scaling = '2': Input should be 'none', 'sqrt' or"),
        ({"algorithm.warmup": "-1"}, "flags: algorithm.warmup = '-1': Input should be greater than or equal to 0"),
        (
            {"algorithm.rate_scaling": "sqrt", "allreduce.aggregation": "average"},
            "algorithm.rate_scaling sqrt needs allreduce.aggregation mean or sum",
        ),
        ({"train.seed": "none"}, "flags: train.seed = 'none': Input should be a valid integer"),
    ],
)
def test_bad_flags_are_one_helpful_line(flags, message):
    with pytest.raises(UserError) as error:
        with_flags(Config(), flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[polcy]\n", "unknown key 'polcy': did you mean 'policy'?"),
        ("[policy]\nhiden = 3\n", "unknown key 'policy.hiden': did you mean 'policy.hidden'?"),
        ("[policy\n", "cannot read configuration"),
        ("policy = 3\n", "policy = 3"),
        ('extends = "qtrl-cartpol"\n', "unknown preset 'qtrl-cartpol': did you mean 'qtrl-cartpole'?"),
        ('"train.seed" = 1\n', "unknown key 'train.seed': write seed in the table train"),
        ('[policy]\n"train.seed" = 1\n', "unknown key 'policy.train.seed': write seed in the table train"),
        ('[train]\nextends = "cartpole"\n', "unknown key 'train.extends': move it above all tables"),
        ("[policy]\nhidden = 16\n", "policy.hidden = 16: give a list"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.toml") as error:
        load(path)
    assert message in str(error.value)


def test_extending_replaces_single_fields(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "qtrl-minigrid"\n[algorithm]\nentropy = 0.1\nmax_grad_norm = "none"\n')
    changes = differences(preset("qtrl-minigrid"), load(path))
    assert changes == {"algorithm.entropy": (0.05, 0.1), "algorithm.max_grad_norm": (10.0, None)}


def test_presets_that_mend_say_what_they_change():
    assert sources.parent("qtrl-cartpole") is None
    for name, fields in MENDED.items():
        parent = sources.parent(name)
        assert set(differences(preset(parent), preset(name))) == fields


def test_json_that_is_no_table(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(UserError, match="no table"):
        load(path)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="unknown preset 'cartpol': did you mean 'cartpole'"):
        preset("cartpol")


@pytest.mark.parametrize(
    ("written", "meant"), [(True, "start"), (False, None), ("none", None), ("start", "start"), ("every", "every")]
)
def test_truths_of_older_configurations_say_when_angles_are_whitened(written, meant):
    assert validated({"generator": {"whiten": written}}, "here").generator.whiten == meant
    assert with_flags(Config(), {"generator.whiten": str(written).lower()}).generator.whiten == meant


@pytest.mark.parametrize("bad", [float("nan"), datetime.date(2026, 1, 1), {1, 2}, 10**400, b"x", lambda: 1, "\udcff"])
def test_what_no_file_holds_is_no_argument_of_an_environment(bad):
    with pytest.raises(UserError, match=r"environment.kwargs = .*: it cannot be kept as JSON \("):
        validated({"environment": {"kwargs": {"x": [bad]}}}, "here")


def test_a_table_is_the_same_before_and_after_its_file():
    cfg = validated({"environment": {"kwargs": {"x": (1, 2.5), "y": {"z": None}}}}, "here")
    assert cfg.environment.kwargs == {"x": [1, 2.5], "y": {"z": None}}
    assert validated(json.loads(save(cfg)), "here") == cfg


def test_a_text_can_name_a_file():
    with pytest.raises(UserError, match=r"train.directory = 'a.x00b': it has a NUL, which no file is named by"):
        validated({"train": {"directory": "a\0b"}}, "here")


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("train.seed", np.int64(3), 3),
        ("train.steps", np.float64(1e6), 1_000_000),
        ("policy.hidden", np.array([8, 16]), (8, 16)),
        ("policy.hidden", [np.int32(8)], (8,)),
        ("algorithm.learning_rate", np.float32(0.25), 0.25),
        ("algorithm.anneal", np.bool_(True), True),
        ("mapping.trained", torch.tensor(False), False),
        ("policy.hidden", range(8, 10), (8, 9)),
        ("train.directory", Path("some") / "where", "some/where"),
        ("environment.kwargs", {"gravity": np.float32(0.5), "sizes": np.arange(2)}, {"gravity": 0.5, "sizes": [0, 1]}),
    ],
)
def test_values_of_a_program(key, given, kept):
    stage, name = key.split(".")
    found = getattr(getattr(sources.with_changes(preset("cartpole"), {key: given}), stage), name)
    assert (found, type(found)) == (kept, type(kept))


def test_the_home_is_where_a_shell_would_see_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = with_flags(Config(), {"train.directory": "~/runs"})
    assert found.train.directory == str(tmp_path / "runs")
    assert with_flags(Config(), {"train.directory": "./a~b"}).train.directory == "./a~b"
