"""A program as it is executed: gates fused to steps, and steps regrouped into passes over small blocks.

A step is a run of gates on one target that have no control or one and the same: two 2x2 matrices, for the values of
the control, and one pass over the state whatever their number. In a layer of u3_cu3_ring every CU3 goes with the U3
before it, in one of ry_cnot every CNOT with an RY.

A state of 2^n numbers that does not fit in the caches would travel through them once per step. A pass picks a few
*local* bits of the state's index, and takes every step whose wires are among them; the kernels then load one block
(all values of the local bits), apply all steps of the pass to it and store it. Gates are only moved past gates on
other wires, so the circuit is the same. The lowest bits are local in every pass, so that blocks are made of whole
cache lines.
"""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import KINDS, Gate, Program
from distqtrl.circuit.simd import BITS

WHOLE = 16  # bits of a state that is one block (counting one for complex numbers): psi and lambda fit in 1 MiB
BLOCK = 14  # local bits of a block otherwise
SINGLE = 8  # bits of a real state whose steps run one by one, as they do in ``interleaved``, for the same bits
RUN = 4  # lowest bits that are local in every pass


STEP = np.dtype(
    [
        ("target", np.int64),
        ("control", np.int64),  # -1: none
        ("idle", np.bool_),  # nothing happens where the control is 0
        ("real", np.bool_),  # both matrices are
        ("turns", np.bool_),  # there are angles
        ("swap", np.bool_),  # a single x
        ("paired", np.bool_),  # runs together with the next step
        ("first", np.int64),  # of its gates
        ("end", np.int64),
    ],
    align=True,
)
GATE = np.dtype([("code", np.int64), ("angle", np.int64), ("controlled", np.bool_)], align=True)
PASS = np.dtype([("local", np.int64), ("first", np.int64), ("end", np.int64)])  # a mask of index bits; its steps


class Plan(NamedTuple):
    """J steps in the order of execution, their G gates, and I passes; bits are positions in a block's index.

    Arrays of records: compiled functions take few arguments then, which compile faster.
    """

    num_bits: int
    num_angles: int
    components: int  # 1: the state is real; 2: real and imaginary part
    step_J: Any  # array of STEP; Any, as what its fields are is not known to type checkers
    gate_G: Any  # of GATE
    pass_I: Any  # of PASS


@dataclass
class _Step:
    """Gates (by their number in the program) that share index bits: a target, and a control or None."""

    target: int
    control: int | None
    gates: list[int]

    @property
    def bits(self) -> list[int]:
        """The index bits that the step mixes or reads."""
        return [self.target] if self.control is None else [self.target, self.control]


def plan(program: Program) -> Plan:
    """The steps and passes of a program."""
    components = 1 if program.real else 2
    num_bits = max(program.num_qubits, BITS)  # smaller states are padded with zeros
    steps = _steps(program)
    whole = num_bits + components - 1 <= WHOLE
    passes = [((1 << num_bits) - 1, steps)] if whole else _passes(steps, BLOCK - components + 1)
    order = [step for _, taken in passes for step in taken]
    place = [[_position(local, bit) for bit in step.bits] for local, taken in passes for step in taken]
    gates_J = [[program.gates[g] for g in step.gates] for step in order]
    numbers = [g for step in order for g in step.gates]
    gate_J = np.cumsum([0, *(len(gates) for gates in gates_J)])
    step_I = np.cumsum([0, *(len(taken) for _, taken in passes)])
    steps_J = _records(
        STEP,
        target=[bits[0] for bits in place],
        control=[bits[1] if len(bits) > 1 else -1 for bits in place],
        idle=[all(gate.control is not None for gate in gates) for gates in gates_J],
        real=[all(KINDS[gate.kind].real for gate in gates) for gates in gates_J],
        turns=[any(KINDS[gate.kind].shifts for gate in gates) for gates in gates_J],
        swap=[[gate.kind for gate in gates] == ["x"] for gates in gates_J],
        first=gate_J[:-1],
        end=gate_J[1:],
    )
    if components == 1 and num_bits > SINGLE:
        for first, end in itertools.pairwise(step_I):
            _pair(steps_J[first:end])
    return Plan(
        num_bits,
        program.num_angles,
        components,
        steps_J,
        _records(
            GATE,
            code=program.kind_G[numbers],
            angle=program.angle_G[numbers],
            controlled=program.control_G[numbers] >= 0,
        ),
        _records(PASS, local=[local for local, _ in passes], first=step_I[:-1], end=step_I[1:]),
    )


def _pair(steps: npt.NDArray[np.void]) -> None:
    """Mark steps of a pass that run with the next one: two rotations; the second may read the first's target."""
    taken = False
    for one, other in itertools.pairwise(steps):
        plain = not any(step["swap"] or step["idle"] or not step["turns"] for step in (one, other))
        above = min(one["target"], other["target"]) >= BITS and one["target"] != other["target"] != one["control"]
        free = other["control"] in (*range(-1, BITS), one["target"])
        one["paired"] = taken = not taken and plain and above and free


def whole(p: Plan) -> bool:
    """Whether all steps act on the state as one block; bits are those of its index then."""
    return p.pass_I["local"].tolist() == [(1 << p.num_bits) - 1]


def _records(kind: np.dtype[np.void], **columns: npt.ArrayLike) -> npt.NDArray[np.void]:
    records = np.zeros(len(np.asarray(columns["first" if "first" in columns else "code"])), dtype=kind)
    for name, column in columns.items():
        records[name] = column
    return records


def _steps(program: Program) -> list[_Step]:
    """Every gate in the last step on its target, unless another gate or another control came between."""
    out: list[_Step | None] = []
    last: dict[int, int] = {}  # by bit: place in out of the last step on it
    for g, gate in enumerate(program.gates):
        target, control = _bits(gate, program.num_qubits)
        place = last.get(target, -1)
        step = out[place] if place >= 0 else None
        if step is None or step.target != target or not _fits(step, control, last, place):
            out.append(_Step(target, control, [g]))
        else:
            step.gates.append(g)
            if control is None or step.control == control:
                continue
            step.control, out[place] = control, None  # it waits for its control
            out.append(step)
        last.update(dict.fromkeys([target] if control is None else [target, control], len(out) - 1))
    return [step for step in out if step is not None]


def _fits(step: _Step, control: int | None, last: dict[int, int], place: int) -> bool:
    """Whether a gate with this control, on the step's target, can be a part of the step."""
    return control is None or step.control is None or (step.control == control and last[control] == place)


def _bits(gate: Gate, num_qubits: int) -> tuple[int, int | None]:
    """Index bits of a gate's target and control; wire 0 is the highest bit."""
    return num_qubits - 1 - gate.target, None if gate.control is None else num_qubits - 1 - gate.control


def _passes(steps: list[_Step], size: int) -> list[tuple[int, list[_Step]]]:
    """(mask of local bits, steps) of every pass, each taking all that it can of what is left."""
    left, passes = steps, []
    while left:
        local, blocked = set(range(RUN)), set[int]()
        taken, rest = [], []
        for step in left:
            fits = blocked.isdisjoint(step.bits) and len(local.union(step.bits)) <= size
            if fits:
                local.update(step.bits)
                taken.append(step)
            else:
                blocked.update(step.bits)
                rest.append(step)
        left = rest
        passes.append((sum(1 << bit for bit in local), taken))
    return passes


def _position(local: int, bit: int) -> int:
    """Where a bit of the index stands among the local ones."""
    return (local & ((1 << bit) - 1)).bit_count()
