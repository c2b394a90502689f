"""Settings for a budget of trained numbers: angles alone, through a graph network and an expansion that stay as drawn.

The rule is that of docs/generators.md: RY gates and a ring of CNOTs have no redundant angle as long as there are more
basis states than angles; twice as many keep the tangent well conditioned, and whitened angles then move the weights, at
the start, as free numbers do.
"""

import math
from typing import Any

from distqtrl.config.run import Config
from distqtrl.config.sources import with_flags
from distqtrl.errors import UserError
from distqtrl.report.describe import describe
from distqtrl.training.plan import plan

LEAST = 6
Flags = dict[str, str]
# The recipe; presets and the study's arms are made of it, too.
RESIDUAL: Flags = {"mapping.output": "residual", "mapping.feature": "linear"}
WHITE: Flags = {"generator.whiten": "start", "mapping.gain": "16"}
FIXED_GRAPH: Flags = {"mapping.kind": "gnn_expansion", "mapping.trained": "false", "mapping.hidden": "8"}


def circuit(trained: int) -> Flags:
    """Qubits and layers of a circuit with at most so many angles, and at least twice as many basis states.

    >>> circuit(128)
    {'circuit.ansatz': 'ry_cnot_ring', 'circuit.qubits': '8', 'circuit.layers': '16'}
    """
    n = max(3, (2 * trained - 1).bit_length())
    return {"circuit.ansatz": "ry_cnot_ring", "circuit.qubits": f"{n}", "circuit.layers": f"{trained // n}"}


def recipe(trained: int, num_weights: int) -> Flags:
    """Flags of a generator that trains at most so many angles and makes so many weights.

    A chunk is what another mapping.kind would need.
    """
    made = circuit(trained)
    chunk = math.ceil(num_weights / 2 ** int(made["circuit.qubits"]))
    source = {"generator.source": "circuit", "mapping.chunk": f"{chunk}"}
    return {**made, **source, **RESIDUAL, **WHITE, **FIXED_GRAPH}


def suggest(config: Config, trained: int) -> tuple[Flags, dict[str, Any]]:
    """The recipe for the policy of a configuration, and what it is then (``describe``).

    Raises UserError for fewer than LEAST, and for as many as the policy has weights.
    """
    num_weights = sum(spec.num_weights for spec in plan(config).specs)
    if not LEAST <= trained < num_weights:
        raise UserError(
            f"--suggest {trained}: give {LEAST} to {num_weights - 1:,}, fewer than the policy's {num_weights:,} weights"
        )
    flags = recipe(trained, num_weights)
    return flags, describe(with_flags(config, flags))
