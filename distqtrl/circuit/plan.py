"""Cache blocking: a program's gates regrouped into passes over the state, each of which works on small blocks.

A state of 2^n numbers that does not fit in the caches would travel through them once per gate. A pass picks a few
*local* bits of the state's index, and takes every gate whose wires are among them; the kernels then load one block
(all values of the local bits), apply all gates of the pass to it and store it. Gates are only moved past gates on
other wires, so the circuit is the same. The lowest bits are local in every pass, so that blocks are made of whole
cache lines.

rz is executed as a phase gate, which differs by a global phase; with a control, that phase is a second phase gate,
of minus half the angle, on the control. The first element of every matrix is then real.

An ry that a CNOT follows on its wire is executed together with it: ry where the control is 0, x ry where it is 1,
which is one pass over the block in place of one and a half.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import CODES, KINDS, Gate, Program
from distqtrl.circuit.simd import BITS

Ints = npt.NDArray[np.int64]
WHOLE = 16  # bits of a state that is one block (counting one for complex numbers): psi and lambda fit in 1 MiB
BLOCK = 14  # local bits of a block otherwise
RUN = 4  # lowest bits that are local in every pass
XRY = -1  # code of x ry


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
    value_G: Ints  # of the control, for which the gate acts
    angle_G: Ints
    scale_G: npt.NDArray[np.float64]  # of the angle
    local_I: Ints
    first_I: Ints


def plan(program: Program) -> Plan:
    """The passes of a program."""
    components = 1 if program.real else 2
    num_bits = max(program.num_qubits, BITS)  # smaller states are padded with zeros
    parts = [part for gate, angle in zip(program.gates, program.angle_G, strict=True) for part in _real(gate, angle)]
    steps = _with_cnots([_step(gate, angle, scale, program.num_qubits) for gate, angle, scale in parts])
    bits = [step.bits for step in steps]
    whole = num_bits + components - 1 <= WHOLE
    passes = [((1 << num_bits) - 1, list(range(len(bits))))] if whole else _passes(bits, BLOCK - components + 1)
    order = [steps[g] for _, taken in passes for g in taken]
    place = [[_position(local, bit) for bit in bits[g]] for local, taken in passes for g in taken]
    return Plan(
        num_bits,
        program.num_angles,
        components,
        np.array([step.code for step in order], dtype=np.int64),
        np.array([step.real for step in order], dtype=np.bool_),
        np.array([p[0] for p in place], dtype=np.int64),
        np.array([p[1] if len(p) > 1 else -1 for p in place], dtype=np.int64),
        np.array([step.value for step in order], dtype=np.int64),
        np.array([step.angle for step in order], dtype=np.int64),
        np.array([step.scale for step in order], dtype=np.float64),
        np.array([local for local, _ in passes], dtype=np.int64),
        np.cumsum([0, *(len(taken) for _, taken in passes)]),
    )


class _Step(NamedTuple):
    """A gate as it is executed: index bits of its target and its control (if any; wire 0 is the highest bit)."""

    code: int
    real: bool
    bits: tuple[int, ...]
    value: int  # of the control
    angle: int
    scale: float


def _step(gate: Gate, angle: int, scale: float, num_qubits: int) -> _Step:
    wires = (gate.target,) if gate.control is None else (gate.target, gate.control)
    kind = KINDS[gate.kind]
    return _Step(CODES[gate.kind], kind.real, tuple(num_qubits - 1 - wire for wire in wires), 1, angle, scale)


def _with_cnots(steps: list[_Step]) -> list[_Step]:
    """ry and the next gate on its wire, if that is a CNOT, as two gates that act where the control is 0 and 1.

    With a control among the lanes that would be two whole passes, as it is.
    """
    out: list[_Step | None] = []
    last: dict[int, int] = {}  # by bit: place in out of the last gate on it
    for step in steps:
        before = last.get(step.bits[0], -1)
        ry = out[before] if before >= 0 else None
        cnot = step.code == CODES["x"] and len(step.bits) == 2 and step.bits[1] >= BITS
        if cnot and ry is not None and ry.code == CODES["ry"] and len(ry.bits) == 1:
            out[before] = None
            out.append(ry._replace(bits=step.bits, value=0))
            step = ry._replace(code=XRY, bits=step.bits)
        out.append(step)
        last.update(dict.fromkeys(step.bits, len(out) - 1))
    return [step for step in out if step is not None]


def _real(gate: Gate, angle: int) -> list[tuple[Gate, int, float]]:
    """The gate with its angle and the angle's scale; rz as phase gates."""
    if gate.kind != "rz":
        return [(gate, angle, 1.0)]
    on_control = [] if gate.control is None else [(Gate("phase", gate.control), angle, -0.5)]
    return [(gate._replace(kind="phase"), angle, 1.0), *on_control]


def _passes(bits: list[tuple[int, ...]], size: int) -> list[tuple[int, list[int]]]:
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
