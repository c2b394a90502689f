"""Cache blocking: a program's gates regrouped into passes over the state, each of which works on small blocks.

A state of 2^n numbers that does not fit in the caches would travel through them once per gate. A pass picks a few
*local* bits of the state's index, and takes every gate whose wires are among them; the kernels then load one block
(all values of the local bits), apply all gates of the pass to it and store it. Gates are only moved past gates on
other wires, so the circuit is the same. The lowest bits are local in every pass, so that blocks are made of whole
cache lines.

rz is executed as a phase gate, which differs by a global phase; with a control, that phase is a second phase gate,
of minus half the angle, on the control. The first element of every matrix is then real.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import CODES, KINDS, Gate, Program
from distqtrl.circuit.simd import BITS

Ints = npt.NDArray[np.int64]
WHOLE = 16  # bits of a state that is one block (counting one for complex numbers): psi and lambda fit in 1 MiB
BLOCK = 13  # local bits of a block otherwise
RUN = 4  # lowest bits that are local in every pass


class Plan(NamedTuple):
    """G gates in the order of execution; bits are positions in a block's index, -1 for no control.

    Pass i works on the index bits in ``local_I[i]`` (a mask) and has the gates ``first_I[i]`` to ``first_I[i + 1]``.
    """

    num_bits: int
    num_angles: int
    components: int  # 1: the state is real; 2: real and imaginary part
    code_G: Ints
    real_G: npt.NDArray[np.bool_]
    target_G: Ints
    control_G: Ints
    angle_G: Ints
    scale_G: npt.NDArray[np.float64]  # of the angle
    local_I: Ints
    first_I: Ints


def plan(program: Program) -> Plan:
    """The passes of a program."""
    components = 1 if program.real else 2
    num_bits = max(program.num_qubits, BITS)  # smaller states are padded with zeros
    gates = [part for gate, angle in zip(program.gates, program.angle_G, strict=True) for part in _real(gate, angle)]
    bits = [_bits(gate, program.num_qubits) for gate, _, _ in gates]
    whole = num_bits + components - 1 <= WHOLE
    passes = [((1 << num_bits) - 1, list(range(len(bits))))] if whole else _passes(bits, BLOCK - components + 1)
    order = [gates[g] for _, taken in passes for g in taken]
    place = [[_position(local, bit) for bit in bits[g]] for local, taken in passes for g in taken]
    return Plan(
        num_bits,
        program.num_angles,
        components,
        np.array([CODES[gate.kind] for gate, _, _ in order], dtype=np.int64),
        np.array([KINDS[gate.kind].real for gate, _, _ in order], dtype=np.bool_),
        np.array([p[0] for p in place], dtype=np.int64),
        np.array([p[1] if len(p) > 1 else -1 for p in place], dtype=np.int64),
        np.array([angle for _, angle, _ in order], dtype=np.int64),
        np.array([scale for _, _, scale in order], dtype=np.float64),
        np.array([local for local, _ in passes], dtype=np.int64),
        np.cumsum([0, *(len(taken) for _, taken in passes)]),
    )


def _real(gate: Gate, angle: int) -> list[tuple[Gate, int, float]]:
    """The gate with its angle and the angle's scale; rz as phase gates."""
    if gate.kind != "rz":
        return [(gate, angle, 1.0)]
    on_control = [] if gate.control is None else [(Gate("phase", gate.control), angle, -0.5)]
    return [(gate._replace(kind="phase"), angle, 1.0), *on_control]


def _bits(gate: Gate, num_qubits: int) -> list[int]:
    """Index bits of a gate's target and control; wire 0 is the highest bit."""
    wires = [gate.target] if gate.control is None else [gate.target, gate.control]
    return [num_qubits - 1 - wire for wire in wires]


def _passes(bits: list[list[int]], size: int) -> list[tuple[int, list[int]]]:
    """(mask of local bits, gates) of every pass, each taking all that it can of what is left."""
    left, passes = list(range(len(bits))), []
    while left:
        local, blocked = set(range(RUN)), set[int]()
        taken, rest = [], []
        for g in left:
            fits = blocked.isdisjoint(bits[g]) and len(local.union(bits[g])) <= size
            if fits:
                local.update(bits[g])
                taken.append(g)
            else:
                blocked.update(bits[g])
                rest.append(g)
        left = rest
        passes.append((sum(1 << bit for bit in local), taken))
    return passes


def _position(local: int, bit: int) -> int:
    """Where a bit of the index stands among the local ones."""
    return (local & ((1 << bit) - 1)).bit_count()
