"""What a core costs: Yosys for the 7 series (counts), Yosys and nextpnr for ECP5 (a clock after place and route)."""

import json
import re
from dataclasses import asdict, dataclass

from distqtrl.export import tools

LUTS = {f"LUT{n}": 1 for n in range(1, 7)} | {"SRL16E": 1, "SRLC32E": 1, "RAM32X1D": 2, "RAM64X1D": 2}
LUTS |= {"RAM32M": 4, "RAM64M": 4, "RAM128X1D": 4, "RAM256X1S": 4}
LUTS |= {"INV": 1}  # the 7 series has no inverter: a table does it where no neighbour takes it in
BRAMS = {"RAMB36E1": 1.0, "RAMB18E1": 0.5}


@dataclass(frozen=True)
class Resources:
    """What a core takes of a 7 series device, or such a device has."""

    lut: int  # 6-input lookup tables, those used as memory and as inverters too
    ff: int  # flip-flops
    bram: float  # memories of 36 kbit
    dsp: int  # DSP48E1


PARTS = {
    "xc7a15t": Resources(lut=10_400, ff=20_800, bram=25, dsp=45),
    "xc7a35t": Resources(lut=20_800, ff=41_600, bram=50, dsp=90),
}


def resources(text: str, top: str) -> Resources:
    """Counts after synth_xilinx -family xc7 -flatten; raises Unchecked as ``synthesized``."""
    script = f"synth_xilinx -family xc7 -flatten -top {top}\ntee -q -o stat.json stat -json\n"
    cells: dict[str, int] = json.loads(synthesized(text, script, "stat.json"))["design"]["num_cells_by_type"]
    ff = sum(count for name, count in cells.items() if name.startswith("FD"))
    lut = sum(LUTS.get(name, 0) * count for name, count in cells.items())
    bram = sum(BRAMS.get(name, 0.0) * count for name, count in cells.items())
    return Resources(lut=lut, ff=ff, bram=bram, dsp=cells.get("DSP48E1", 0))


def netlist(text: str, top: str) -> str:
    """The core as cells of the 7 series, memories in lookup tables (the library's block memory has no model)."""
    script = f"synth_xilinx -family xc7 -flatten -nobram -noiopad -noclkbuf -top {top}\n"
    script += "clean\nwrite_verilog -noattr netlist.v\n"
    return synthesized(text.replace('"block"', '"logic"'), script, "netlist.v")


def lacking(used: Resources, part: Resources) -> dict[str, float]:
    """By how much a core is too large for a part, resource by resource; empty where it fits."""
    over = {name: value - getattr(part, name) for name, value in asdict(used).items()}
    return {name: value for name, value in over.items() if value > 0}


def clock_mhz(text: str, top: str, in_bits: int, out_bits: int) -> float:
    """The clock that nextpnr reaches on an ECP5-85F, speed grade 6, behind a serial port on either side."""
    text += SERIAL.format(top=top, i=in_bits, o=out_bits)
    with tools.workplace() as place:
        (place / "core.json").write_text(synthesized(text, "synth_ecp5 -top serial -json core.json\n", "core.json"))
        flags = ["--85k", "--speed", "6", "--json", "core.json", "--lpf-allow-unconstrained", "--seed", "1"]
        tool = tools.nextpnr()
        done = tools.run(tool, [*flags, "--timing-allow-fail", "--freq", "100"], place)
    found = re.findall(r"Max frequency for clock .*?: ([\d.]+) MHz", (done.err + done.out).decode(errors="replace"))
    if not found:
        raise tools.Unchecked(f"nextpnr gave no clock: {tool.remedy}")
    return float(found[-1])


def synthesized(text: str, script: str, file: str) -> str:
    """The text of the file that a Yosys script writes about a core; raises Unchecked where there is none."""
    with tools.workplace() as place:
        (place / "core.v").write_text(text)
        tool = tools.yosys()
        tools.run(tool, [], place, f"read_verilog core.v\n{script}".encode())
        return tools.made(tool, place / file).read_text()


SERIAL = """
module serial(input wire clk, input wire rst, input wire si, input wire iv, input wire ordy, output reg so,
    output wire ir, output wire ov);
    reg [{i}-1:0] x;
    wire [{o}-1:0] y;
    reg [{o}-1:0] z;
    always @(posedge clk) begin
        x <= {{x, si}};
        z <= ov ? y : {{z, 1'b0}};
        so <= z[{o}-1];
    end
    {top} core(.clk(clk), .rst(rst), .in_valid(iv), .in_ready(ir), .in_data(x), .out_valid(ov), .out_ready(ordy),
        .out_data(y));
endmodule
"""
