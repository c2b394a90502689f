"""Weights of four bits decoded and multiplied in C for this CPU: what torch does from one table to the next.

Compiled once per machine by the system's C compiler, and kept; where there is none, torch does it (``packed``). Decoded
weights are the same; what a product says differs by the rounding of a sum.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernel.c")
FLAGS = ("-std=c99", "-O3", "-march=native", "-shared", "-fPIC")
LIMIT_S = 60  # of the compiler
ROWS = 32  # of x, from about which on it costs less to decode the weights
HALVES = (16, 2)  # of 32 inputs, the even and the odd ones apart


def product(x: Tensor, codes: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor | None:
    """x W^T (..., O) of weights in nvfp4; None where it is not done here: many rows, other types, no compiler."""
    outputs, inputs = len(codes), x.shape[-1]
    rows = x.numel() // inputs
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows > ROWS or inputs % 32 or (found := library()) is None:
        return None
    apart = x.reshape(rows, inputs // 32, *HALVES).transpose(2, 3).contiguous()
    y = x.new_empty(rows, outputs)
    pointers = (codes.data_ptr(), scales.data_ptr(), 1 / tensor_scale.item(), apart.data_ptr(), y.data_ptr())
    found.product(*pointers, rows, outputs, inputs)
    return y.view(*x.shape[:-1], outputs)


def decoded(codes: Tensor, scales: Tensor, pairs: Tensor, meanings: Tensor) -> Tensor | None:
    """Weights (O, I), pairs (256, 2) of a byte's elements times meanings (256,) of a block's scale; None as above."""
    if codes.device.type != "cpu" or (found := library()) is None:
        return None
    weights = pairs.new_empty(len(codes), 2 * codes.shape[1])
    tensors = (codes, scales, pairs, meanings, weights)
    found.decode(*(tensor.data_ptr() for tensor in tensors), scales.numel(), weights.numel() // scales.numel())
    return weights


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or nothing."""
    with suppress(OSError, ValueError, RuntimeError, subprocess.SubprocessError):
        found = ctypes.CDLL(str(_built()))
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        found.product.argtypes = (pointer, pointer, ctypes.c_float, pointer, pointer, count, count, count)
        found.decode.argtypes = (*(pointer,) * 5, count, count)
        found.product.restype = found.decode.restype = None
        return found
    return None


def _built() -> Path:
    """The library of this source, compiler and CPU: the one that is kept, or a new one. Raises what a compiler may."""
    command = [*(shlex.split(os.environ.get("CC", "")) or ["cc"]), *FLAGS]
    key = hashlib.sha256(SOURCE.read_bytes() + repr((command, _cpu())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distqtrl"
    kept = folder / f"language-{key}.so"
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
