"""Ways to make many weights of few numbers, as flags: what compression.py compares.

An arm is a function of how many numbers it may train: flags, or none where it cannot train so few. What it really
trains is counted when it has been built.
"""

from collections.abc import Callable

from distqtrl.report import suggest

Flags = dict[str, str]
RESIDUAL = {**suggest.RESIDUAL, "mapping.chunk": "1"}
WHITE, FIXED = suggest.WHITE, suggest.FIXED_GRAPH
PLAIN = {"generator.whiten": "none", "mapping.gain": "1"}
WIDTH = 8


def angles(size: int) -> Flags | None:
    """A circuit of at most so many angles, with twice as many basis states."""
    made = suggest.circuit(size)
    return None if made["circuit.layers"] == "0" else made


def expanded(size: int) -> Flags | None:
    """The circuit, and a fixed random matrix."""
    circuit = angles(size)
    return circuit and {**circuit, **RESIDUAL, **WHITE, "mapping.kind": "expansion"}


def plain(size: int) -> Flags | None:
    """The same, with Adam on the angles themselves."""
    circuit = angles(size)
    return circuit and {**circuit, **RESIDUAL, **PLAIN, "mapping.kind": "expansion"}


def fixed_graph(size: int) -> Flags | None:
    """The circuit, and a graph network that is drawn once."""
    circuit = angles(size)
    return circuit and {**circuit, **RESIDUAL, **WHITE, **FIXED}


def renewed(size: int) -> Flags | None:
    """The same, with the metric measured anew where the angles have come to, at every 16th optimizer step."""
    graph = fixed_graph(size)
    return graph and {**graph, "generator.whiten": "every", "generator.whiten_steps": "16"}


def product(size: int) -> Flags | None:
    """The same graph network on as many angles of a circuit without entanglers."""
    circuit, graph = angles(size), fixed_graph(size)
    if not circuit or not graph:
        return None
    layers = size // (3 * int(circuit["circuit.qubits"]))  # a U3 has three angles
    return {**graph, "circuit.ansatz": "product", "circuit.layers": str(layers)} if layers else None


def trained_graph(size: int) -> Flags | None:
    """The circuit and the graph network, at least half of the numbers being angles."""
    n = max(3, (size - 1).bit_length())
    layers = (size - graph_numbers(n, WIDTH)) // n
    if layers * n < size / 2:
        return None
    circuit = {"circuit.ansatz": "ry_cnot_ring", "circuit.qubits": str(n), "circuit.layers": str(layers)}
    return {**circuit, **RESIDUAL, **WHITE, **FIXED, "mapping.trained": "true"}


def frozen_random(size: int) -> Flags | None:
    """The trained graph network, and random numbers in the circuit's place."""
    n = max(3, (size - 1).bit_length())
    width = size // graph_numbers(n, 1)
    if width < 2:
        return None
    graph = {**RESIDUAL, **FIXED, **PLAIN, "mapping.trained": "true", "mapping.hidden": str(width)}
    return {"generator.source": "frozen_random", "circuit.qubits": str(n), **graph}


def graph_numbers(n: int, width: int) -> int:
    """What a graph network with one hidden layer and no readout trains."""
    return width * (2 * (n + 1) + 1)


def subspace(size: int) -> Flags:
    """Free numbers and the fixed random matrix."""
    flags = {"generator.source": "random_subspace", "generator.numbers": str(size)}
    return flags | {"mapping.kind": "expansion", "mapping.output": "residual"}


def low_rank(size: int) -> Flags:
    """A product of two factors in every layer."""
    return {"generator.source": "low_rank", "generator.numbers": str(size)}


def tensor_train(size: int) -> Flags:
    """One tensor train over all weights."""
    return {"generator.source": "tensor_train", "generator.numbers": str(size)}


def hypernetwork(size: int) -> Flags | None:
    """An MLP that makes 16 weights of the bits of a chunk's index."""
    chunk, inputs = 16, 7
    width = (size - chunk) // (inputs + 1 + chunk)
    if width < 1:
        return None
    made = {"circuit.qubits": "none", "mapping.kind": "mlp", "mapping.chunk": str(chunk), "mapping.hidden": str(width)}
    return {"generator.source": "uniform", **made, **PLAIN, "mapping.output": "residual", "mapping.trained": "true"}


def equal_mlp(size: int) -> Flags:
    """A policy with so few weights."""
    return {"generator.source": "equal_mlp", "generator.numbers": str(size)}


def direct(size: int) -> Flags:
    """All weights, whatever may be trained."""
    return {"generator.source": "direct"}


ARMS: dict[str, Callable[[int], Flags | None]] = {
    "circuit, fixed graph network": fixed_graph,
    "circuit, fixed graph network, metric renewed": renewed,
    "circuit, expansion": expanded,
    "circuit, expansion, plain angles": plain,
    "circuit, trained graph network": trained_graph,
    "product circuit, fixed graph network": product,
    "random subspace": subspace,
    "frozen random, trained graph network": frozen_random,
    "low rank": low_rank,
    "tensor train": tensor_train,
    "chunked hypernetwork": hypernetwork,
    "equal-parameter MLP": equal_mlp,
    "direct": direct,
}
