"""The program on GPUs: the C source as a device function and a kernel over a batch, and a torch path for batches."""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distqtrl.export import c, tools
from distqtrl.export.check import BUILT, EQUAL, Check, Question, equal, parts
from distqtrl.export.options import Options
from distqtrl.export.tools import Unchecked
from distqtrl.quantize.program import Argmax, Lookup, Matmul, Program, Scale

if TYPE_CHECKING:  # the command line's help reads the table of targets, and waits for no torch
    import torch

NO_GPU = (35, 100)  # cudaErrorInsufficientDriver, cudaErrorNoDevice
SOURCE = """\
/* A policy as integers, exported by distqtrl: one thread per action. Compile with nvcc. */
#include "policy.c"

__global__ void policy_kernel(const policy_observation_t *observations, int32_t *actions, int32_t count)
{
    int32_t i = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count)
        policy_act(observations + (int64_t)i * POLICY_INPUTS, actions + (int64_t)i * POLICY_ACTIONS);
}

/* Both arrays on the device; returns the CUDA error, 0 for none. */
extern "C" int policy_launch(const policy_observation_t *observations, int32_t *actions, int32_t count)
{
    policy_kernel<<<(count + 127) / 128, 128>>>(observations, actions, count);
    return (int)cudaGetLastError();
}

/* Both arrays on the host. */
extern "C" int policy_batch_cuda(const policy_observation_t *observations, int32_t *actions, int32_t count)
{
    policy_observation_t *x = 0;
    int32_t *y = 0;
    if (!count) return 0;
    size_t in = sizeof(*x) * POLICY_INPUTS * (size_t)count, out = sizeof(*y) * POLICY_ACTIONS * (size_t)count;
    int error = (int)cudaMalloc((void **)&x, in);
    if (!error) error = (int)cudaMalloc((void **)&y, out);
    if (!error) error = (int)cudaMemcpy(x, observations, in, cudaMemcpyHostToDevice);
    if (!error) error = policy_launch(x, y, count);
    if (!error) error = (int)cudaMemcpy(actions, y, out, cudaMemcpyDeviceToHost);
    cudaFree(x);
    cudaFree(y);
    return error;
}
"""


def write(folder: Path, program: Program, options: Options) -> dict[str, Any]:
    """Write the kernel and the C sources that it includes; the manifest says nothing about them."""
    c.write(folder, program)
    (folder / "policy.cu").write_text(SOURCE)
    return {}


def compared(name: str, q: Question) -> Check:
    """The check of the kernel on this machine's GPU; without one it is compiled only."""
    nvcc, file = tools.nvcc(), q.place / "policy.so"
    tools.run(nvcc, ["-O3", "-shared", "-Xcompiler", "-fPIC", "-o", file.name, "policy.cu"], q.place)
    rows = np.ascontiguousarray(q.x_BO, np.int16 if q.program.input_bits <= 16 else np.int32)
    out = np.empty(q.y_BA.shape, np.int32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, out)]
    call = ctypes.CDLL(str(tools.library(nvcc, file))).policy_batch_cuda
    if code := call(*pointers, ctypes.c_int32(len(rows))):
        if code not in NO_GPU:
            raise Unchecked(f"the kernel failed (CUDA error {code}): give the GPU more memory, or report this bug")
        return Check(name, BUILT, detail=f"by nvcc, and not run: no GPU here (CUDA error {code})")
    equal(out, q.y_BA)
    return Check(name, EQUAL, vectors=len(q.x_BO), detail="on the GPU")


def compared_in_torch(name: str, q: Question) -> Check:
    """The check of the batch in torch, which needs no file."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [run(q.program, torch.from_numpy(part).to(device)) for part in parts(q.x_BO)]
    equal(torch.cat(found).cpu().numpy(), q.y_BA)
    return Check(name, EQUAL, vectors=len(q.x_BO), detail=f"torch on {device}")


def run(program: Program, x_BO: "torch.Tensor") -> "torch.Tensor":
    """Actions of integer observations, (B, A) int64, on the tensor's device.

    Sums are made in floating point, which has no integer rival on GPUs and is exact below 2**24 (float32) or 2**53.
    """
    import torch

    for op in program.ops:
        if isinstance(op, Matmul):
            kind = torch.float32 if op.exact_in_float32 else torch.float64
            weights_KN = torch.from_numpy(op.weights_NK.T.copy()).to(x_BO.device, kind)
            x_BO = (x_BO.to(kind) @ weights_KN).long()
        elif isinstance(op, Scale):
            factor_N, plus_N = (torch.from_numpy(v).to(x_BO.device) for v in (op.multiplier_N, op.offset_N))
            x_BO = ((x_BO * factor_N + plus_N) >> op.shift).clamp(op.low, op.high)
        elif isinstance(op, Lookup):
            x_BO = torch.from_numpy(op.table).to(x_BO.device)[x_BO]
        else:
            assert isinstance(op, Argmax)
            order = torch.arange(x_BO.shape[-1], 0, -1, device=x_BO.device)  # the first of equals wins
            ordered = x_BO * (len(order) + 1) + order
            factors = op.factors(len(order))
            x_BO = torch.stack([ordered[..., first : first + n].argmax(-1) + start for first, n, start in factors], -1)
    return x_BO
