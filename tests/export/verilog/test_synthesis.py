"""What Yosys counts and nextpnr reaches."""

import json

import pytest
from quantize.programs import program

from distqtrl.export import tools
from distqtrl.export.verilog import synthesis, unrolled


def test_a_clock_is_reached(tmp_path):
    """Place and route of a small core for ECP5: the goal is 100 MHz, the test that a number comes back."""
    try:
        tools.nextpnr()
        tools.yosys()
    except tools.Missing as error:
        pytest.skip(str(error))
    made = program(302, most=5)
    inputs, outputs = len(made.input_fraction_O) * made.inputs.bits, len(made.outputs.low_N) * made.outputs.bits
    assert 20 < synthesis.clock_mhz(unrolled.verilog(made), "policy_unrolled", inputs, outputs) < 1000


def test_inverters_are_tables(monkeypatch):
    cells = {"LUT3": 2, "INV": 5, "FDRE": 7, "BUFG": 1}
    text = json.dumps({"design": {"num_cells_by_type": cells}})
    monkeypatch.setattr(synthesis, "synthesized", lambda *args: text)
    assert synthesis.resources("", "top") == synthesis.Resources(lut=7, ff=7, bram=0.0, dsp=0)
