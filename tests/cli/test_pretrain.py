"""A base of one's own: the same bytes for the same seed, never in the place of anything, loaded by whoever wants it."""

import json

import pytest

from distqtrl.language import checkpoint

SMALL = ["--layers", 1, "--width", 16, "--heads", 2, "--steps", 25]


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_seed_makes_the_same_bytes(command, tmp_path):
    code, out, err = command("pretrain", "arithmetic", "-o", tmp_path / "a", *SMALL)
    assert (code, err) == (0, "")
    assert "step 20: loss " in out
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'a'}: 3,664 weights, ")
    code, out, _ = command("pretrain", "arithmetic", "-o", tmp_path / "b", *SMALL, "--json")
    assert (code, set(json.loads(out))) == (0, {"directory", "weights", "accuracy"})
    assert command("pretrain", "arithmetic", "-o", tmp_path / "c", *SMALL, "--seed", 1)[0] == 0
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]
    assert {name: a[name] for name in a if name != "model.safetensors"} == {
        name: c[name] for name in c if name != "model.safetensors"
    }


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_families(family, command, tmp_path):
    words = ["pretrain", "arithmetic", "-o", tmp_path / "base", *SMALL[:-1], 1, "--family", family]
    assert command(*words)[0] == 0
    found = checkpoint.opened(tmp_path / "base")
    assert (found.config.model_type, found.text(found.tokens("12+34="))) == (family, "12+34=")


def test_what_is_there_stays(command, tmp_path):
    (tmp_path / "base").mkdir()
    code, out, err = command("pretrain", "arithmetic", "-o", tmp_path / "base", *SMALL)
    assert (code, out) == (2, "")
    assert err == f"distqtrl: {tmp_path / 'base'} exists: give -o a new directory, or remove it\n"


def test_where_nothing_can_be_written_nothing_is_trained(command, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = command("pretrain", "arithmetic", "-o", tmp_path / "file" / "base", *SMALL)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(tmp_path / "file") in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", 30], "--width 30 is not a multiple of twice --heads 4: choose another"),
        (["--family", "qwen4"], "unknown --family 'qwen4': did you mean 'qwen"),
        (["--accuracy", "70"], "'70' is not a fraction: write a number above 0, at most 1"),
    ],
)
def test_sizes_that_do_not_fit(words, said, command, tmp_path):
    code, _, err = command("pretrain", "arithmetic", "-o", tmp_path / "base", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not (tmp_path / "base").exists()
