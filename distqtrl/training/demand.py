"""What a run asks of this machine's memory, from its configuration: refused before anything of it is allocated.

Every estimate is low (what is certainly held at once), so that nothing is refused that would have run. States of
circuits and the mapping's activations are estimated where they are made (``circuit.memory``, ``generator``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from distqtrl.circuit import ansatz
from distqtrl.circuit.memory import machine_memory
from distqtrl.config.run import Config
from distqtrl.environment.spaces import Spaces
from distqtrl.environment.vector import Role
from distqtrl.errors import UserError
from distqtrl.generator.generator import Layers
from distqtrl.mapping import graph
from distqtrl.policy import adapter
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.training import roles

ENVIRONMENT, EPISODE = 4096, 32  # bytes of the smallest environment, and of an episode's return, length and seed
TRAINED = 16  # bytes per trained number: itself, its gradient, two moments
GATE = 100  # bytes, in lists and arrays
FLOAT, DOUBLE = 4, 8
Need = tuple[float, str, str]  # bytes, what takes them, and which keys to lower


def check_settings(config: Config) -> None:
    """Refuse numbers of environments and episodes that no memory holds, before one environment is made."""
    e = config.evaluate
    local = config.environment.local_num
    _refuse(
        [
            (ENVIRONMENT * local, f"environment.local_num = {local:,}", "environment.local_num"),
            *(
                (EPISODE * value, f"evaluate.{name} = {value:,}", f"evaluate.{name}")
                for name, value in (("episodes", e.episodes), ("validation_episodes", e.validation_episodes))
            ),
        ]
    )


def check(config: Config, played: Sequence[Role], spaces: Mapping[str, Spaces]) -> None:
    """Refuse a rollout, replay, network or circuit that this machine cannot hold; raises UserError that names it."""
    for role in played:
        several = len(role) if len(role) > 1 else 0
        num_inputs = spaces[role[0]].num_observations + several
        _refuse(_samples(config, num_inputs, config.environment.local_num * len(role)))
        architecture, head = roles.policy_for(config, spaces[role[0]], num_inputs)
        _refuse(_networks(config, architecture, head))
        layers = architecture.layers
        if config.adapter.base is not None:
            layers = adapter.layers(architecture, config.adapter.rank)
        _refuse(_circuit(config, layers))


def _refuse(needs: Iterable[Need]) -> None:
    available = machine_memory()
    for needed, what, keys in needs:
        if needed > available:
            gib, there = needed / 2**30, available / 2**30
            raise UserError(f"{what} needs {gib:,.0f} GiB or more, this machine has {there:,.0f}: lower {keys}")


def _samples(config: Config, num_inputs: int, rows: int) -> Iterator[Need]:
    """Of the environments' current observations, a rollout, the replay, a batch."""
    a, row = config.algorithm, FLOAT * num_inputs
    where = f"{rows:,} environments (times agents) with {num_inputs:,} numbers per observation"
    yield row * rows, where, "environment.frames, environment.image or environment.local_num"
    if a.rollout == "steps":
        needed, keys = (row + DOUBLE) * rows * a.rollout_steps, "algorithm.rollout_steps or environment.local_num"
        yield needed, f"algorithm.rollout_steps = {a.rollout_steps:,} of {where}", keys
    if a.name == "sac":
        largest, filled = row * a.replay, 2 * row * min(a.replay, config.train.steps or a.replay)
        what = f"algorithm.replay = {a.replay:,} with {num_inputs:,} numbers per observation"
        yield max(largest, filled), what, "algorithm.replay"
        yield 2 * row * a.batch_size, f"algorithm.batch_size = {a.batch_size:,}", "algorithm.batch_size"


def _networks(config: Config, architecture: Architecture, head: Head) -> Iterator[Need]:
    """Of the policy, and of what is trained beside it."""
    a, num_inputs = config.algorithm, architecture.num_inputs
    shape = "-".join(map(str, architecture.widths))
    bytes_each = TRAINED if config.generator.source in ("direct", "equal_mlp") else FLOAT
    keys = "policy.hidden, environment.frames or environment.image"
    yield bytes_each * architecture.num_weights, f"a policy of {shape} ({architecture.num_weights:,} weights)", keys
    beside = {}
    if a.name == "sac":
        beside["value_hidden"] = 4 * _weights((num_inputs + head.num_outputs, *a.value_hidden, 1))
        beside["deviation_hidden"] = _weights((num_inputs, *a.deviation_hidden, head.num_outputs))
    elif a.uses_values:
        beside["value_hidden"] = _weights((num_inputs, *a.value_hidden, 1))
    for name, count in beside.items():
        widths = " ".join(f"{width:,}" for width in getattr(a, name))
        yield FLOAT * count, f"algorithm.{name} = {widths} ({count:,} weights)", f"algorithm.{name}"


def _circuit(config: Config, layers: Layers) -> Iterator[Need]:
    """Of the mapping's network, of the circuit's gates and angles, and of what makes its gradient."""
    m, source = config.mapping, config.generator.source
    if source in ("direct", "equal_mlp"):
        return
    n = graph.num_qubits(sum(size for size, _ in layers), m.chunk)
    count = _weights((n + 1, *m.hidden, m.chunk))
    widths = " ".join(f"{width:,}" for width in m.hidden)
    what = f"mapping.hidden = {widths} with mapping.chunk = {m.chunk:,} ({count:,} weights)"
    yield TRAINED * count, what, "mapping.hidden or mapping.chunk"
    if source not in ("circuit", "frozen_circuit"):
        return
    once = ansatz.build(config.circuit.model_copy(update={"layers": 1}), n)
    gates, angles = (x * float(config.circuit.layers) for x in (len(once.gates), once.num_angles))
    what = f"circuit.layers = {config.circuit.layers:,} of {n} qubits"
    yield GATE * gates, f"{what} ({gates:,.0f} gates)", "circuit.layers"
    if any(own.get("noise", config.qpu.noise) for own in config.qpu.per_rank or ({},)):
        yield DOUBLE * angles**2, f"{what} with qpu.noise ({angles:,.0f} angles, squared)", "circuit.layers"
    if config.qpu.gradient == "spsa":
        samples = config.qpu.spsa_samples
        yield 2 * DOUBLE * samples * (angles + 2**n), f"qpu.spsa_samples = {samples:,}", "qpu.spsa_samples"


def _weights(widths: Sequence[int]) -> int:
    """Of a network with these widths."""
    return sum(i * o for i, o in pairwise(widths))
