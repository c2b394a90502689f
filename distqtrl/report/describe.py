"""Parameter counts of a configuration: nominal, effective, deployed."""

from typing import Any

from distqtrl.circuit.shift import Ranks
from distqtrl.config.run import Config
from distqtrl.generator import generator
from distqtrl.generator.diagnostics import diagnose
from distqtrl.generator.generator import Generator
from distqtrl.training.plan import plan
from distqtrl.training.updates import demanded


def describe(config: Config) -> dict[str, Any]:
    """The facts of a run before it starts; raises UserError for a configuration that cannot run.

    ``training_only_parameters`` (value network or critics, deviations, temperature) are in no other count and no policy
    file. ``effective_parameters`` is the rank of d w_M / d(parameters) at the start; ``compression`` is deployed
    policy weights per trained parameter (below 1, the generator is larger than what it generates). The last three are
    of the first policy (``generator.diagnostics``).
    """
    planned = plan(config)
    specs = planned.specs
    layers = [spec.layers(config.adapter) for spec in specs]
    made = generator.several(config, layers, range(len(specs)), Ranks())
    counts = {key: sum(each.counts()[key] for each in made) for key in ("source", "mapping", "total")}
    mapping, device = made[0].mapping, made[0].qpu
    normalizer = sum(spec.num_statistics for spec in specs) if config.policy.normalize_observations else 0
    weights = sum(spec.num_weights for spec in specs)
    beside = sum(planned.algorithm.learner_of(spec).num_training_only(config, spec) for spec in specs)
    first = diagnose(made[0])
    several = {"agents": len(planned.agents), "policies": len(specs)} if len(planned.agents) > 1 else {}
    return {
        **({"task": config.language.task} if config.language.base else {"environment": config.environment.id}),
        **several,
        "policy": "; ".join(dict.fromkeys(spec.words for spec in specs)),
        "source": config.generator.source,
        "qubits": device.num_qubits if device else 0,
        "basis_states": 2**mapping.num_qubits if mapping else 0,
        "basis_states_used": max(each.mapping.num_nodes for each in made if each.mapping) if mapping else 0,
        "circuit": f"{config.circuit.ansatz}, L = {config.circuit.layers}" if device else "none",
        "circuit_parameters": counts["source"] if made[0].measures else 0,
        "source_parameters": counts["source"],
        "mapping_parameters": counts["mapping"],
        "total_parameters": counts["total"],
        "effective_parameters": generator.effective_parameters(made),
        "training_only_parameters": beside,
        "policy_weights": weights,
        "deployed_parameters": weights + normalizer,
        "compression": round(weights / counts["total"], 3),
        "directions_99": first.directions_99,
        "participation": round(first.participation, 1),
        "source_share": float(f"{first.source_share:.3g}"),
        **_asked(config, made, config.local_num),
        **learning_rates(config, config.qpu.replicas),
    }


def _asked(config: Config, made: list[Generator], num_environments: int) -> dict[str, Any]:
    """What one rank's QPU is asked for where it counts shots: per update, and where that is known for the budget."""
    num_circuits = len(made) if config.agents.sharing == "independent" else 1
    each, device = demanded(config, made[0], num_circuits, num_environments), made[0].qpu
    if device is None or not each.shots:
        return {}
    times = {"_per_update": 1} | ({"": max(0, each.updates - each.silent)} if each.updates else {})
    return {
        f"{name}{when}": round(count * value, 3)
        for when, count in times.items()
        for name, value in (
            ("circuits", each.circuits),
            ("shots", each.shots),
            ("qpu_s", each.shots * device.shot_us * 1e-6),
        )
    }


def learning_rates(config: Config, ranks: int) -> dict[str, float]:
    """The learning rates on so many ranks, once they are warm, by the names of their fields."""
    a = config.algorithm
    names = ("source_learning_rate", "learning_rate", "value_learning_rate")
    found = {name: getattr(a, name) for name in names}
    return {name: float(f"{x * a.rate_factor(ranks):.6g}") for name, x in found.items() if x is not None}
