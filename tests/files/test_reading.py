"""Files that others wrote: what no program should open, what is no JSON, and how a configuration says so."""

import json
import os
import subprocess
import sys

import pytest

from distqtrl.cli import main as cli
from distqtrl.config.run import Config, field_names, save
from distqtrl.config.sources import load, preset, presets, with_flags
from distqtrl.errors import UserError
from distqtrl.files import reading
from distqtrl.policy import policy_file

TEXT = save(Config())


def fifo(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def nowhere(path):
    path.symlink_to(path.with_name("nothing"))


PLACES = [
    (fifo, "it is not a regular file"),
    (device, "it is not a regular file"),
    (loop, "Too many levels of symbolic links"),
    (nowhere, "No such file or directory"),
    (lambda path: path.mkdir(), "it is a folder"),
    (lambda path: None, "No such file or directory"),
]


@pytest.mark.parametrize(("make", "reason"), PLACES)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, make, reason):
    """In a configuration, a policy, a run's files and an export's."""
    for name, read in {
        "c.json": load,
        "c.toml": load,
        "policy.safetensors": policy_file.load,
    }.items():
        make(tmp_path / name)
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert reason in str(error.value)
        assert str(tmp_path / name) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("file", ["manifest.json", "result.json", "config.json", "metrics.jsonl", "policy.safetensors"])
def test_a_pipe_in_a_folder_does_not_hang(tmp_path, file, capfd):
    (tmp_path / "config.json").write_text(TEXT)
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    words = ["verify", tmp_path] if file == "manifest.json" else ["report", tmp_path, "-o", tmp_path / "out"]
    words = ["evaluate", tmp_path] if file == "policy.safetensors" else words
    assert cli.main([str(word) for word in words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert ("it has no config.json" if file == "config.json" else "it is not a regular file") in line


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a root that gives its rights away")
def test_a_file_without_the_right_to_read_it(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(TEXT)
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = "import os, sys; from pathlib import Path; from distqtrl.files import reading; os.setuid(65534)\n"
    code += "try: reading.content(Path(sys.argv[1]))\nexcept ValueError as error: print(error)"
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 1)
    assert subprocess.check_output([sys.executable, "-c", code, str(path)], text=True) == "Permission denied\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not JSON"),
        ("[" * 200_000, "nested more than 50 deep"),
        ('{"a":' * 200_000, "nested more than 50 deep"),
        ('{"a": 1, "a": 1}', "duplicate key 'a'"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "duplicate key 'b'"),
        ('{"a": NaN}', "NaN is not a number in JSON"),
        ('{"a": -Infinity}', "-Infinity is not a number in JSON"),
        ('{"a": 1e999}', "'1e999' is too large a number"),
        ('{"a": ' + "9" * 400 + "}", "is too large a number"),
        ('{"a": ' + "9" * 10_000 + "}", "is too large a number"),
        ('{"a": "\\ud800"}', "not valid Unicode"),
    ],
)
def test_what_is_no_json(text, reason):
    with pytest.raises(ValueError, match=reason) as error:
        reading.parsed(text)
    assert len(str(error.value)) < 200


def test_brackets_in_strings_do_not_nest():
    assert reading.parsed(json.dumps({"[" * 100: '\\"[{' * 100})) == {"[" * 100: '\\"[{' * 100}


def test_digits_in_strings_are_no_number():
    assert reading.parsed(json.dumps({"a": "9" * 5000, "b": 7})) == {"a": "9" * 5000, "b": 7}


@pytest.mark.parametrize("name", ["c.json", "C.JSON", "c.Json"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_configuration_with_a_byte_order_mark_or_an_upper_case_suffix(tmp_path, name, mark):
    (tmp_path / name).write_bytes(mark + TEXT.encode())
    assert load(tmp_path / name) == Config()
    (tmp_path / "c.toml").write_bytes(mark + b"[train]\r\nsteps = 1e6\r\nseed = 7\r\n")
    assert load(tmp_path / "c.toml").train.steps == 10**6


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("c.json", TEXT.encode("utf-16"), "it is not text in UTF-8"),
        ("c.toml", b"\xff\xfe[train]", "it is not text in UTF-8"),
        ("c.toml", b"a = " + b"[" * 5000, "nested"),
        ("c.toml", b"[train]\nseed = 1\nseed = 2\n", "it is not TOML"),
        ("c.toml", b"[train]\nseed = 0x" + b"f" * 5000, "train.seed"),
        ("c.json", b'{"train": {"seed": 1, "seed": 1}}', "duplicate key 'seed'"),
        ("c.json", b'{"train": {"seed": true}}', "train.seed = True: Input should be a valid integer"),
        ("c.json", b'{"train": {"seed": "1"}}', "train.seed = '1': Input should be a valid integer"),
        ("c.toml", b"train.seed = true", "train.seed = True: Input should be a valid integer"),
        ("c.json", b'{"algorithm": {"clip": true}}', "algorithm.clip = True: Input should be a valid number"),
        ("c.json", b'{"algorithm": {"clip": "0.2"}}', "algorithm.clip = '0.2': Input should be a valid number"),
        ("c.json", b'{"algorithm": {"anneal": 1}}', "algorithm.anneal = 1: Input should be a valid boolean"),
        ("c.json", b'{"policy": {"hidden": [64, true]}}', "policy.hidden = True: Input should be a valid integer"),
        ("c.json", b'{"policy": {"hidden": [65536, 65536]}}', "more than 134,217,728 weights"),
        ("c.json", b'{"environment": {"id": 3}}', "environment.id = 3: Input should be a valid string"),
        ("c.json", b'{"qpu": {"per_rank": [{"shots": true}]}}', "entry 0: shots = True"),
        ("c.json", b'{"train": {"seed": 1' + b"0" * 400 + b"}}", "is too large a number"),
        ("c.json", b'{"qpu": {"shots": 1' + b"0" * 18 + b"}}", "qpu.shots = 1000000000000000000: Input should be less"),
        ("c.json", b'{"extends": "' + b"x" * 10**6 + b'"}', "unknown preset 'xxx"),
        ("c.json", b'{"' + b"x" * 10**6 + b'": 1}', "unknown key 'xxx"),
        ("c.json", b"[]", "it holds no table of stages"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        load(tmp_path / name)
    line = str(error.value)
    assert reason in line
    assert str(tmp_path / name) in line
    assert len(line) < 500
    assert "\n" not in line


@pytest.mark.parametrize("number", ["1" + "0" * digits for digits in (18, 400, 5000)] + ["-1" + "0" * 18])
def test_no_number_is_too_large_for_a_line(number):
    """Every key that takes a whole number, or a list of them."""
    for key in field_names():
        stage, _, field = key.partition(".")
        current = getattr(getattr(Config(), stage), field)
        numeric = isinstance(current, int if len(number) < 30 else int | float) and not isinstance(current, bool)
        if not numeric and key not in ("qpu.shots", "policy.hidden", "environment.image", "quantize.core_bits"):
            continue
        with pytest.raises(UserError) as error:
            with_flags(Config(), {key: number})
        assert len(str(error.value)) < 300
        assert "\n" not in str(error.value)


def test_integers_are_numbers_and_flags_are_text(tmp_path):
    (tmp_path / "c.json").write_text('{"algorithm": {"clip": 1}, "train": {"seed": 3.0}, "policy": {"hidden": []}}')
    found = load(tmp_path / "c.json")
    assert (found.algorithm.clip, found.train.seed, found.policy.hidden) == (1.0, 3, ())
    flags = {"train.seed": "1", "algorithm.clip": "0.5", "algorithm.anneal": "true", "qpu.shots": "none"}
    found = with_flags(found, {**flags, "policy.hidden": ["8", "8"], "environment.kwargs": '{"a": [1]}'})
    assert (found.train.seed, found.algorithm.clip, found.algorithm.anneal, found.qpu.shots) == (1, 0.5, True, None)
    assert (found.policy.hidden, found.environment.kwargs) == ((8, 8), {"a": [1]})
    with pytest.raises(UserError, match="duplicate key 'a'"):
        with_flags(found, {"environment.kwargs": '{"a": 1, "a": 2}'})


def test_every_configuration_is_read_as_it_was_saved(tmp_path):
    for name in presets():
        whole = preset(name)
        (tmp_path / "config.json").write_text(save(whole))
        assert load(tmp_path / "config.json") == whole
