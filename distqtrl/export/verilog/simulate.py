"""Simulation of the Verilog, of a core's text or its synthesized netlist: Verilator, and Icarus as a second opinion."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from distqtrl.export import tools
from distqtrl.export.check import Different
from distqtrl.quantize.program import Ints, Matmul, Program

HARNESS = r"""
#include "Vtop.h"
#include "verilated.h"
#ifdef TRACE
#include "verilated_vcd_c.h"
#endif
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
double sc_time_stamp() { return 0; }
// usage: top count beats lanes input_bits actions action_bits stall patience
// observations on stdin as int32, actions on stdout
// bits at, ..., at + bits - 1 of a port, which Verilator keeps as words of 32 bits, or as one of 8, 16 or 64
template <class W> static void put(W &port, int at, int bits, uint32_t value)
{
    auto *words = reinterpret_cast<uint8_t *>(&port);
    uint64_t mask = ((1ull << bits) - 1) << (at % 8), word = 0;
    int first = at / 8, bytes = (at % 8 + bits + 7) / 8;
    memcpy(&word, words + first, size_t(bytes));
    word = (word & ~mask) | ((uint64_t(value) << (at % 8)) & mask);
    memcpy(words + first, &word, size_t(bytes));
}
template <class W> static int32_t get(W &port, int at, int bits)
{
    uint64_t word = 0;
    memcpy(&word, reinterpret_cast<const uint8_t *>(&port) + at / 8, size_t((at % 8 + bits + 7) / 8));
    uint64_t value = (word >> (at % 8)) & ((1ull << bits) - 1);
    return int32_t(int64_t(value << (64 - bits)) >> (64 - bits));
}
int main(int argc, char **argv)
{
    long count = atol(argv[1]);
    int beats = atoi(argv[2]), lanes = atoi(argv[3]), xb = atoi(argv[4]), actions = atoi(argv[5]), yb = atoi(argv[6]);
    unsigned stall = unsigned(atoi(argv[7])), noise = 1;
    long patience = atol(argv[8]);
    long width = long(beats) * lanes;
    std::vector<int32_t> x(size_t(count * width)), y(size_t(count * actions));
    if (fread(x.data(), 4, x.size(), stdin) != x.size()) return 1;
    Vtop top;
#ifdef TRACE
    VerilatedVcdC trace;
    uint64_t moment = 0;
    Verilated::traceEverOn(true);
    top.trace(&trace, 99);
    trace.open("trace.vcd");
#endif
    top.clk = 0; top.rst = 1; top.in_valid = 0; top.out_ready = 0;
    for (int i = 0; i < 4; i++) { top.clk = 1; top.eval(); top.clk = 0; top.eval(); }
    top.rst = 0;
    long taken = 0, given = 0, clock = 0, started = 0, longest = 0, waited = 0;
    std::vector<long> starts(size_t(count) + 1);
    while (given < count) {
        noise = noise * 1664525u + 1013904223u;
        bool offer = taken < count * beats && !(stall && (noise >> 16) % stall == 0);
        bool accept = !(stall && (noise >> 24) % stall == 0);
        top.in_valid = offer; top.out_ready = accept;
        if (offer) for (int j = 0; j < lanes; j++) put(top.in_data, j * xb, xb, uint32_t(x[size_t(taken * lanes + j)]));
        top.eval();
#ifdef TRACE
        trace.dump(moment++);
#endif
        if (offer && top.in_ready) {
            if (taken % beats == 0) starts[size_t(started++)] = clock;
            taken++;
        }
        if (top.out_valid && accept) {
            for (int j = 0; j < actions; j++) y[size_t(given * actions + j)] = get(top.out_data, j * yb, yb);
            long took = clock - starts[size_t(given++)];
            longest = took > longest ? took : longest;
            waited = 0;
        }
        top.clk = 1; top.eval(); top.clk = 0; top.eval();
        clock++;
        if (++waited > patience) { fprintf(stderr, "no action in %ld clocks\n", patience); return 0; }
    }
#ifdef TRACE
    trace.close();
#endif
    fwrite(y.data(), 4, y.size(), stdout);
    fprintf(stderr, "%ld %ld\n", longest, clock);
    return 0;
}
"""


# Verilator's own library, which is the same in every simulator and takes longer to compile than a small core does: its
# object files, by all that they depend on
_objects: dict[tuple[str | None, ...], dict[str, bytes]] = {}
_first = threading.Lock()
COMPILED_BY = ("PATH", "CXXFLAGS", "CPPFLAGS", "OPT_GLOBAL", "OBJCACHE", "CPATH", "CPLUS_INCLUDE_PATH")


class Stuck(Different):
    """A simulated core gave no action for a long time, or one that is not a number."""


def build(text: str, name: str, folder: Path, library: Path | None = None) -> Path:
    """The simulator of a core; raises Unchecked where a tool is missing or fails.

    With a library of cells the text is a netlist: what warns is the library, and every net is traced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    verilator, make, cxx = tools.verilator(), tools.make(), " ".join(tools.cxx())
    (folder / f"{name}.v").write_text(text)
    (folder / "main.cpp").write_text(HARNESS)
    words = ["--cc", "--exe", "-O3", "--x-assign", "fast", "--top-module", name, "--prefix", "Vtop"]
    if library is None:
        words += ["-Wall", "-CFLAGS", "-O1"]
    else:
        words += ["-Wno-fatal", "--trace-vcd", "--trace-depth", "1", "--trace-underscore"]
        words += ["-CFLAGS", "-O1 -DTRACE", str(tools.plain(library, folder))]
    words += ["-o", "simulator", f"{name}.v", "main.cpp"]
    if root := verilator.env.get("VERILATOR_ROOT"):
        verilator = replace(verilator, env={"VERILATOR_ROOT": str(tools.plain(Path(root), folder))})
    tools.run(verilator, words, folder)
    makefile = tools.made(verilator, folder / "obj_dir" / "Vtop.mk")
    # the wheel's makefile calls "python" and "c++", which not every machine has
    python = tools.plain(Path(sys.executable), folder)
    names = [f"PYTHON3={python}", f"CXX={cxx}", f"LINK={cxx}", "CFG_CXXFLAGS_PCH_I=-include"]
    kind = (makefile.read_text(), cxx, *map(os.environ.get, COMPILED_BY))
    with nullcontext() if kind in _objects else _first:  # of two cores, the second would compile the same once more
        for file, data in _objects.get(kind, {}).items():
            (makefile.parent / file).write_bytes(data)  # newer than its source, so that make leaves it as it is
        tools.run(make, ["-C", "obj_dir", "-f", makefile.name, "-j", "2", *names], folder)
        _objects[kind] = {path.name: path.read_bytes() for path in makefile.parent.glob("verilated*.o")}
    return tools.made(make, folder / "obj_dir" / "simulator")


def run(simulator: Path, program: Program, x_BO: Ints, lanes: int, stall: int = 0) -> tuple[Ints, int]:
    """Actions (B, A) of integer observations, and the most clocks from a first beat to its action.

    Raises Stuck where the core says nothing, Unchecked where the simulation fails.
    """
    beats = _beats(x_BO, lanes)
    num, actions, bits = len(x_BO), len(program.outputs.low_N), program.outputs.bits
    words = [num, beats.shape[1], lanes, program.inputs.bits, actions, bits, stall, _patience(program)]
    tool = tools.Tool("the simulation", (str(simulator.resolve()),), "give it more memory and room on disk", 1200)
    done = tools.run(tool, list(map(str, words)), simulator.parent, beats.tobytes())
    if b"no action" in done.err:
        raise Stuck(done.err.decode().strip())
    if len(done.out) != 4 * num * actions:
        raise tools.Unchecked(f"the simulation wrote {len(done.out):,} bytes of {4 * num * actions:,}: {tool.remedy}")
    y = np.frombuffer(done.out, np.int32).reshape(num, actions).astype(np.int64)
    return y, int(done.err.split()[0])


def toggles(simulator: Path) -> int:
    """How many bits of the netlist changed in the run before, the clock's left out; zero delay, so no glitches."""
    with (simulator.parent / "trace.vcd").open() as lines:
        return sum(_changes(lines))


def _changes(lines: Iterator[str]) -> Iterator[int]:
    """The number of bits that change at every change of a value change dump, first values and clock left out."""
    now: dict[str, str] = {}
    clock = ""
    for line in lines:
        if found := re.match(r"\s*\$var \S+ 1 (\S+) clk ", line):
            clock = found[1]
        elif line[0] in "01bx":
            value, _, code = line[1:].strip().partition(" ") if line[0] == "b" else (line[0], " ", line[1:].strip())
            if code in now and code != clock:
                width = max(len(value), len(now[code]))
                yield (int(value, 2) ^ int(now[code], 2)).bit_count() if width > 1 else 1
            now[code] = value


BENCH = """\
`timescale 1ns / 1ns
module bench;
    reg clk = 0, rst = 1, in_valid = 0;
    wire in_ready, out_valid;
    reg [{inputs}-1:0] in_data = 0;
    wire [{outputs}-1:0] out_data;
    {name} core(.clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
        .out_valid(out_valid), .out_ready(1'b1), .out_data(out_data));
    reg [{inputs}-1:0] beats [0:{beats}-1];
    integer taken = 0, given = 0, waited = 0;
    always #5 clk = ~clk;
    initial begin
        $readmemh("beats.hex", beats);
        #42 rst = 0;
    end
    // between the edges, as the core's registers change at the rising one
    always @(negedge clk) if (!rst) begin
        in_valid = taken < {beats};
        in_data = beats[taken < {beats} ? taken : 0];
    end
    always @(posedge clk) if (!rst) begin
        if (in_valid & in_ready) taken = taken + 1;
        waited = waited + 1;
        if (waited > {patience}) begin
            $display("no action in {patience} clocks");
            $finish;
        end
        if (out_valid) begin
            $display("%h", out_data);
            waited = 0;
            given = given + 1;
            if (given == {count}) $finish;
        end
    end
endmodule
"""


def icarus(text: str, name: str, folder: Path, program: Program, x_BO: Ints, lanes: int) -> Ints:
    """Actions (B, A) of integer observations by Icarus Verilog; raises Stuck and Unchecked as ``run``."""
    compiler, player = tools.icarus()
    actions, bits, x_bits = len(program.outputs.low_N), program.outputs.bits, program.inputs.bits
    words = [_joined(row, x_bits) for row in _beats(x_BO, lanes).reshape(-1, lanes)]
    (folder / "beats.hex").write_text("\n".join(f"{word:x}" for word in words))
    facts = {"name": name, "inputs": lanes * x_bits, "outputs": actions * bits, "beats": len(words), "count": len(x_BO)}
    silent = f"no action in {_patience(program)} clocks"
    (folder / "core.v").write_text(text + BENCH.format(**facts, patience=_patience(program)))
    tools.run(compiler, ["-g2005-sv", "-o", "bench", "-s", "bench", "core.v"], folder)
    tools.made(compiler, folder / "bench")
    lines = tools.run(player, ["bench"], folder).out.decode(errors="replace").splitlines()
    shown = [line for line in lines if re.fullmatch("[0-9a-fxz]+", line, re.IGNORECASE)]
    if silent in lines:
        raise Stuck(silent)
    if len(shown) != len(x_BO):
        raise tools.Unchecked(f"vvp printed {len(shown):,} of {len(x_BO):,} actions: {player.remedy}")
    if undefined := next((line for line in shown if not re.fullmatch("[0-9a-f]+", line)), None):
        raise Stuck(f"the action {undefined} has bits without a value")
    half = 1 << (bits - 1)
    fields = [[(int(line, 16) >> (i * bits)) % (2 * half) for i in range(actions)] for line in shown]
    return np.array([[(v + half) % (2 * half) - half for v in row] for row in fields], np.int64).reshape(-1, actions)


def _patience(program: Program) -> int:
    """Clocks after which a core is stuck: one multiplier makes a product per clock."""
    return 10**6 + 20 * sum(op.weights_NK.size for op in program.ops if isinstance(op, Matmul))


def _beats(x_BO: Ints, lanes: int) -> np.ndarray:
    """Observations as a core takes them, (B, beats, lanes), with zeros behind the last one."""
    num, width = x_BO.shape
    beats = -(-width // lanes)
    return np.pad(x_BO.astype(np.int32), ((0, 0), (0, beats * lanes - width))).reshape(num, beats, lanes)


def _joined(values: np.ndarray, bits: int) -> int:
    """One number of these, the first in the lowest bits."""
    return sum((int(v) & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))
