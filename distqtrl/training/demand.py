"""What a run asks of this machine's memory, from its configuration: refused before anything of it is allocated.

Every estimate is low (what is certainly held at once), so that nothing is refused that would have run. States of
circuits and the mapping's activations are estimated where they are made (``circuit.memory``, ``generator``).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from distqtrl.circuit import ansatz
from distqtrl.circuit.memory import machine_memory
from distqtrl.config.run import Config
from distqtrl.errors import UserError
from distqtrl.generator import generator
from distqtrl.generator.controls import SOURCES
from distqtrl.generator.factors import Layers
from distqtrl.policy.network import Architecture
from distqtrl.training.roles import Spec

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


def check(config: Config, spec: Spec, algorithm: Iterable[Need]) -> None:
    """Refuse a rollout, network or circuit, or what else an algorithm needs, that this machine cannot hold."""
    _refuse(_samples(config, spec.architecture.num_inputs, config.environment.local_num * len(spec.agents)))
    _refuse(_network(config, spec.architecture))
    check_generated(config, spec, algorithm)


def check_generated(config: Config, spec: Spec, algorithm: Iterable[Need]) -> None:
    """Refuse a circuit, or what an algorithm needs, that this machine cannot hold."""
    _refuse(algorithm)
    _refuse(_circuit(config, spec.layers(config.adapter)))


def _refuse(needs: Iterable[Need]) -> None:
    available = machine_memory()
    for needed, what, keys in needs:
        if needed > available:
            gib, there = needed / 2**30, available / 2**30
            raise UserError(f"{what} needs {gib:,.0f} GiB or more, this machine has {there:,.0f}: lower {keys}")


def _samples(config: Config, num_inputs: int, rows: int) -> Iterator[Need]:
    """What the environments' current observations, a rollout, the replay and a batch take."""
    a, row = config.algorithm, FLOAT * num_inputs
    where = f"{rows:,} environments (times agents) with {num_inputs:,} numbers per observation"
    yield row * rows, where, "environment.frames, environment.image or environment.local_num"
    if a.rollout == "steps":
        needed, keys = (row + DOUBLE) * rows * a.rollout_steps, "algorithm.rollout_steps or environment.local_num"
        yield needed, f"algorithm.rollout_steps = {a.rollout_steps:,} of {where}", keys


def _network(config: Config, architecture: Architecture) -> Iterator[Need]:
    """The policy's weights."""
    shape = "-".join(map(str, architecture.widths))
    bytes_each = FLOAT if SOURCES[config.generator.source].generates else TRAINED
    keys = "policy.hidden, environment.frames or environment.image"
    what = f"a policy of {shape} ({architecture.num_weights:,} weights)"
    yield bytes_each * architecture.num_weights, what, keys
    matrices = sum(o * i for o, i in (c.shape for c in architecture.front))
    yield 3 * FLOAT * matrices, f"{what}, whose convolutions are matrices,", "policy.convolutions or environment.image"


def beside(config: Config, key: str, count: int) -> Need:
    """A network beside the policy, of the widths in this key of the algorithm."""
    widths = " ".join(f"{width:,}" for width in getattr(config.algorithm, key))
    return FLOAT * count, f"algorithm.{key} = {widths} ({count:,} weights)", f"algorithm.{key}"


def _circuit(config: Config, layers: Layers) -> Iterator[Need]:
    """What the mapping's network, the circuit's gates and angles, and its gradient take."""
    m, source = config.mapping, SOURCES[config.generator.source]
    if not source.generates or source.features:
        return
    n = generator.qubits(config, [layers])
    if m.kind != "expansion":
        count = num_weights((n + 1, *m.hidden, m.chunk))
        widths = " ".join(f"{width:,}" for width in m.hidden)
        what = f"mapping.hidden = {widths} with mapping.chunk = {m.chunk:,} ({count:,} weights)"
        yield TRAINED * count, what, "mapping.hidden or mapping.chunk"
    if not source.runs_circuit:
        return
    once = ansatz.build(config.circuit.model_copy(update={"layers": 1}), n)
    gates, angles = (x * float(config.circuit.layers) for x in (len(once.gates), once.num_angles))
    what = f"circuit.layers = {config.circuit.layers:,} of {n} qubits"
    yield GATE * gates, f"{what} ({gates:,.0f} gates)", "circuit.layers"
    if config.generator.whiten:
        yield (
            DOUBLE * angles * (angles + 2**n),
            f"{what} with generator.whiten ({angles:,.0f} angles)",
            "circuit.layers",
        )
    if any(own.get("noise", config.qpu.noise) for own in config.qpu.per_rank or ({},)):
        yield DOUBLE * angles**2, f"{what} with qpu.noise ({angles:,.0f} angles, squared)", "circuit.layers"
    if config.qpu.gradient == "spsa":
        samples = config.qpu.spsa_samples
        yield 2 * DOUBLE * samples * (angles + 2**n), f"qpu.spsa_samples = {samples:,}", "qpu.spsa_samples"


def num_weights(widths: Sequence[int]) -> int:
    """Without biases, of a network with these widths."""
    return sum(i * o for i, o in pairwise(widths))
