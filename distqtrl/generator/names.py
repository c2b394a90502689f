"""The names in a configuration that are entries of tables: those that no table holds are refused, used or not.

The tables lie above the configuration, which therefore takes any text. What makes the thing looks its name up again.
"""

from distqtrl.circuit.ansatz import ANSATZE, OWN
from distqtrl.circuit.qpu import BACKENDS
from distqtrl.config.run import Config
from distqtrl.errors import lookup
from distqtrl.mapping.model import KINDS
from distqtrl.quantize.blocks import FORMATS


def check(config: Config) -> None:
    """Raise UserError, with the nearest name that there is, for one that there is not."""
    if config.circuit.ansatz != OWN:
        lookup("ansatz", config.circuit.ansatz, dict.fromkeys((*ANSATZE, OWN)))
    for rank in range(max(1, len(config.qpu.per_rank))):
        lookup("qpu.backend", config.qpu.of_rank(rank).backend, BACKENDS)
    lookup("mapping.kind", config.mapping.kind, KINDS)
    for precision in (config.rollout.precision, config.adapter.precision):
        if precision != "none":
            lookup("weight format", precision, FORMATS)
