"""What a core costs, as the folder says it."""

import dataclasses
import json
import re

import pytest

from distqtrl.cli.main import main
from distqtrl.export.verilog import synthesis
from distqtrl.export.verilog.cores import CORES

FAST = ["--vectors", "2000", "--episodes", "3"]


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
def test_a_core_that_does_not_fit_names_the_folding_that_would(cores, policies, tmp_path, monkeypatch, capfd):
    used = json.loads((cores / "manifest.json").read_text())["verilog"]["folded"]["resources"]
    room = dataclasses.replace(synthesis.Resources(**used), lut=used["lut"] - 40, dsp=used["dsp"], bram=25)
    monkeypatch.setitem(synthesis.PARTS, "tiny", room)
    words = ["--target", "verilog", "--bits", "core=3,input=4,output=4", "--part", "tiny", *FAST]
    assert main(["export", str(policies["small"]), "-o", str(tmp_path / "out"), *words]) == 2
    assert re.search(r"lacks 40 LUT in tiny: --parallel \d+x\d+ would fit", capfd.readouterr().err)
    assert list(tmp_path.iterdir()) == []
