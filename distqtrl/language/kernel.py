"""The product with weights in NVFP4 as C for this CPU, for the few rows of a decoder that writes its next token.

Compiled once per machine by the system's C compiler, and kept; where there is none, torch decodes the weights and
multiplies (``packed``). What both say differs by the rounding of a sum.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("nvfp4.c")
FLAGS = ("-std=c99", "-O3", "-march=native", "-shared", "-fPIC")
LIMIT_S = 60  # of the compiler
ROWS = 32  # from about here on decoding the weights costs less than to look them up for every eight rows
HALVES = (16, 2)  # of 32 inputs, the even and the odd ones apart


def product(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor, outputs: int) -> Tensor | None:
    """x W^T (..., O) in float32; None where the kernel does not do it: many rows, other types, no compiler."""
    inputs = x.shape[-1]
    rows = x.numel() // inputs
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows > ROWS or inputs % 32 or (call := _library()) is None:
        return None
    apart = x.reshape(rows, inputs // 32, *HALVES).transpose(2, 3).contiguous()
    y = x.new_empty(rows, outputs)
    pointers = (codes.data_ptr(), scales.data_ptr(), 1 / tensor_scale.item(), apart.data_ptr(), y.data_ptr())
    call(*pointers, rows, outputs, inputs)
    return y.view(*x.shape[:-1], outputs)


@cache
def _library() -> Callable[..., None] | None:
    """The compiled function, or nothing."""
    with suppress(OSError, ValueError, RuntimeError, subprocess.SubprocessError):
        found = ctypes.CDLL(str(_built())).nvfp4_product
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        found.argtypes = (pointer, pointer, ctypes.c_float, pointer, pointer, count, count, count)
        found.restype = None
        return found
    return None


def _built() -> Path:
    """The library of this source, compiler and CPU: the one that is kept, or a new one. Raises what a compiler may."""
    command = [*(shlex.split(os.environ.get("CC", "")) or ["cc"]), *FLAGS]
    key = hashlib.sha256(SOURCE.read_bytes() + repr((command, _cpu())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distqtrl"
    kept = folder / f"nvfp4-{key}.so"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / "made.so"
            command += ["-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL)
            made.replace(kept)
    return kept


def _cpu() -> str:
    """What -march=native depends on."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor() or platform.machine()
