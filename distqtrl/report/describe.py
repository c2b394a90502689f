"""Parameter counts of a configuration: nominal, effective, deployed."""

from typing import Any

from distqtrl import sampling
from distqtrl.algorithm.sac import Critics
from distqtrl.config import Algorithm, Config
from distqtrl.environment.vector import make, spaces
from distqtrl.generator import Generator
from distqtrl.learner import value_network
from distqtrl.policy import adapter
from distqtrl.policy.distribution import Gaussian, Head
from distqtrl.policy.network import Architecture


def describe(config: Config) -> dict[str, Any]:
    """The facts of a run before it starts; raises UserError for a configuration that cannot run.

    ``training_only_parameters`` (value network or critics, deviations, temperature) are in no other count and no policy
    file. ``effective_parameters`` is the rank of d w_M / d(parameters) at the start; ``compression`` is deployed
    policy weights per trained parameter (below 1, the generator is larger than what it generates).
    """
    env = make(config.environment)
    architecture, head = sampling.policy_for(config, spaces(env, config.environment.id))
    env.close()
    low_rank = config.adapter.base is not None
    generator = Generator(
        config, adapter.layers(architecture, config.adapter.rank) if low_rank else architecture.layers
    )
    counts, mapping, device = generator.counts(), generator.mapping, generator.qpu
    widths = (architecture.num_inputs, *architecture.hidden, architecture.num_outputs)
    normalizer = 2 * architecture.num_inputs if config.policy.normalize_observations else 0
    return {
        "environment": config.environment.id,
        "policy": "-".join(str(w) for w in widths) + f" {architecture.activation}, {type(head).__name__.lower()}",
        "source": config.generator.source,
        "qubits": device.num_qubits if device else 0,
        "basis_states": 2**mapping.num_qubits if mapping else 0,
        "basis_states_used": mapping.num_nodes if mapping else 0,
        "circuit": f"{config.circuit.ansatz}, L = {config.circuit.layers}" if device else "none",
        "circuit_parameters": counts["source"] if config.generator.source == "circuit" else 0,
        "source_parameters": counts["source"],
        "mapping_parameters": counts["mapping"],
        "total_parameters": counts["total"],
        "effective_parameters": generator.effective_parameters(),
        "training_only_parameters": _training_only(config.algorithm, architecture.num_inputs, head),
        "policy_weights": architecture.num_weights,
        "deployed_parameters": architecture.num_weights + normalizer,
        "compression": round(architecture.num_weights / counts["total"], 3),
    }


def _training_only(a: Algorithm, num_inputs: int, head: Head) -> int:
    """Parameters that no policy file holds."""
    num_actions = head.num_outputs
    if a.name == "sac":
        critics = sum(p.numel() for p in Critics(num_inputs + num_actions, a.value_hidden).parameters())
        return critics + Architecture(num_inputs, a.deviation_hidden, num_actions, "relu").num_weights + 1
    value = value_network(num_inputs, a.value_hidden, 0).parameters() if a.uses_values else ()
    return sum(p.numel() for p in value) + (num_actions if isinstance(head, Gaussian) else 0)
