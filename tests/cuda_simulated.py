"""Circuits on Numba's simulated GPU, which a process has or has not from its start: prints what came of every case.

NUMBA_ENABLE_CUDASIM=1 python tests/cuda_simulated.py
"""

import json
from unittest import mock

import numpy as np

from distqtrl.circuit import ansatz, gpu, qpu
from distqtrl.circuit.ansatz import KINDS, Gate
from distqtrl.circuit.cuda import Cuda
from distqtrl.circuit.statevector import StateVector
from distqtrl.config.stages import Circuit, Qpu
from distqtrl.errors import UserError

SETS = 3
WIDE = 16  # threads that sum in two stages, as on a GPU


def drawn(n, seed):
    """A program that uses every kind with and without a control."""
    rng = np.random.default_rng(seed)
    gates = [Gate("u3", wire) for wire in range(n)]
    for kind in rng.permutation(list(KINDS)):
        target, *others = (int(wire) for wire in rng.permutation(n))
        gates += [Gate(str(kind), target), *(Gate(str(kind), target, other) for other in others[:1])]
    return ansatz.program(n, gates)


def cases():
    """Name -> program."""
    return {
        **{f"drawn-{n}": drawn(n, seed=n) for n in (1, 2, 3)},
        "one gate": ansatz.program(2, [Gate("ry", 1)]),
        "no angle": ansatz.program(2, [Gate("h", 0), Gate("x", 1, 0)]),
    }


PRECISIONS = ("float64", "float32")
NAMES = [f"{name} {precision}" for name in cases() for precision in PRECISIONS]


def in_global_memory(self, precision, backward):
    return gpu.kernel(precision, False), 0


def compared(program, precision):
    """Errors of p and of gradients, and which results that should be the same bit for bit are."""
    rng = np.random.default_rng(0)
    theta_KP = rng.uniform(-np.pi, np.pi, (SETS, program.num_angles))
    v_KS = rng.normal(size=(SETS, 2**program.num_qubits))
    ours, device = StateVector(program, Qpu()), Cuda(program, Qpu(backend="cuda", precision=precision))
    p, gradients = zip(*(ours.differentiable(theta_P, "adjoint") for theta_P in theta_KP), strict=True)
    gradient_KP = np.stack([gradient(v_S) for gradient, v_S in zip(gradients, v_KS, strict=True)])
    p_KS, back = device.differentiable_batch(theta_KP)
    found_KP = back(v_KS)
    with mock.patch("distqtrl.circuit.cuda.BLOCKS", 2):  # a block runs several circuits
        fused = device.value_and_gradient(theta_KP, v_KS)
    same = {"fused": np.array_equal(fused[0], p_KS) and np.array_equal(fused[1], found_KP)}
    with mock.patch.object(Cuda, "_kernel", in_global_memory):
        other = Cuda(program, Qpu(backend="cuda", precision=precision)).value_and_gradient(theta_KP, v_KS)
    same["global"] = np.array_equal(other[0], p_KS) and np.array_equal(other[1], found_KP)
    same["alone"] = np.array_equal(device.differentiable(theta_KP[1], "adjoint")[0], p_KS[1])
    same["probabilities"] = np.array_equal(device.probabilities(theta_KP, []), p_KS)
    errors = [float(abs(a - b).max(initial=0)) for a, b in ((p_KS, p), (found_KP, gradient_KP))]
    return {"p": errors[0], "gradient": errors[1], **same}


def refused():
    """What is said of a circuit that is too large to be simulated, and of a batch that does not fit."""
    lines = []
    device = Cuda(ansatz.build(Circuit(), 4), Qpu(backend="cuda"))
    many_KP = np.broadcast_to(0.0, (2**30, device.program.num_angles))
    with mock.patch("distqtrl.circuit.cuda.machine_memory", return_value=2.0**30):
        for action in (
            lambda: qpu.build(Circuit(), Qpu(backend="cuda"), 10),
            lambda: device.differentiable_batch(many_KP),
            lambda: Cuda(device.program, Qpu(backend="cuda", device="cuda:3")),
        ):
            try:
                action()
            except UserError as error:
                lines.append(str(error))
    return lines


def shots():
    """Frequencies by their seeds."""
    device = Cuda(drawn(2, seed=1), Qpu(backend="cuda", shots=100))
    theta_KP = np.ones((2, device.program.num_angles))
    return [device.probabilities(theta_KP, seeds).tolist() for seeds in ([1, 2], [1, 2], [3, 1])], device.exact


def wide():
    """The error of a gradient whose sums have two stages."""
    program = ansatz.build(Circuit(layers=1), 5)
    theta_P, v_S = np.arange(1.0, program.num_angles + 1), np.arange(32.0)
    with mock.patch.multiple("distqtrl.circuit.cuda", SIMULATED_THREADS=WIDE):
        gradient_KP = Cuda(program, Qpu(backend="cuda")).value_and_gradient(theta_P[None], v_S[None])[1]
    return float(abs(gradient_KP[0] - StateVector(program, Qpu()).differentiable(theta_P, "adjoint")[1](v_S)).max())


def large():
    """The error of a gradient in float32 at angles of 10^6."""
    program = drawn(2, seed=1)
    theta_P, v_S = 1e6 + np.arange(program.num_angles), np.arange(4.0)
    single = Cuda(program, Qpu(backend="cuda", precision="float32"))
    exact = StateVector(program, Qpu()).differentiable(theta_P, "adjoint")
    return float(abs(single.differentiable(theta_P, "adjoint")[1](v_S) - exact[1](v_S)).max())


if __name__ == "__main__":
    found = {
        f"{name} {precision}": compared(program, precision)
        for name, program in cases().items()
        for precision in PRECISIONS
    }
    print(json.dumps({"cases": found, "refused": refused(), "shots": shots(), "large": large(), "wide": wide()}))
