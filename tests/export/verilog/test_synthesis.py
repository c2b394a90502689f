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


MEMORY = """(* ram_style = "distributed" *) reg [3:0] m[0:15];
always @(posedge clk) begin z <= m[a]; m[a + 1] <= a; m[a + 2] <= ~a; end"""


@pytest.mark.parametrize("body", ["assign z = a +;", MEMORY])
def test_a_text_that_yosys_refuses_is_not_the_machines_fault(body):
    text = f"module policy_folded(input wire clk, input wire [3:0] a, output reg [3:0] z);\n{body}\nendmodule\n"
    with pytest.raises(tools.Unchecked, match=r"ERROR: .*: it is not as distqtrl wrote it, or that is our bug: export"):
        synthesis.netlist(text, "policy_folded")
