"""How large a state may be: the memory there is, and a refusal that names both sizes."""

import os
import resource
from functools import cache

from distqtrl import cgroup
from distqtrl.circuit.ansatz import Program
from distqtrl.errors import UserError


def refuse_memory(program: Program, needed: float, who: str, available: float) -> None:
    """Raise UserError when a circuit needs more bytes than there are."""
    if needed > available:
        raise UserError(
            f"{who} needs {needed / 2**30:,.0f} GiB for {program.num_qubits} qubits, "
            f"{available / 2**30:,.0f} GiB are there: raise mapping.chunk"
        )


@cache
def machine_memory() -> float:
    """Bytes of this machine, or of a limit that a job or a shell has set on it.

    All of them, not what is free: so every rank of a machine comes to the same decision.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroup.memory()]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space)
    return float(min(limit for limit in limits if limit is not None))
