"""Many circuits at once on an NVIDIA GPU: one launch of one kernel, a block of threads per circuit (see ``gpu``).

    p_KS = |psi_KS|^2,   d(v.p)/d theta by the adjoint sweep of ``batched``

A gradient is a second launch that starts from the states the first one kept, because v is known only after p; it costs
K 2^n numbers of memory, and a third less than computing the states again. Where v is known before
(``value_and_gradient``) both are one launch.
"""

import ctypes
import importlib
import re
import warnings
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from distqtrl.circuit import shift
from distqtrl.circuit.ansatz import Program
from distqtrl.circuit.device import Device, Gradient
from distqtrl.circuit.gates import Array
from distqtrl.circuit.memory import machine_memory, refuse_memory
from distqtrl.circuit.statevector import sampled
from distqtrl.config.run import refuse
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError

INSTEAD = "use qpu.backend statevector, or torch"
OLDEST = (6, 0)  # compute capability
THREADS = 256  # of a block: a thread takes up to 160 registers, an SM has 65,536
BLOCKS = 2048  # of a launch; each then runs several circuits
SIMULATED_THREADS, SIMULATED_QUBITS = 4, 6
DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
DTYPES = {"float64": np.float64, "float32": np.float32}


class Memory(NamedTuple):
    """Bytes of a GPU."""

    free: float
    total: float


class Cuda(Device):
    """The device of many circuits on a GPU: ``settings.device`` is cuda (the default) or cuda:1.

    Probabilities are float64 whatever ``settings.precision`` is; shots are drawn from the exact distribution. With
    NUMBA_ENABLE_CUDASIM=1 the GPU is simulated, a Python thread for each of its own: for tests. Raises UserError where
    there is no GPU or one that is too old, for a circuit that does not fit its memory, and for one that is too large to
    be simulated.
    """

    def __init__(self, program: Program, settings: Qpu) -> None:
        refuse(settings, "cuda", ("options", "noise"))
        self.program, self.shots, self.dtype = program, settings.shots, DTYPES[settings.precision]
        self.exact: tuple[str, ...] = () if settings.shots else ("adjoint",)
        self._cuda, self._index = importlib.import_module("numba.cuda"), _index(settings.device)
        self._simulated = bool(importlib.import_module("numba.core.config").ENABLE_CUDASIM)
        self._refuse_simulation()
        _refuse_gpu(self._cuda, self._index, settings.device)
        n = program.num_qubits
        self._threads = min(SIMULATED_THREADS if self._simulated else THREADS, max(1, 2 ** (n - 1)))
        self._gpu = importlib.import_module("distqtrl.circuit.gpu")  # compiles nothing before it is asked to
        self._refuse_size()
        with self._on_gpu():
            gates = (program.kind_G, program.target_G, program.control_G, program.angle_G)
            self._gates = [self._cuda.to_device(array_G.astype(np.int32)) for array_G in gates]
            self._kernels = {backward: self._kernel(settings.precision, backward) for backward in (False, True)}

    def probabilities(self, theta_KP: Array, seeds_K: list[int]) -> Array:
        """p_KS of K parameter sets; with shots, relative frequencies drawn from seeds_K."""
        parts = shift.batches(len(theta_KP), 2**self.program.num_qubits)
        p_KS = np.concatenate([self._launched(theta_KP[k])[0] for k in parts])
        return p_KS if self.shots is None else sampled(p_KS, self.shots, seeds_K)

    def differentiable_batch(self, theta_KP: Array) -> tuple[Array, Gradient]:
        """p_KS of K parameter sets, and the function v_KS -> d(v.p)/d theta_KP; K states stay in the GPU's memory."""
        self._refuse_batch(len(theta_KP))
        p_KS, psi_KX, _ = self._launched(theta_KP, keep=True)
        return p_KS, lambda v_KS: self._launched(theta_KP, psi_KX, v_KS)[2]

    def value_and_gradient(self, theta_KP: Array, v_KS: Array) -> tuple[Array, Array]:
        """p_KS and d(v.p)/d theta_KP of cotangents that are known before, by one launch that keeps no state."""
        p_KS, _, gradient_KP = self._launched(theta_KP, v_KS=v_KS)
        return p_KS, gradient_KP

    def _launched(
        self, theta_KP: Array, psi_KX: Any = None, v_KS: Array | None = None, *, keep: bool = False
    ) -> tuple[Array, Any, Array]:
        """p_KS (computed unless psi_KX is given), psi_KX if it is kept, and the gradients of v_KS if there are."""
        num, states, device = len(theta_KP), 2**self.program.num_qubits, self._cuda.device_array
        forward, backward = psi_KX is None, v_KS is not None
        run, shared_bytes = self._kernels[backward]
        blocks = max(1, min(num, BLOCKS))
        with self._on_gpu(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Grid size")  # a batch may be small
            p_KS = device((num, states) if forward else (1, 1), np.float64)
            if forward:
                psi_KX = device((num, 2 * states) if keep else (1, 1), self.dtype)
            gradient_KP = device(theta_KP.shape if backward and theta_KP.size else (1, 1), np.float64)
            numbers = 1 if shared_bytes else self._gpu.numbers(self.program.num_qubits, self._threads, backward)
            run[blocks, self._threads, 0, shared_bytes](
                *self._gates,
                self._cuda.to_device(np.ascontiguousarray(theta_KP, dtype=np.float64)),
                self._cuda.to_device(
                    np.zeros((1, 1)) if v_KS is None else np.ascontiguousarray(v_KS, dtype=np.float64)
                ),
                p_KS,
                psi_KX,
                gradient_KP,
                device((blocks, max(1, len(self.program.gates)), 8), self.dtype),
                device((blocks, max(1, self.program.num_angles), 8), self.dtype),
                device((blocks, numbers), self.dtype),
                self.program.num_qubits,
                forward,
                keep,
                backward,
            )
            whole_KP = gradient_KP.copy_to_host() if backward and theta_KP.size else np.zeros_like(theta_KP)
            return p_KS.copy_to_host(), psi_KX, whole_KP

    def _on_gpu(self) -> AbstractContextManager[Any]:
        """The GPU of this device as the current one, whichever thread asks."""
        context: AbstractContextManager[Any] = self._cuda.gpus[self._index]
        return context

    def _kernel(self, precision: str, backward: bool) -> tuple[Any, int]:
        """The kernel and the bytes of shared memory that each of its blocks gets; none where they do not fit."""
        numbers = self._gpu.numbers(self.program.num_qubits, self._threads, backward)
        needed = numbers * np.dtype(self.dtype).itemsize
        if self._simulated:
            return self._gpu.kernel(precision, True), needed
        device = self._cuda.get_current_device()
        if needed <= device.MAX_SHARED_MEMORY_PER_BLOCK:
            return self._gpu.kernel(precision, True), needed
        if needed <= getattr(device, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", 0):
            run = self._gpu.kernel(precision, True)
            if _raised(run, device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN):
                return run, needed
        return self._gpu.kernel(precision, False), 0

    def _refuse_simulation(self) -> None:
        n = self.program.num_qubits
        if self._simulated and n > SIMULATED_QUBITS:
            raise UserError(
                f"qpu.backend cuda with NUMBA_ENABLE_CUDASIM=1 simulates at most {SIMULATED_QUBITS} qubits, the "
                f"circuit has {n}: unset it where there is a GPU, else {INSTEAD}"
            )

    def _refuse_size(self) -> None:
        """What a gradient of one circuit takes: its state kept and worked on, p and v."""
        needed = 2.0**self.program.num_qubits * (6 * np.dtype(self.dtype).itemsize + 16)
        refuse_memory(self.program, needed, "qpu.backend cuda", self._memory().total)

    def _refuse_batch(self, num: int) -> None:
        """What the states of so many circuits take, their p, and their v."""
        n, item, free = self.program.num_qubits, np.dtype(self.dtype).itemsize, self._memory().free
        needed = num * 2.0**n * (2 * item + 16)
        if needed > free:
            raise UserError(
                f"qpu.backend cuda needs {needed / 2**30:,.1f} GiB for {num:,} circuits of {n} qubits, "
                f"{free / 2**30:,.1f} GiB are free: lower qpu.replicas or the number of agents, or raise mapping.chunk"
            )

    def _memory(self) -> "Memory":
        """The GPU's memory, or this machine's where it is simulated."""
        if self._simulated:
            return Memory(machine_memory(), machine_memory())
        with self._on_gpu():
            return Memory(*self._cuda.current_context().get_memory_info())


def available() -> bool:
    """Whether Numba sees a GPU."""
    cuda = importlib.import_module("numba.cuda")
    try:
        return bool(cuda.is_available() and len(cuda.gpus))
    except Exception:  # a driver that does not start
        return False


def _index(name: str | None) -> int:
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name or "cuda")
    if match is None:
        raise UserError(f"qpu.device = '{name}' is not a device of qpu.backend cuda: use cuda or cuda:1")
    return int(match[1] or 0)


def _refuse_gpu(cuda: Any, index: int, name: str | None) -> None:
    """Refuse a GPU that is not there, that Numba cannot compile for, or that is too old."""
    if not available():
        raise UserError(
            f"qpu.backend cuda finds no GPU that Numba can use (it needs a driver and CUDA's toolkit): {INSTEAD}"
        )
    if index >= len(cuda.gpus):
        count, last = len(cuda.gpus), len(cuda.gpus) - 1
        raise UserError(f"qpu.device = {name}: Numba sees {count} GPU{'s' if last else ''} here: use cuda:{last}")
    found = tuple(cuda.gpus[index].compute_capability)
    if found < OLDEST and not importlib.import_module("numba.core.config").ENABLE_CUDASIM:
        has, needs = (".".join(map(str, version)) for version in (found, OLDEST))
        raise UserError(f"qpu.backend cuda needs a GPU of compute capability {needs}, this one has {has}: {INSTEAD}")


def _raised(run: Any, size: int) -> bool:
    """Let the kernel's blocks have so many bytes of shared memory, beyond the 48 KiB that need no asking.

    Numba has no call for it, so the driver is asked itself; where that fails, states stay in global memory.
    """
    try:
        driver = importlib.import_module("numba.cuda.cudadrv.driver").driver
        (compiled,) = run.overloads.values()
        handle = compiled._codelibrary.get_cufunc().handle
        where = handle if isinstance(handle, ctypes.c_void_p) else ctypes.c_void_p(int(handle))
        return bool(driver.lib.cuFuncSetAttribute(where, DYNAMIC_SHARED, size) == 0)
    except Exception:
        return False
