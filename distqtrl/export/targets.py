"""What every target of an export does beside the interpreter, vector by vector, without tolerance."""

import ctypes
from pathlib import Path

import numpy as np
import torch

from distqtrl.export import cuda, loader, tools
from distqtrl.export.check import (
    BUILT,
    DIFFERENT,
    EQUAL,
    NOT_CHECKED,
    Check,
    Comparison,
    Different,
    Question,
    equal,
    parts,
)
from distqtrl.export.tools import Missing, Unchecked
from distqtrl.export.verilog import simulate
from distqtrl.export.verilog.checks import CORES, _icarus, _verilog

CORTEX_M = ["-mcpu=cortex-m4", "-mthumb", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections"]
CORTEX_M += ["-fstack-usage", "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,policy_step"]


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


C = ("policy.h", "policy.c")
TARGETS: dict[str, dict[str, Comparison]] = {
    "c": {"c": Comparison(C, _c), "c cortex-m": Comparison(C, _cortex_m)},
    "onnx": {"onnx": Comparison(("policy.onnx",), _onnx)},
    "cuda": {"cuda": Comparison((*C, "policy.cu"), _cuda), "torch": Comparison((), _torch)},
    "verilog": {f"verilog {core}": _verilog(core) for core in CORES}
    | {f"icarus {core}": _icarus(core) for core in CORES},
}
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
