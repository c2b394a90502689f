"""Ours and its peers for many different circuits at once (benchmarks/circuit.py): VERSIONS, each of a case.

A case is (ansatz, qubits, layers, circuits): K parameter sets and cotangents, the same for all. A version is given one
and returns a call, which gives (p_KS, gradient_KP). Peers may use two threads.
"""

import numpy as np

from lib import circuit_versions
from lib.circuit_versions import queue


def drawn(case):
    """Gates, theta_KP and v_KS."""
    from distqtrl.circuit.ansatz import ANSATZE, program

    ansatz, n, layers, num = case
    gates = ANSATZE[ansatz](n, layers)
    rng = np.random.default_rng(3)
    return gates, rng.uniform(-np.pi, np.pi, (num, program(n, gates).num_angles)), rng.standard_normal((num, 1 << n))


def device(case):
    from distqtrl.circuit import statevector
    from distqtrl.circuit.ansatz import program
    from distqtrl.config.stages import Qpu

    statevector.PATIENCE = 0  # code for batches is compiled at once
    return statevector.StateVector(program(case[1], drawn(case)[0]), Qpu())


def loop(case):
    """What a batch was before: one circuit after another, from Python."""
    ours, (_, theta_KP, v_KS) = device(case), drawn(case)

    def call():
        p, gradients = zip(*(ours.differentiable(theta_P, "adjoint") for theta_P in theta_KP), strict=True)
        return np.stack(p), np.stack([gradient(v_S) for gradient, v_S in zip(gradients, v_KS, strict=True)])

    return call


def batch(case, threads=1):
    import torch

    torch.set_num_threads(threads)
    ours, (_, theta_KP, v_KS) = device(case), drawn(case)

    def call():
        p_KS, gradient = ours.differentiable_batch(theta_KP)
        return p_KS, gradient(v_KS)

    return call


def batch_2(case):
    return batch(case, threads=2)


def tensorcircuit(case):
    """TensorCircuit-NG under jax.vmap and jit; the layers are a scan, which compiles one of them."""
    import jax
    import tensorcircuit as tc
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", True)
    tc.set_backend("jax")
    tc.set_dtype("complex128")
    gates, theta_KP, v_KS = drawn(case)
    n, layers = case[1], case[2]
    layer = gates[: len(gates) // layers]

    def applied(psi_S, theta_P):
        circuit, angles = tc.Circuit(n, inputs=psi_S), iter(theta_P)
        for kind, target, control in layer:
            if kind == "x":
                circuit.cnot(control, target)
            elif kind == "ry":
                circuit.ry(target, theta=next(angles))
            else:
                named = dict(zip(("theta", "phi", "lbd"), (next(angles) for _ in range(3)), strict=True))
                circuit.u(target, **named) if control is None else circuit.cu(control, target, **named)
        return circuit.state(), None

    def probabilities(theta_P):
        start = jnp.zeros(2**n, jnp.complex128).at[0].set(1)
        psi_S, _ = jax.lax.scan(applied, start, theta_P.reshape(layers, -1))
        return psi_S.real**2 + psi_S.imag**2

    return compiled(probabilities, theta_KP, v_KS)


def default_vmap(case):
    """default.qubit by backprop, under jax.vmap and jit."""
    import jax
    import pennylane as qml

    jax.config.update("jax_enable_x64", True)
    gates, theta_KP, v_KS = drawn(case)

    @qml.qnode(qml.device("default.qubit", wires=case[1]), interface="jax", diff_method="backprop")
    def circuit(theta_P):
        queue(qml, gates, theta_P, split=False)
        return qml.probs(wires=range(case[1]))

    return compiled(circuit, theta_KP, v_KS)


def compiled(probabilities, theta_KP, v_KS):
    """The whole of value and gradient of all circuits, compiled by XLA."""
    import jax

    def both(theta_P, v_S):
        p_S, vjp = jax.vjp(probabilities, theta_P)
        return p_S, vjp(v_S)[0]

    call = jax.jit(jax.vmap(both)).lower(theta_KP, v_KS).compile()
    return lambda: tuple(np.asarray(x) for x in call(theta_KP, v_KS))


def default_broadcast(case):
    """default.qubit by backprop in torch, with the parameter sets as one broadcast axis."""
    import pennylane as qml
    import torch

    torch.set_num_threads(2)
    gates, theta_KP, v_KS = drawn(case)

    @qml.qnode(qml.device("default.qubit", wires=case[1]), interface="torch", diff_method="backprop")
    def circuit(theta_PK):
        queue(qml, gates, theta_PK, split=False)
        return qml.probs(wires=range(case[1]))

    def call():
        theta_PK = torch.tensor(np.ascontiguousarray(theta_KP.T), requires_grad=True)
        p_KS = circuit(theta_PK.unbind())
        (p_KS * torch.from_numpy(v_KS)).sum().backward()
        return p_KS.detach().numpy(), theta_PK.grad.numpy().T

    return call


def lightning_each(case):
    """lightning.qubit's own classes, one circuit after another: the device has no batches of parameter sets."""
    _, theta_KP, v_KS = drawn(case)
    calls = [
        circuit_versions.lightning_private(case[:3], (theta_P, v_S))
        for theta_P, v_S in zip(theta_KP, v_KS, strict=True)
    ]

    def call():
        p, gradients = zip(*(one() for one in calls), strict=True)
        return np.stack(p), np.stack(gradients)

    return call


OURS = {"one by one": loop, "batch, 1 thread": batch, "batch, 2 threads": batch_2}
PEERS = {
    "TensorCircuit-NG, jax.vmap and jit": tensorcircuit,
    "default.qubit, jax.vmap and jit": default_vmap,
    "default.qubit, broadcast, backprop": default_broadcast,
    "lightning.qubit, one by one": lightning_each,
}
VERSIONS = {f.__name__: f for f in (*OURS.values(), *PEERS.values())}
