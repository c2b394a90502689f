"""Every flag that takes a number, a list or a path: what is no such thing is one line and exit code 2."""

import argparse
import json

import pytest

from distqtrl.cli import main as cli
from distqtrl.cli.parser import parse
from distqtrl.cli.parser import parser as all_commands
from distqtrl.config import sources
from distqtrl.config.run import stages
from distqtrl.config.sources import with_flags
from distqtrl.errors import UserError

NO_NUMBERS = [
    "-1",
    "0x10",
    "1e3",
    "inf",
    "nan",
    "-inf",
    "-5e-1",
    "",
    " ",
    "x",
    "²",
    "9" * 5000,
    str(2**64),
    "1.5",
    "true",
]
FIRST = {
    "describe": ["cartpole"],
    "evaluate": ["POLICY"],
    "export": ["POLICY", "-o", "made"],
    "verify": ["FOLDER"],
    "slurm": ["cartpole", "--dry-run"],
    "search-bits": ["cartpole", "-o", "made", "--dry-run"],
    "report": ["RUN"],
    "pretrain": ["arithmetic", "-o", "made"],
    "site-check": [],
}
BAD_LISTS = ["0-99999999999", "5-2", "1,,2", "-1", "1,1", "x", "²", "9" * 5000, "1e3", "1-2-3"]
LISTS = {
    "slurm": ["--array-seeds", "--array-ranks"],
    "search-bits": ["--seeds", "--widths", "--core-bits", "--input-bits", "--output-bits"],
}
TEXTS = {
    "export": {
        "--bits": ["core", "core=x", "core=" + "9" * 5000, "core=0", "core=²", "hidden=4", "-1"],
        "--parallel": ["3x2", "x", "0x0", "4x-2", "9" * 5000 + "x1", "²x1", "-1"],
        "--energy": ["1", "nan,1", "inf,1", "-1,1", "1,1,1", "x", "-5e-1,1"],
        "--target": ["", "cc", "c,,onnx", "-1"],
        "--part": ["xc7", ""],
    },
    "slurm": {"--time": ["-1", "x", "1:2:3:4", "0", "²", "9" * 5000], "--memory": ["x", "0", "-1G", "2GB ", "1.5G"]},
    "verify": {"--target": ["", "cc", "-1"]},
    "pretrain": {"--accuracy": ["0", "1.1", "x", "nan", "-1"], "--family": ["gpt2", ""]},
}


def numbers():
    """(command, flag) of every flag of a command that is one whole number."""
    (commands,) = (action for action in all_commands()._actions if isinstance(action, argparse._SubParsersAction))
    for command, parser in commands.choices.items():
        for action in parser._actions:
            if getattr(action.type, "__qualname__", "").startswith("whole_number"):
                yield command, action.option_strings[-1]


def refused(capfd, argv):
    code = cli.main(argv)
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), (argv[:4], code, err)
    assert err.startswith("distqtrl: ")
    return err


def test_every_number_of_a_command_is_found():
    found = {f"{command} {flag}" for command, flag in numbers()}
    assert found >= {"evaluate --seed", "evaluate --episodes", "export --vectors", "slurm --nodes", "slurm --notice"}


@pytest.mark.parametrize(("command", "flag"), list(numbers()))
def test_what_is_no_number_names_flag_value_and_range(command, flag, capfd):
    for text in NO_NUMBERS:
        err = refused(capfd, [command, *FIRST[command], flag, text])
        assert f"argument {flag}: '{text[:40]}' is not a whole number from " in err
    for text in ("+5", "1_000", " 5"):  # as the fields of a configuration
        args, _ = parse([command, *FIRST[command], flag, text])
        assert vars(args)[flag.removeprefix("--").replace("-", "_")] == int(text)


@pytest.mark.parametrize(("command", "flag"), [(command, flag) for command in LISTS for flag in LISTS[command]])
def test_what_is_no_list_of_numbers(command, flag, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in BAD_LISTS:
        err = refused(capfd, [command, *FIRST[command], flag, text])
        assert text[:40] in err


@pytest.mark.parametrize(("command", "flag"), [(command, flag) for command in TEXTS for flag in TEXTS[command]])
def test_what_no_other_flag_takes(command, flag, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in TEXTS[command][flag]:
        err = refused(capfd, [command, *FIRST[command], *(["--implement"] if flag == "--energy" else []), flag, text])
        assert flag in err


@pytest.mark.parametrize("kind", ["nowhere", "folder", "file/below", "", "\0", "x" * 5000])
def test_paths_that_are_none(kind, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for argv in (
        ["train", "--config", kind],
        ["train", "--resume", kind],
        ["evaluate", kind],
        ["describe", kind],
        ["export", kind, "-o", "made"],
        ["verify", kind],
        ["report", kind],
        ["slurm", "--dry-run", "--config", kind],
        ["search-bits", "-o", "made", "--dry-run", "--config", kind],
    ):
        refused(capfd, argv)
    assert sorted(tmp_path.rglob("*")) == before


def fields():
    """Every field that is one number, and its model's field."""
    for stage, model in stages().items():
        for name, field in model.model_fields.items():
            if any(kind in str(field.annotation) for kind in ("int", "float")) and "dict" not in str(field.annotation):
                yield f"{stage}.{name}"


@pytest.mark.parametrize("key", list(fields()))
def test_fields_that_are_numbers(key):
    preset = sources.preset("cartpole")
    is_list = isinstance(getattr(getattr(preset, key.partition(".")[0]), key.partition(".")[2]), tuple)
    for text in ["0x10", "inf", "nan", "-inf", "x", "²", "1e999", "9" * 5000, *([] if is_list else ["", " "])]:
        _, flags = parse(["train", "cartpole", f"--{key}", text])
        with pytest.raises(UserError) as error:
            with_flags(preset, flags)
        assert key in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["qpu.options", "qpu.per_rank", "environment.kwargs", "circuit.gates"])
@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["open", "deep", "long"])
def test_json_that_is_none(key, text, capfd):
    assert f"flags: {key} = " in refused(capfd, ["train", "cartpole", "--print-config", f"--{key}", text])


@pytest.mark.parametrize("text", ["-5e-1", "-.5", "-0.5", "-5E-1", "-1_0.5e-0"])
def test_negative_numbers_are_values(text):
    _, flags = parse(["train", "cartpole", "--policy.log_std", text, "--algorithm.target_entropy", text])
    made = with_flags(sources.preset("cartpole"), flags)
    assert made.policy.log_std == made.algorithm.target_entropy == float(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.seed", "-1"], "flags: train.seed = '-1': Input should be greater than or equal to 0"),
        (["--train.seed", "4294967296"], "flags: train.seed = '4294967296': Input should be less than 4294967296"),
        (["--train.seed", "1e-3"], "flags: train.seed = 0.001: Input should be a valid integer"),
        (["--policy.log_std", "-inf"], "flags: policy.log_std = '-inf': Input should be a finite number"),
        (["--policy.log_std", "-x"], "argument --policy.log_std: expected at least one argument"),
        (["--policy.hidden", "-5"], "flags: policy.hidden = '-5': Input should be greater than or equal to 1"),
    ],
)
def test_fields_of_the_wrong_sign_or_size(words, message, capfd):
    assert message in refused(capfd, ["train", "cartpole", "--print-config", *words])


def test_json_is_the_same_whatever_the_sign(capfd):
    assert cli.main(["train", "cartpole", "--print-config", "--policy.log_std=-5e-1"]) == 0
    assert json.loads(capfd.readouterr().out)["policy"]["log_std"] == -0.5
