"""The export command: a whole folder, and bad input that leaves nothing behind."""

import json
import os
import re
import shlex

import numpy as np
import pytest

from distqtrl.cli.main import main
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


@pytest.mark.parametrize("name", ["squashed", "trained tanh"])
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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bits", "core=9"], "core=9"),
        (["--bits", "core=3,core=4"], "says core twice"),
        (["--target", "vhdl"], "vhdl"),
        (["--parallel", "3x2"], "LANESxCOLUMNS"),
        (
            ["--target", "verilog", "--parallel", "99999999x9"],
            "--parallel 99999999x9 is more than this network",
        ),
        (["--target", "verilog", "--parallel", "65536x1"], "--parallel 65536x1 is more"),
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
    wrong = (np.zeros((5, 3)), np.full((5, 4), np.nan), np.zeros((5, 4), complex), np.full((5, 4), "a"))
    for number, array in enumerate(wrong):
        np.save(tmp_path / f"{number}.npy", array)
    with (tmp_path / "4.npy").open("wb") as file:
        np.savez(file, np.zeros((5, 4)))  # several arrays, whatever the name says
    (tmp_path / "5.npy").write_text("1,2,3,4\n" * 5)
    header = "{'descr': ("
    damaged = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    (tmp_path / "6.npy").write_bytes(damaged)
    os.mkfifo(tmp_path / "7.npy")  # who opens it waits
    for number in range(8):
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
    assert "give a folder made by distqtrl export" in capfd.readouterr().err


def test_the_command_that_checks_again_is_one_that_a_shell_takes(policies, tmp_path, capfd):
    folder = tmp_path / "a b'c"
    quick = ["--target", "c", "--vectors", "100", "--episodes", "1"]
    assert main(["export", str(policies["categorical"]), "-o", str(folder), *quick]) == 0
    again = shlex.split(capfd.readouterr().out.rpartition("distqtrl ")[2])
    assert again == ["verify", str(folder)]
