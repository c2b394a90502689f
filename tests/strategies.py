"""Hypothesis strategies that several test files share."""

from hypothesis import strategies as st

from distqtrl.circuit import ansatz
from distqtrl.circuit.ansatz import KINDS, Gate


@st.composite
def circuits(draw, most_qubits=4, most_gates=8):
    """Programs of any gates on any wires, with and without controls."""
    n = draw(st.integers(1, most_qubits))
    gates = []
    for kind, controlled in draw(st.lists(st.tuples(st.sampled_from(list(KINDS)), st.booleans()), max_size=most_gates)):
        target, *others = draw(st.permutations(range(n)))
        gates.append(Gate(kind, target, others[0] if controlled and others else None))
    return ansatz.program(n, gates)


seeds = st.integers(0, 2**32 - 1)
