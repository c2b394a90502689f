"""Parameter counts of a configuration: nominal, effective, deployed."""

from typing import Any

from distqtrl.algorithm.sac import Critics
from distqtrl.circuit.shift import Ranks
from distqtrl.config.run import Config
from distqtrl.config.stages import Algorithm
from distqtrl.environment.vector import Environments, make
from distqtrl.generator import generator
from distqtrl.policy import adapter
from distqtrl.policy.distribution import Gaussian, Head
from distqtrl.policy.network import Architecture
from distqtrl.training import demand, roles
from distqtrl.training.policy_gradient.learner import value_network


def describe(config: Config) -> dict[str, Any]:
    """The facts of a run before it starts; raises UserError for a configuration that cannot run.

    ``training_only_parameters`` (value network or critics, deviations, temperature) are in no other count and no policy
    file. ``effective_parameters`` is the rank of d w_M / d(parameters) at the start; ``compression`` is deployed
    policy weights per trained parameter (below 1, the generator is larger than what it generates).
    """
    world = make(config.environment)
    played = roles.roles(config.agents, world.agents, world.spaces, config.environment.id)
    demand.check(config, played, dict(zip(world.agents, world.spaces, strict=True)))
    central = config.agents.critic == "centralised"
    environments = Environments(config.environment, [0], 0, "evaluation", 0, played, central)
    architectures, training_only = roles.architectures(config, environments), 0
    for role, (architecture, head) in zip(played, architectures, strict=True):
        seen = roles.num_states(environments, role) or architecture.num_inputs
        training_only += _training_only(config.algorithm, seen, head)
    environments.close()
    world.close()
    low_rank = config.adapter.base is not None
    layers = [adapter.layers(a, config.adapter.rank) if low_rank else a.layers for a, _ in architectures]
    made = generator.several(config, layers, range(len(architectures)), Ranks())
    counts = {key: sum(each.counts()[key] for each in made) for key in ("source", "mapping", "total")}
    mapping, device = made[0].mapping, made[0].qpu
    normalizer = 2 * sum(a.num_inputs for a, _ in architectures) if config.policy.normalize_observations else 0
    weights = sum(a.num_weights for a, _ in architectures)
    shapes = ["-".join(map(str, a.widths)) + f" {a.activation}, {type(h).__name__.lower()}" for a, h in architectures]
    several = {"agents": len(world.agents), "policies": len(architectures)} if len(world.agents) > 1 else {}
    return {
        "environment": config.environment.id,
        **several,
        "policy": "; ".join(dict.fromkeys(shapes)),
        "source": config.generator.source,
        "qubits": device.num_qubits if device else 0,
        "basis_states": 2**mapping.num_qubits if mapping else 0,
        "basis_states_used": max(each.mapping.num_nodes for each in made if each.mapping) if mapping else 0,
        "circuit": f"{config.circuit.ansatz}, L = {config.circuit.layers}" if device else "none",
        "circuit_parameters": counts["source"] if config.generator.source == "circuit" else 0,
        "source_parameters": counts["source"],
        "mapping_parameters": counts["mapping"],
        "total_parameters": counts["total"],
        "effective_parameters": generator.effective_parameters(made),
        "training_only_parameters": training_only,
        "policy_weights": weights,
        "deployed_parameters": weights + normalizer,
        "compression": round(weights / counts["total"], 3),
    }


def _training_only(a: Algorithm, num_inputs: int, head: Head) -> int:
    """Parameters that no policy file holds."""
    num_actions = head.num_outputs
    if a.name == "sac":
        critics = sum(p.numel() for p in Critics(num_inputs + num_actions, a.value_hidden).parameters())
        return critics + Architecture(num_inputs, a.deviation_hidden, num_actions, "relu").num_weights + 1
    value = value_network(num_inputs, a.value_hidden, 0).parameters() if a.uses_values else ()
    return sum(p.numel() for p in value) + (num_actions if isinstance(head, Gaussian) else 0)
