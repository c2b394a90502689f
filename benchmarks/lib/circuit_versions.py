"""Ours and its peers for benchmarks/circuit.py: each of VERSIONS is given a row and returns a call.

A row is (ansatz, qubits, layers), the same circuit, angles and cotangent for all; a call gives (p_S, gradient_P).
"""

import os
from pathlib import Path

import numpy as np

COPIED = 1 << 28  # bytes of each of the two arrays of the bandwidth measurement; no cache holds them


def case(row):
    """Gates, angles and cotangent; the same in every process."""
    from distqtrl.circuit.ansatz import ANSATZE, program

    ansatz, n, layers = row
    gates = ANSATZE[ansatz](n, layers)
    rng = np.random.default_rng(3)
    theta_P = rng.uniform(-np.pi, np.pi, program(n, gates).num_angles)
    return gates, theta_P, rng.standard_normal(1 << n)


def ours(row, precision="float64"):
    from distqtrl.circuit.ansatz import program
    from distqtrl.circuit.statevector import StateVector
    from distqtrl.config.stages import Qpu

    gates, theta_P, v_S = case(row)
    device = StateVector(program(row[1], gates), Qpu(precision=precision))

    def call():
        p_S, vjp = device.differentiable(theta_P, "adjoint")
        return p_S, vjp(v_S)

    return call


def ours_float32(row):
    return ours(row, "float32")


def memory(row):
    """Ours; the "gradient" is the first call's peak memory, in bytes, beyond what the loaded code takes (Linux)."""
    ours((row[0], 10, row[2]))()
    call = ours(row)
    Path("/proc/self/clear_refs").write_text("5")  # count the peak from here on
    before = kilobytes("/proc/self/status", "VmRSS")
    p_S, _ = call()
    rise = np.array([(kilobytes("/proc/self/status", "VmHWM") - before) * 1024.0])
    return lambda: (p_S, rise)


def copy(row):
    """The machine's copy bandwidth: a call reads COPIED bytes and writes as many."""
    source, target = np.ones(COPIED // 8), np.ones(COPIED // 8)

    def call():
        np.copyto(target, source)
        return target[:1], target[:1]

    return call


def default_backprop(row):
    import pennylane as qml
    import torch

    torch.set_num_threads(1)
    gates, theta_P, v_S = case(row)

    @qml.qnode(qml.device("default.qubit", wires=row[1]), interface="torch", diff_method="backprop")
    def circuit(theta_P):
        queue(qml, gates, theta_P, split=False)
        return qml.probs(wires=range(row[1]))

    def call():
        theta = torch.tensor(theta_P, requires_grad=True)
        p_S = circuit(theta.unbind())
        (p_S @ torch.from_numpy(v_S)).backward()
        return p_S.detach().numpy(), theta.grad.numpy()

    return call


def default_jit(row):
    """The whole of value and gradient compiled by XLA."""
    import jax
    import pennylane as qml

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # XLA has threads that no option bounds
    jax.config.update("jax_enable_x64", True)
    gates, theta_P, v_S = case(row)

    @qml.qnode(qml.device("default.qubit", wires=row[1]), interface="jax", diff_method="backprop")
    def circuit(theta_P):
        queue(qml, gates, theta_P, split=False)
        return qml.probs(wires=range(row[1]))

    def both(theta_P, v_S):
        p_S, vjp = jax.vjp(circuit, theta_P)
        return p_S, vjp(v_S)[0]

    compiled = jax.jit(both).lower(theta_P, v_S).compile()
    return lambda: tuple(np.asarray(x) for x in compiled(theta_P, v_S))


def default_adjoint(row):
    return by_device("default.qubit", row)


def lightning_adjoint(row):
    return by_device("lightning.qubit", row)


def by_device(name, row):
    import pennylane as qml

    device = qml.device(name, wires=row[1])
    tape, ordered = diagonal(qml, row)
    adjoint = qml.devices.ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)

    def call():
        p_S = device.execute(tape(qml.probs(wires=range(row[1]))), qml.devices.ExecutionConfig())
        _, jacobian = device.execute_and_compute_derivatives(tape(), adjoint)
        return p_S, ordered(jacobian)

    return call


def lightning_private(row, values=None):
    """``values``: angles and cotangent in the place of the row's."""
    import pennylane as qml
    from pennylane_lightning.lightning_qubit._adjoint_jacobian import LightningAdjointJacobian
    from pennylane_lightning.lightning_qubit._state_vector import LightningStateVector

    tape, ordered = diagonal(qml, row, values)

    def call():
        script = tape()
        vector = LightningStateVector(row[1]).get_final_state(script)
        jacobian = LightningAdjointJacobian(vector).calculate_jacobian(script)
        psi_S = vector.state
        return psi_S.real**2 + psi_S.imag**2, ordered(jacobian)

    return call


def diagonal(qml, row, values=None):
    """A maker of tapes that measure diag(v) (new in every call, as in training), and the way back to theta's order."""
    from scipy.sparse import csr_matrix

    gates, theta_P, v_S = case(row)
    theta_P, v_S = values or (theta_P, v_S)
    wires, rows = range(row[1]), np.arange(len(v_S) + 1)
    order = []
    for kind, _, _ in gates:
        order += {"u3": [len(order) + 2, len(order), len(order) + 1], "ry": [len(order)], "x": []}[kind]

    def tape(measured=None):
        with qml.QueuingManager.stop_recording():
            operations = queue(qml, gates, theta_P, split=True)
            if measured is None:
                matrix = csr_matrix((v_S, rows[:-1], rows), shape=(len(v_S), len(v_S)))
                measured = qml.expval(qml.SparseHamiltonian(matrix, wires=wires))
        return qml.tape.QuantumScript(operations, [measured], trainable_params=range(len(theta_P)))

    def ordered(jacobian):
        gradient_P = np.empty(len(theta_P))
        gradient_P[order] = np.asarray(jacobian)
        return gradient_P

    return tape, ordered


def queue(qml, gates, theta_P, split):
    """The gates as PennyLane's operations.

    u3(t, p, l) = phase(p) ry(t) phase(l), with or without a control: split like that, every gate is native in
    lightning and has a native derivative. As one matrix it is one pass for backprop.
    """
    operations, angles = [], iter(theta_P)
    for kind, target, control in gates:
        wires = [target] if control is None else [control, target]
        if kind == "x":
            operations.append(qml.CNOT(wires))
            continue
        if kind == "ry":
            operations.append(qml.RY(next(angles), target))
            continue
        t, p, el = next(angles), next(angles), next(angles)
        if not split:
            operations.append(
                qml.U3(t, p, el, target) if control is None else qml.ctrl(qml.U3(t, p, el, target), control)
            )
            continue
        phase, ry = (qml.PhaseShift, qml.RY) if control is None else (qml.ControlledPhaseShift, qml.CRY)
        operations += [phase(el, wires), ry(t, wires), phase(p, wires)]
    return operations


PEERS = {  # title: function, states that one backward pass goes through (backprop: 0)
    "default.qubit backprop": (default_backprop, 0),
    "default.qubit backprop, jax.jit": (default_jit, 0),
    "default.qubit adjoint": (default_adjoint, 2),
    "lightning.qubit adjoint": (lightning_adjoint, 2),
    "lightning.qubit, private classes": (lightning_private, 2),
}
NAMED = ("default.qubit backprop", "default.qubit adjoint", "lightning.qubit adjoint")  # whom the goals were set by
VERSIONS = {f.__name__: f for f in (ours, ours_float32, memory, copy, *(f for f, _ in PEERS.values()))}


def peer_bytes(swept, n, gates):
    """What a peer moves in one pass over its state(s) per gate; a controlled gate touches half of a state.

    Forward: the state read and written. Adjoint: backwards psi and lambda read and written, and both read once more
    per angle. Backprop: a saved state per gate written and read again, and the cotangent read and written.
    """
    state, total = 16 << n, 0
    for kind, _, control in gates:
        touched = state if control is None else state // 2
        total += 2 * touched + swept * touched * (2 + {"u3": 3, "ry": 1, "x": 0}[kind])
        total += 0 if swept else 2 * state + 2 * touched
    return total


def kilobytes(path, key):
    return next(int(text.split()[1]) for text in Path(path).read_text().splitlines() if text.startswith(key + ":"))
