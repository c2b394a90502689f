"""The verify command: what is equal, different or not checked, in an exported folder that may have been changed."""

import json
import re
import shutil
import sys
import tracemalloc

import numpy as np
import onnx
import pytest
from broken import QUICK, run, verdict

from distqtrl.cli.main import main
from distqtrl.export import manifest, tools, verify
from distqtrl.export.check import BUILT, DIFFERENT, EQUAL, NOT_CHECKED, Check
from distqtrl.quantize import program as programs
from distqtrl.quantize.program import Argmax, Program, Scale

FAST = ["--vectors", "2000", "--episodes", "3"]


def test_all_combinations_of_levels_are_tried():
    """Two observations of 4 levels each: all 16 pairs, or none where there is no room; one observation: every value."""
    scale = Scale(np.array([1, 3]), np.array([0, 40_000]), 14, 0, 3)
    made = Program((0, 0), 16, (scale, Argmax()))
    seen_BO = np.zeros((3, 2), np.int64)
    pairs = {tuple(row) for row in scale(verify.vectors(made, seen_BO, 16, seed=0)).tolist()}
    kinds = [np.unique(scale(np.arange(-32768, 32768)[:, None].repeat(2, 1))[:, i]) for i in range(2)]
    assert pairs == {(a, b) for a in kinds[0] for b in kinds[1]}
    assert len(verify.vectors(made, seen_BO, 1000, seed=0)) == 1000
    one = Program((0,), 16, (Scale(np.array([1]), np.array([0]), 14, 0, 3), Argmax()))
    assert len(np.unique(verify.vectors(one, seen_BO[:, :1], 100_000, seed=0))) == 65_536


def test_wide_observations_are_not_multiplied_out():
    """An image's combinations are too many after a few inputs: nothing of the size of all of them is made."""
    width = 5000
    scale = Scale(np.full(width, 1), np.zeros(width, np.int64), 14, 0, 3)
    made = Program((0,) * width, 16, (scale, Argmax()))
    tracemalloc.start()
    assert verify.vectors(made, np.zeros((3, width), np.int64), 4, seed=0).shape == (4, width)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_missing_tools_are_named(exported, monkeypatch, capfd):
    def missing(name=""):
        raise tools.Missing("no cc: install the Debian package gcc")

    monkeypatch.setattr(tools, "compiler", missing)
    monkeypatch.setattr(tools, "arm", missing)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["verify", str(exported["categorical"]), *FAST]) == 3  # nothing was compared
    out = capfd.readouterr().out
    assert re.search(r"c +not checked: no cc: install the Debian package gcc", out)
    assert re.search(r"onnx +not checked: no onnxruntime: install distqtrl\[onnx\]", out)


@pytest.mark.parametrize(
    ("file", "pattern", "by"),
    [
        ("policy.c", r"weights1\[\d+\] = \{\n    (\d+)", "weight"),
        ("policy.c", r">> (\d+);", "shift"),
        ("policy.c", r"sum\[i\] - (\d+) \* all", "zero"),
        ("program.json", r'"offset_N": \[(-?\d+)', "rounding"),
        ("policy.onnx", None, "weight"),
    ],
)
def test_a_mutation_is_seen(exported, tmp_path, file, pattern, by, capfd):
    folder = tmp_path / "mutated"
    shutil.copytree(exported["gaussian"], folder)
    data = (folder / file).read_bytes()
    if pattern is None:
        model = onnx.load_model_from_string(data)
        weights = next(
            part for part in model.graph.initializer if part.data_type == onnx.TensorProto.UINT8 and part.dims
        )
        weights.raw_data = bytes([weights.raw_data[0] ^ 1]) + weights.raw_data[1:]
        data = model.SerializeToString()
    else:
        found = re.search(pattern.encode(), data)
        value = int(found[1]) + (100_000_000 if by == "rounding" else 1)
        data = data[: found.start(1)] + str(value).encode() + data[found.end(1) :]
    (folder / file).write_bytes(data)
    about = json.loads((folder / "manifest.json").read_text())
    about["files"][file] = verify.digest(folder / file)  # not by its hash
    if file == "program.json":
        about["program"] = programs.digest(manifest.read(folder)[0])
    (folder / "manifest.json").write_text(json.dumps(about))
    assert main(["verify", str(folder), *FAST]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("files             equal")
    assert any(" DIFFERENT: " in line or " DIFFERENT " in line for line in lines[1:])


def test_a_changed_file_is_named(exported, tmp_path, capfd):
    folder = tmp_path / "changed"
    shutil.copytree(exported["categorical"], folder)
    (folder / "policy.h").write_text((folder / "policy.h").read_text() + "\n")
    assert main(["verify", str(folder), *FAST]) == 1
    assert "policy.h not as exported" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("manifest.json", "{}", "lacks the key 'format'"),
        ("manifest.json", '{"format": "other"}', "Input should be 'distqtrl export 1'"),
        ("program.json", None, "cannot read"),
        ("program.json", '{"format": "distqtrl program 1"}', "lacks the key 'input_fraction_O'"),
        ("vectors.csv", "1,2\n3\n", "cannot read"),
        ("vectors.csv", "1,2\n3,4\n", "2 columns"),
    ],
)
def test_a_damaged_folder_is_one_line(exported, tmp_path, file, text, says, capfd):
    folder = tmp_path / "damaged"
    shutil.copytree(exported["categorical"], folder)
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    assert main(["verify", str(folder), *FAST]) == 2
    error = capfd.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


CORES = {core: {"observations_per_beat": 1, "observation_bits": 16} for core in ("folded", "unrolled")}


def changed(folder, **values):
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(about | values))
    return about


def only(values, *names):
    return {name: values[name] for name in names}


def without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


def test_a_shortened_manifest_is_seen(folder, capfd):
    about = changed(folder)
    cases = [
        ({"files": only(about["files"], "vectors.csv")}, "program.json is not in manifest.json"),
        ({"files": without(about["files"], "policy.onnx")}, "policy.onnx is not in manifest.json"),
        ({"files": without(about["files"], "vectors.csv")}, "vectors.csv is not in manifest.json"),
        ({"files": without(about["files"], "README.md")}, "README.md is not in manifest.json"),
        ({"targets": ["c"]}, "policy.onnx belongs to no target"),
        ({"program": "0" * 64}, "program.json is not the program that was exported"),
        ({"targets": ["c", "onnx", "verilog"], "verilog": CORES}, "policy_folded.v is not in manifest.json"),
    ]
    for values, says in cases:
        changed(folder, **{**about, **values})
        code, out, _ = run(capfd, "verify", folder, *QUICK)
        assert code == 1, values
        assert verdict(out, "files").startswith("DIFFERENT")
        assert says in verdict(out, "files")


@pytest.mark.parametrize(
    "values",
    [
        {"files": []},
        {"files": {}},
        {"files": {"../x": "0"}},
        {"targets": "c"},
        {"targets": []},
        {"targets": ["vhdl"]},
        {"targets": ["c", "onnx", "verilog"]},
        {"program": 1},
    ],
)
def test_an_ill_formed_manifest_is_refused(folder, values, capfd):
    changed(folder, **values)
    code, _, err = run(capfd, "verify", folder, *QUICK)
    assert code == 2
    assert "is not a manifest of an export" in err
    assert len(err.splitlines()) == 1


def test_nothing_runs_that_is_not_as_exported(folder, tmp_path, capfd):
    marker = tmp_path / "ran"
    code = f'#include <stdio.h>\n__attribute__((constructor)) void ran(void) {{ fclose(fopen("{marker}", "w")); }}\n'
    with (folder / "policy.c").open("a") as file:
        file.write(code)
    with (folder / "policy.py").open("a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w')\n")
    with (folder / "policy.onnx").open("ab") as file:
        file.write(b"x")
    code, out, _ = run(capfd, "verify", folder, *QUICK)
    assert code == 1
    assert (
        verdict(out, "files")
        == "DIFFERENT: policy.c not as exported, policy.onnx not as exported, policy.py not as exported"
    )
    for target, file in (("c", "policy.c"), ("onnx", "policy.onnx"), ("closed loop", "policy.c")):
        assert verdict(out, target) == f"not checked: {file} is not as exported, so it was not run"
    assert not marker.exists()


def test_a_program_that_is_not_the_recorded_one_says_nothing(folder, capfd):
    text = (folder / "program.json").read_text()
    (folder / "program.json").write_text(text + "\n")
    code, out, _ = run(capfd, "verify", folder, *QUICK)
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["files", "interpreter"]


def test_a_target_that_is_not_there_is_refused(folder, capfd):
    code, _, err = run(capfd, "verify", folder, "--target", "c,verilog", *QUICK)
    assert code == 2
    assert err == f"distqtrl: --target verilog: {folder} was exported without it, its targets are: c, onnx\n"


def test_exit_codes():
    def found(**statuses):
        return [Check(name.replace("_", " "), status) for name, status in statuses.items()]

    nothing = found(files=EQUAL, interpreter=EQUAL, c=NOT_CHECKED, closed_loop=NOT_CHECKED)
    verilog = found(verilog_folded=EQUAL, verilog_unrolled=NOT_CHECKED, icarus_unrolled=EQUAL)
    assert verify.exit_code(nothing) == 3
    assert verify.exit_code([*nothing, *found(onnx=EQUAL)]) == 0
    assert verify.exit_code([*nothing, *found(onnx=EQUAL)], ["c"]) == 3
    assert verify.exit_code([*nothing, *found(onnx=DIFFERENT)], ["c"]) == 1
    assert verify.exit_code(found(c=EQUAL, c_cortex_m=NOT_CHECKED), ["c"]) == 0
    assert verify.exit_code(found(cuda=BUILT, torch=EQUAL)) == 0
    assert verify.exit_code(found(c=NOT_CHECKED, c_cortex_m=BUILT)) == 3  # nothing was compared
    assert verify.exit_code(found(cuda=BUILT, torch=EQUAL), ["cuda"]) == 3
    assert verify.exit_code(verilog, ["verilog"]) == 0
    assert verify.exit_code(verilog[:2], ["verilog"]) == 3


def test_help_says_the_exit_codes(capfd):
    assert "3: a target named with --target could not be checked" in " ".join(run(capfd, "verify", "--help")[1].split())
    assert "Exit code 0: the folder was written" in " ".join(run(capfd, "export", "--help")[1].split())
