"""The export and verify commands: a whole folder, damaged folders, bad input that leaves nothing behind."""

import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import onnx
import pytest

from distqtrl.cli.main import main
from distqtrl.export import check, manifest, targets, tools, verify
from distqtrl.export.verilog import synthesis
from distqtrl.export.verilog.cores import CORES
from distqtrl.policy import policy_file
from distqtrl.quantize import program as programs

FAST = ["--vectors", "2000", "--episodes", "3"]


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_a_folder_holds_its_proof(exported, name, capfd):
    folder = exported[name]
    about = json.loads((folder / "manifest.json").read_text())
    assert {check["status"] for check in about["checks"]} <= {"equal", "built", "not checked"}
    assert {check["status"] for check in about["checks"] if check["target"] != "c cortex-m"} == {"equal"}
    names = {check["target"] for check in about["checks"]}
    assert names == {"files", "interpreter", "c", "c cortex-m", "onnx", "closed loop"}
    assert len(about["errors"]) == 2
    assert all(0.5 <= error["worst_levels"] < 0.6 for error in about["errors"])
    assert about["returns"]["interval"][0] <= about["returns"]["difference"] <= about["returns"]["interval"][1]
    assert main(["verify", str(folder), *FAST]) == 0
    assert re.search(r"c +equal 2,000 vectors", capfd.readouterr().out)
    assert "policy_act" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["squashed", "trained", "trained tanh"])
def test_every_target_takes_squashed_heads_and_trained_integers(policies, tmp_path, name, capfd):
    folder = tmp_path / "out"
    words = ["--bits", "core=2,input=4,output=4"] if name == "squashed" else []  # small cores are built sooner
    words += ["--vectors", "400", "--episodes", "2"]
    assert main(["export", str(policies[name]), "-o", str(folder), *words]) == 0
    about = json.loads((folder / "manifest.json").read_text())
    statuses = {check["target"]: check["status"] for check in about["checks"]}
    assert {statuses[target] for target in ("c", "onnx", "torch", "closed loop")} == {"equal"}
    assert {statuses[f"{tool} {core}"] for tool in ("verilog", "icarus") for core in CORES} <= {"equal", "not checked"}
    assert all(0.5 <= error["worst_levels"] < 0.6 for error in about["errors"])
    page = (folder / "README.md").read_text()
    if name == "squashed":
        assert "Quantized after training. Bits: core 2, input 4, output 4, per channel." in page
        return
    assert "Quantized while training. Bits: core 2, input 4, output 5, per tensor." in page
    assert about["returns"]["difference"] == 0 == about["returns"]["float"] - about["returns"]["integer"]
    assert about["program"] == programs.digest(policy_file.load(policies[name]).program())
    assert "recorded_max" not in about["errors"][0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bits", "core=3"], "--bits core=3,input=8,output=8: "),
        (["--per", "channel"], "--per channel: "),
        (["--calibration", "seen.npy"], "--calibration seen.npy: "),
    ],
)
def test_what_was_trained_with_quantization_is_not_quantized_again(policies, tmp_path, words, says, capfd):
    assert main(["export", str(policies["trained"]), "-o", str(tmp_path / "out"), *words]) == 2
    error = capfd.readouterr().err
    assert says in error
    assert "was trained with its quantization" in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def cores(policies, tmp_path_factory):
    """A folder with both cores."""
    for tool in (tools.verilator, tools.yosys, tools.icarus):
        try:
            tool()
        except tools.Missing as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cores") / "out"
    words = ["--target", "c,verilog", "--bits", "core=3,input=4,output=4", *FAST]
    assert main(["export", str(policies["small"]), "-o", str(folder), *words]) == 0
    return folder


@pytest.mark.xdist_group("cores")
def test_a_folder_counts_its_cores(cores):
    about = json.loads((cores / "manifest.json").read_text())
    checks = {check["target"]: check for check in about["checks"]}
    assert all(checks[f"{tool} {core}"]["status"] == "equal" for tool in ("verilog", "icarus") for core in CORES)
    for core in CORES:
        found = about["verilog"][core]
        assert found["resources"]["lut"] > 10
        assert found["us_at_100_mhz"] == checks[f"verilog {core}"]["figures"]["clocks"] / 100
        assert "xc7a15t" in found["fits"]
    assert "| unrolled |" in (cores / "README.md").read_text()


@pytest.mark.xdist_group("cores")
@pytest.mark.parametrize(
    ("core", "pattern", "change"),
    [
        ("unrolled", r" = (?:\{1'b0, )?\S+ (\+) ", lambda text: "-"),
        ("unrolled", r"<= (n\d+);", lambda text: f"~{text}"),
        ("folded", r"weights\[1\] = \d+'h([0-9a-f]+)", lambda text: f"{int(text, 16) ^ 1:x}"),
        ("folded", r"shifted = v >>> (\d+);", lambda text: str(int(text) - 1)),
        ("folded", r"offsets\[0\] = \d+'h([0-9a-f])", lambda text: f"{int(text, 16) ^ 1:x}"),
    ],
)
def test_a_mutation_of_a_core_is_seen(cores, tmp_path, core, pattern, change):
    """By Icarus, which takes a second where Verilator takes ten."""
    mutate(cores, tmp_path / "mutated", core, pattern, change)
    assert checked(tmp_path / "mutated", targets.TARGETS["verilog"].checks[f"icarus {core}"]).status == "DIFFERENT"


@pytest.mark.xdist_group("cores")
def test_a_mutation_of_a_core_is_seen_by_verilator(cores, tmp_path):
    folder = mutate(cores, tmp_path / "mutated", "unrolled", r"assign out_data = ()", lambda text: "~")
    found = checked(folder, targets.TARGETS["verilog"].checks["verilog unrolled"])
    assert found.status == "DIFFERENT"
    assert found.detail.startswith("1,000 of 1,000 vectors")


def mutate(source, folder, core, pattern, change):
    """The folder as a copy whose core has the first match's group changed."""
    shutil.copytree(source, folder)
    file = folder / f"policy_{core}.v"
    text = file.read_text()
    found = re.search(pattern, text)
    file.write_text(text[: found.start(1)] + change(found[1]) + text[found.end(1) :])
    return folder


def checked(folder, comparison):
    program, seen_BO, _ = manifest.read(folder)
    x_BO = verify.vectors(program, seen_BO, 1000, seed=0)
    facts = manifest.manifest(folder / "manifest.json")["verilog"]
    question = check.Question(folder, program, x_BO, program.run(x_BO), seen_BO, facts)
    return check.checked("core", comparison, question)


@pytest.mark.xdist_group("cores")
def test_a_core_that_does_not_fit_names_the_folding_that_would(cores, policies, tmp_path, monkeypatch, capfd):
    used = json.loads((cores / "manifest.json").read_text())["verilog"]["folded"]["resources"]
    room = dataclasses.replace(synthesis.Resources(**used), lut=used["lut"] - 40, dsp=used["dsp"], bram=25)
    monkeypatch.setitem(synthesis.PARTS, "tiny", room)
    words = ["--target", "verilog", "--bits", "core=3,input=4,output=4", "--part", "tiny", *FAST]
    assert main(["export", str(policies["small"]), "-o", str(tmp_path / "out"), *words]) == 2
    assert re.search(r"lacks 40 LUT in tiny: --parallel \d+x\d+ would fit", capfd.readouterr().err)
    assert list(tmp_path.iterdir()) == []


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
        weights = next(part for part in model.graph.initializer if part.data_type == onnx.TensorProto.INT8)
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
    ("words", "says"),
    [
        (["--bits", "core=9"], "core=9"),
        (["--target", "vhdl"], "vhdl"),
        (["--parallel", "3x2"], "LANESxCOLUMNS"),
        (["--part", "virtex"], "known parts"),
        (["--calibration", "absent.npy"], "absent.npy"),
        (["--vectors", "0"], "'0'"),
        (["--energy", "1,2"], "--implement"),
        (["--implement", "--energy", "much"], "WATTS,JOULES"),
    ],
)
def test_bad_words_leave_nothing(policies, tmp_path, words, says, capfd):
    folder = tmp_path / "out"
    assert main(["export", str(policies["categorical"]), "-o", str(folder), *words]) == 2
    error = capfd.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_recordings_leave_nothing(policies, tmp_path, capfd):
    for number, array in enumerate((np.zeros((5, 3)), np.full((5, 4), np.nan))):
        np.save(tmp_path / f"{number}.npy", array)
        words = ["--calibration", str(tmp_path / f"{number}.npy"), "-o", str(tmp_path / "out")]
        assert main(["export", str(policies["categorical"]), *words]) == 2
        assert f"{number}.npy" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept(policies, exported, capfd):
    before = sorted(exported["categorical"].iterdir())
    assert main(["export", str(policies["categorical"]), "-o", str(exported["categorical"])]) == 2
    assert "exists" in capfd.readouterr().err
    assert sorted(exported["categorical"].iterdir()) == before


def test_a_damaged_policy_and_no_export_at_all(policies, tmp_path, capfd):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(policies["categorical"].read_bytes()[:-3])
    assert main(["export", str(damaged), "-o", str(tmp_path / "out")]) == 2
    assert "damaged.safetensors" in capfd.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2
    assert "no exported policy" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("manifest.json", "{}", "no exported policy"),
        ("manifest.json", '{"format": "other"}', "not a 'distqtrl export 1'"),
        ("program.json", None, "cannot read"),
        ("program.json", '{"format": "distqtrl program 1"}', "cannot read the program"),
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
