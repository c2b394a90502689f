"""How large a state may be: the machine's memory, and a refusal that names both sizes."""

import os

from distqtrl.circuit.ansatz import Program
from distqtrl.errors import UserError


def refuse_memory(program: Program, needed: float, who: str, available: float) -> None:
    """Raise UserError when a circuit needs more bytes than there are."""
    if needed > available:
        raise UserError(
            f"{who} needs {needed / 2**30:,.0f} GiB for {program.num_qubits} qubits, "
            f"{available / 2**30:,.0f} GiB are there: raise mapping.chunk"
        )


def machine_memory() -> float:
    """Bytes of this machine: all of them, so that every rank of a machine comes to the same decision."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
