"""What every target of an export does beside the interpreter, vector by vector, without tolerance."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from distqtrl.export import cuda, loader, simulate, synthesis, tools
from distqtrl.export.tools import Missing, Unchecked
from distqtrl.quantize.program import Ints, Program

EQUAL, BUILT, DIFFERENT, NOT_CHECKED = "equal", "built", "DIFFERENT", "not checked"
NETLIST_VECTORS = 100  # of a synthesized netlist, whose every change of a net is counted
ICARUS_VECTORS = 1000
PART = 65_536  # vectors that are taken at once
CORTEX_M = ["-mcpu=cortex-m4", "-mthumb", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections"]
CORTEX_M += ["-fstack-usage", "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,policy_step"]


class Different(Exception):
    """A target computed something else than the interpreter; says the first difference."""


@dataclass(frozen=True)
class Check:
    """What one target did (equal, built but not run, DIFFERENT, not checked), over how many vectors, what there is to
    say, and what was counted on the way."""

    target: str
    status: str
    vectors: int = 0
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A place that holds a target's files and nothing else, the program, observations (B, O) with its actions (B, A),
    the recorded observations, and how many of them a core takes per beat."""

    place: Path
    program: Program
    x_BO: Ints
    y_BA: Ints
    seen_BO: Ints
    per_beat: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """Files of the folder that are needed, and what compares them; raises Different and Unchecked."""

    files: tuple[str, ...]
    run: Callable[[str, Question], Check]


def parts(x: np.ndarray, most: int = PART) -> list[np.ndarray]:
    """Vectors in order, in parts of no more than so many."""
    return np.array_split(x, -(-len(x) // most))


def equal(y_BA: np.ndarray, expected_BA: Ints) -> None:
    """Raises Different, with the first difference."""
    wrong = (y_BA != expected_BA).any(-1)
    if wrong.any():
        first = int(wrong.argmax())
        raise Different(
            f"{wrong.sum():,} of {len(wrong):,} vectors; number {first}: {y_BA[first].tolist()}, "
            f"not {expected_BA[first].tolist()}"
        )


def library(place: Path) -> loader.Policy:
    """The C policy of a place, built there; raises Unchecked."""
    compiler, file = tools.compiler(), place / "policy.so"
    tools.run(compiler, [*loader.FLAGS, "-o", file.name, "policy.c"], place)
    try:
        return loader.Policy(library=tools.made(compiler, file).resolve())
    except OSError as error:
        raise Unchecked(f"{compiler.name} wrote a library that does not load ({error}): {compiler.remedy}") from None


def _c(name: str, q: Question) -> Check:
    equal(library(q.place).batch(q.x_BO), q.y_BA)
    return Check(name, EQUAL, len(q.x_BO), tools.compiler().name)


def cortex_m(place: Path) -> dict[str, float]:
    """policy_step linked for a Cortex-M4: what it needs of flash, memory and stack, in bytes; raises Unchecked."""
    compiler, size = tools.arm(), tools.arm("size")
    tools.run(compiler, [*CORTEX_M, "-o", "policy.elf", "policy.c", "-lgcc"], place)
    tools.made(compiler, place / "policy.elf")
    lines = tools.run(size, ["policy.elf"], place).out.decode(errors="replace").splitlines()
    try:
        text, data, bss = map(int, lines[1].split()[:3])
    except (IndexError, ValueError):
        raise Unchecked(f"{size.name} printed no sizes: {size.remedy}") from None
    stacks = [line.split("\t") for path in place.glob("*.su") for line in path.read_text().splitlines()]
    stack = sum(int(words[1]) for words in stacks if not words[0].endswith(("policy_batch", "policy_convert")))
    return {"flash": text + data, "memory": data + bss, "stack": stack}


def _cortex_m(name: str, q: Question) -> Check:
    f = cortex_m(q.place)
    detail = f"Cortex-M4: {f['flash']:,} bytes of flash, {f['memory']:,} of memory, at most {f['stack']:,} of stack"
    return Check(name, BUILT, 0, detail, f)


def _onnx(name: str, q: Question) -> Check:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise Missing("no onnxruntime: install distqtrl[onnx]") from None
    except Exception as error:  # a library that it loads may be damaged in any way
        raise Unchecked(f"onnxruntime cannot be imported ({error}): install distqtrl[onnx] again") from None
    try:
        session = onnxruntime.InferenceSession(q.place / "policy.onnx", providers=["CPUExecutionProvider"])
        found = [session.run(None, {"observation": part})[0] for part in parts(q.x_BO.astype(np.int32), 4096)]
    except Exception as error:  # it has exceptions of its own for everything
        raise Unchecked(f"onnxruntime failed: {_first(error)}: install distqtrl[onnx] again") from None
    equal(np.concatenate(found), q.y_BA)
    return Check(name, EQUAL, len(q.x_BO), f"onnxruntime {onnxruntime.__version__}")


def _cuda(name: str, q: Question) -> Check:
    nvcc, file = tools.nvcc(), q.place / "policy.so"
    tools.run(nvcc, ["-O3", "-shared", "-Xcompiler", "-fPIC", "-o", file.name, "policy.cu"], q.place)
    rows = np.ascontiguousarray(q.x_BO, np.int16 if q.program.input_bits <= 16 else np.int32)
    out = np.empty(q.y_BA.shape, np.int32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, out)]
    try:
        call = ctypes.CDLL(str(tools.made(nvcc, file).resolve())).policy_batch_cuda
    except OSError as error:
        raise Unchecked(f"nvcc wrote a library that does not load ({error}): {nvcc.remedy}") from None
    if code := call(*pointers, ctypes.c_int32(len(rows))):
        return Check(name, BUILT, 0, f"by nvcc, and not run: no GPU here (CUDA error {code})")
    equal(out, q.y_BA)
    return Check(name, EQUAL, len(q.x_BO), "on the GPU")


def _torch(name: str, q: Question) -> Check:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [cuda.run(q.program, torch.from_numpy(part).to(device)) for part in parts(q.x_BO)]
    equal(torch.cat(found).cpu().numpy(), q.y_BA)
    return Check(name, EQUAL, len(q.x_BO), f"torch on {device}")


def _verilog(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        lanes = q.per_beat[core]
        simulator = simulate.build((q.place / f"policy_{core}.v").read_text(), f"policy_{core}", q.place)
        found, clocks = simulate.run(simulator, q.program, q.x_BO, lanes)
        equal(found, q.y_BA)
        few_x, few_y = _few(q.x_BO, q.y_BA)
        equal(simulate.run(simulator, q.program, few_x, lanes, stall=3)[0], few_y)
        words = f"Verilator, {clocks} clocks from observation to action"
        return Check(name, EQUAL, len(q.x_BO), words, {"clocks": clocks})

    return Comparison((f"policy_{core}.v",), run)


def _icarus(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        x, y = _few(q.x_BO, q.y_BA)
        text = (q.place / f"policy_{core}.v").read_text()
        equal(simulate.icarus(text, f"policy_{core}", q.place, q.program, x, q.per_beat[core]), y)
        return Check(name, EQUAL, len(x), "Icarus")

    return Comparison((f"policy_{core}.v",), run)


def _netlist(core: str) -> Comparison:
    def run(name: str, q: Question) -> Check:
        top, x = f"policy_{core}", q.seen_BO[:NETLIST_VECTORS]
        netlist = synthesis.netlist((q.place / f"{top}.v").read_text(), top)
        simulator = simulate.build(netlist, top, q.place, tools.cells())
        equal(simulate.run(simulator, q.program, x, q.per_beat[core])[0], q.program.run(x))
        toggles = simulate.toggles(simulator) / len(x)
        return Check(name, EQUAL, len(x), f"7 series, {toggles:,.0f} toggles per action", {"toggles": toggles})

    return Comparison((f"policy_{core}.v",), run)


def _few(x: Ints, y: Ints) -> tuple[Ints, Ints]:
    """No more than ICARUS_VECTORS of them, evenly spread."""
    step = -(-len(x) // ICARUS_VECTORS)
    return x[::step], y[::step]


def _first(error: Exception) -> str:
    """The first line of an exception, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def checked(name: str, comparison: Comparison, question: Question) -> Check:
    """The verdict of one comparison. Only what was computed and differs is different; all else is not checked."""
    try:
        return comparison.run(name, question)
    except (Different, simulate.Stuck) as error:
        return Check(name, DIFFERENT, 0, _first(error))
    except Unchecked as error:
        return Check(name, NOT_CHECKED, 0, _first(error))
    except Exception as error:  # a tool can fail in any way
        return Check(name, NOT_CHECKED, 0, f"{type(error).__name__}: {_first(error)}")


CORES = ("folded", "unrolled")
C = ("policy.h", "policy.c")
TARGETS: dict[str, dict[str, Comparison]] = {
    "c": {"c": Comparison(C, _c), "c cortex-m": Comparison(C, _cortex_m)},
    "onnx": {"onnx": Comparison(("policy.onnx",), _onnx)},
    "cuda": {"cuda": Comparison((*C, "policy.cu"), _cuda), "torch": Comparison((), _torch)},
    "verilog": {f"verilog {core}": _verilog(core) for core in CORES}
    | {f"icarus {core}": _icarus(core) for core in CORES},
}
NETLISTS = {f"netlist {core}": _netlist(core) for core in CORES}
FILES: dict[str, tuple[str, ...]] = {  # of every target
    "c": (*C, "policy.py"),
    "onnx": ("policy.onnx",),
    "cuda": (*C, "policy.py", "policy.cu"),
    "verilog": tuple(f"policy_{core}.v" for core in CORES),
}
PROOFS: dict[str, dict[str, tuple[str, ...]]] = {  # what has to be equal for a file to be proven: one check of each row
    "c": {"policy.c": ("c",)},
    "onnx": {"policy.onnx": ("onnx",)},
    "cuda": {"policy.cu": ("cuda",)},
    "verilog": {f"policy_{core}.v": (f"verilog {core}", f"icarus {core}") for core in CORES},
}
