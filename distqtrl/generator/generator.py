"""circuit ∘ mapping as one module, () -> w_M, or a control (``controls``) in its place."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.circuit import ansatz, qpu
from distqtrl.circuit.memory import machine_memory
from distqtrl.circuit.shift import Ranks
from distqtrl.config.run import Config
from distqtrl.config.stages import MappingModel, Qpu
from distqtrl.errors import UserError, lookup
from distqtrl.generator import names, tangent
from distqtrl.generator.controls import SOURCES, Source, fresh_weights
from distqtrl.generator.factors import Layers
from distqtrl.generator.tangent import Whitened
from distqtrl.mapping import graph
from distqtrl.mapping.model import KINDS, Mapping

Drawn = TypeVar("Drawn")


class Generator(nn.Module):
    """() -> w_M. ``layers`` holds (number of weights, fan-in) of every policy layer.

    Equal configurations give equal parameters on every rank; p_S and w_M differ between ranks when QPUs do or draw
    shots. Raises UserError for a circuit or QPU that does not exist, cannot do what is asked, or needs more memory
    than there is.

    number: of the policy among several, which draw their own parameters. beside: another policy's generator, whose QPU
    this one uses, too, and with agents.sharing shared_circuit also its probabilities. num_qubits: at least so many.
    """

    w_M: nn.Parameter  # of a source that generates nothing
    theta_P: nn.Parameter  # of one that measures, unless whitened
    fresh_M: Tensor  # of one that trains factors

    def __init__(
        self,
        config: Config,
        layers: Layers,
        ranks: Ranks | None = None,
        number: int = 0,
        beside: "Generator | None" = None,
        num_qubits: int = 0,
    ) -> None:
        super().__init__()
        names.check(config)
        _check(config)
        self._key = (number,) if number else ()
        self._beside = [] if beside is None or config.agents.sharing != "shared_circuit" else [beside]  # no submodule
        self._circuit = config.circuit
        self.source, self.layers = config.generator.source, tuple(layers)
        self.num_weights = sum(size for size, _ in layers)
        self.qpu: qpu.QPU | None = None
        self.mapping: Mapping | None = None
        self.factors: nn.Module | None = None
        self.coordinates: Whitened | None = None
        self._whiten_steps = config.generator.whiten_steps if config.generator.whiten == "every" else 0
        fresh_M = self._drawn(config, lambda: fresh_weights(layers))
        if not self.kind.generates:
            self._free(config, fresh_M)
            return
        numbers = free_numbers(config, layers) if self.kind.features else 0
        n = num_qubits or qubits(config, [layers])
        settings = config.mapping
        if numbers:  # whatever the circuit's mapping is
            settings = settings.model_copy(update={"kind": "expansion", "output": "residual", "gain": 1.0})
        _check_memory(config, self.num_weights, n, asked=bool(num_qubits or config.circuit.qubits))
        self.mapping = self._drawn(config, lambda: Mapping(settings, layers, n, numbers))
        if self._beside:
            self.qpu = self._beside[0].qpu
        else:
            self._start(config, numbers or 2**n, n, ranks or Ranks(), None if beside is None else beside.qpu)
        with torch.no_grad():
            self.mapping.calibrate(self.ideal_probabilities(), fresh_M)
        if config.generator.whiten and self.measures and not self._beside:
            self._whiten(config.generator.damping)

    def _drawn(self, config: Config, draw: Callable[[], Drawn]) -> Drawn:
        """What is drawn from torch's generator, as it is at the start of this policy."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.integer(config.train.seed, "initialise", seeding.WEIGHTS, *self._key))
            return draw()

    def _free(self, config: Config, fresh_M: Tensor) -> None:
        """Train the weights themselves, or factors of their change."""
        make = self.kind.factors
        if make is None:
            self.w_M = nn.Parameter(fresh_M)
            return
        numbers = free_numbers(config, self.layers)
        self.register_buffer("fresh_M", fresh_M)
        self.factors = self._drawn(config, lambda: make(self.layers, numbers))

    def _whiten(self, damping: float) -> None:
        """Train the angles in other coordinates from here on."""
        self.coordinates = Whitened(self.theta_P.detach(), self.metric(), damping)
        del self.theta_P

    def whiten_again(self, step: int) -> None:
        """After so many optimizer steps: where the metric is due, coordinates in which it is isotropic here.

        A function of parameters that all ranks have alike, in exact probabilities: no rank asks another.
        """
        if self.coordinates is not None and self.whitens_again and step % self._whiten_steps == 0:
            self.coordinates.restart(self.metric())

    @property
    def whitens_again(self) -> bool:
        """Whether ``whiten_again`` does anything."""
        return self.coordinates is not None and self._whiten_steps > 0

    def metric(self) -> Tensor:
        """G_PP of the angles where they stand (``tangent``)."""
        assert self.mapping is not None
        return tangent.metric(self.mapping, self.ideal_probabilities(), self._angles_tangent())

    def _angles_tangent(self) -> Tensor:
        """dp_S / d theta_P."""
        return torch.from_numpy(self._ideal_qpu().jacobian(self.angles().detach().numpy()))

    def _start(self, config: Config, numbers: int, n: int, ranks: Ranks, other: qpu.QPU | None) -> None:
        """Draw what the source starts from, so many numbers; other: the QPU of another policy's generator."""
        rng = seeding.stream(config.train.seed, "initialise", seeding.ANGLES, *self._key)
        if self.kind.runs_circuit:
            if not self.kind.trained:
                ranks = Ranks()  # measured as rank 0 does, so that all ranks have the same
            self.qpu = other or qpu.build(config.circuit, config.qpu, n, config.train.seed, ranks)
        start = self.kind.start(rng, numbers, self.qpu)
        if self.kind.trained:
            self.register_parameter(self.kind.tensor, nn.Parameter(start))
        else:
            self.register_buffer(self.kind.tensor, start)

    @property
    def kind(self) -> Source:
        """What its source is; raises UserError for none."""
        return lookup("generator.source", self.source, SOURCES)

    @property
    def _tensor(self) -> Tensor:
        """What the source starts from, and perhaps trains."""
        tensor: Tensor = getattr(self, self.kind.tensor) if self.coordinates is None else self.coordinates()
        return tensor

    def angles(self) -> Tensor:
        """theta_P of a source that measures."""
        return self._tensor

    @property
    def measures(self) -> bool:
        """Whether every evaluation runs a circuit: at angles that are trained."""
        return self.kind.runs_circuit and self.kind.trained

    @property
    def shares_circuit(self) -> bool:
        """Whether another policy's generator gives the probabilities."""
        return bool(self._beside)

    def probabilities(self) -> Tensor:
        """p_S (float64) of the source, differentiable where the source is trained."""
        if self._beside:
            return self._beside[0].probabilities()
        return self.kind.probabilities(self._tensor, self.qpu)

    def ideal_probabilities(self) -> Tensor:
        """p_S without shots and noise, the same on every rank."""
        if self._beside:
            return self._beside[0].ideal_probabilities()
        device = self._ideal_qpu() if self.measures else None
        return self.kind.probabilities(self._tensor, device)

    def source_tangent(self) -> Tensor:
        """dp_S / d(what the source trains), a column per number; none where nothing is trained."""
        if not self.kind.trained:
            return torch.zeros(len(self.ideal_probabilities()), 0, dtype=torch.float64)
        if self._beside:
            return self._beside[0].source_tangent()
        if not self.measures:
            made = torch.autograd.functional.jacobian(lambda x: self.kind.probabilities(x, None), self._tensor.detach())
            return made
        jacobian_SP = self._angles_tangent()
        return jacobian_SP if self.coordinates is None else jacobian_SP @ self.coordinates.basis_PP

    def _ideal_qpu(self) -> qpu.QPU:
        """The circuit on our exact engine."""
        assert self.qpu is not None
        return qpu.build(self._circuit, Qpu(), self.qpu.num_qubits)

    def forward(self) -> Tensor:
        """w_M; gradients flow to whatever the source and the mapping train."""
        if self.mapping is None:
            return self._weights()
        w_M: Tensor = self.mapping(self.probabilities())
        return w_M

    def _weights(self) -> Tensor:
        """w_M of a source that needs no mapping."""
        if self.factors is None:
            return self.w_M
        w_M: Tensor = self.fresh_M + self.factors()
        return w_M

    def ideal(self) -> Tensor:
        """w_M without shots and noise, the same on every rank; counts in no ledger."""
        return self.ideal_weights().detach()

    def ideal_weights(self) -> Tensor:
        """w_M without shots and noise, differentiable in the parameters; counts in no ledger."""
        w_M: Tensor = self._weights() if self.mapping is None else self.mapping(self.ideal_probabilities())
        return w_M

    def ideal_rows(self, index_N: Tensor) -> Tensor:
        """The N weights of these numbers, as ``ideal_weights`` makes them, at the price of these alone."""
        return (
            self._weights()[index_N] if self.mapping is None else self.mapping.rows(self.ideal_probabilities(), index_N)
        )

    def set_precision(self, dtype: torch.dtype) -> None:
        """Use dtype from the mapping on; angles, free numbers and probabilities stay float64."""
        if self.mapping is not None:
            self.mapping.to(dtype)
        elif self.factors is not None:
            self.factors.to(dtype)
            self.fresh_M = self.fresh_M.to(dtype)
        else:
            self.w_M.data = self.w_M.data.to(dtype)

    def counts(self) -> dict[str, int]:
        """Trained parameters of the circuit (or of the vector in its place) and of the mapping."""
        source, mapping = (sum(p.numel() for p in part) for part in (self.of_source(), self.of_mapping()))
        return {"source": source, "mapping": mapping, "total": source + mapping}

    def of_source(self) -> list[nn.Parameter]:
        """What the source trains: angles, free numbers, factors, or the weights themselves."""
        of_mapping = {id(p) for p in self.of_mapping()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in of_mapping]

    def of_mapping(self) -> list[nn.Parameter]:
        """What the mapping trains."""
        return [] if self.mapping is None else [p for p in self.mapping.parameters() if p.requires_grad]


def effective_parameters(generators: Sequence[Generator]) -> int:
    """Rank of d w_M / d(parameters) where the parameters stand, in double precision, without shots and noise.

    Directions that leave w_M as it is (an affine mapping's layers, redundant angles) do not count. Policies that share
    nothing have ranks of their own, which add up. Gradients of random combinations of the weights, their number doubled
    until the rank is below it.
    """
    if len(generators) > 1 and not generators[1].shares_circuit:
        return sum(effective_parameters([generator]) for generator in generators)
    first = generators[0]
    if first.mapping is None and first.factors is None:
        return sum(generator.num_weights for generator in generators)
    first_qpu = first.qpu
    twins: list[Generator] = copy.deepcopy(list(generators), {id(first_qpu): None})
    for twin in twins:
        twin.qpu = first._ideal_qpu() if first_qpu is not None else None
        twin.set_precision(torch.float64)
    parameters = [p for twin in twins for p in twin.parameters() if p.requires_grad]
    num_weights = sum(twin.num_weights for twin in twins)
    most = min(num_weights, sum(p.numel() for p in parameters))
    rows: list[Tensor] = []
    rng, w_M, rank = np.random.default_rng(0), torch.cat(weights(twins)), 0
    while len(rows) < most and rank == len(rows):
        for _ in range(min(max(len(rows), 64), most - len(rows))):
            v_M = torch.from_numpy(rng.normal(size=num_weights))
            grads = torch.autograd.grad(w_M, parameters, v_M, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
        rank = int(torch.linalg.matrix_rank(torch.stack(rows)))
    return rank


def several(config: Config, layers_K: Sequence[Layers], numbers: Sequence[int], ranks: Ranks) -> list[Generator]:
    """The generators of the policies with these numbers, of all with these layers; one QPU runs their circuits.

    It has as many qubits as the largest policy of all needs, so that no circuit depends on which rank runs it.
    """
    n = qubits(config, layers_K)
    made: list[Generator] = []
    for number in numbers:
        made.append(Generator(config, layers_K[number], ranks, number, made[0] if made else None, n))
    return made


def weights(generators: Sequence[Generator]) -> list[Tensor]:
    """w_M of every generator; their circuits run as one batch (``QPU.probabilities_batch``), or the one they share."""
    first = generators[0]
    if len(generators) == 1 or first.mapping is None:
        return [generator() for generator in generators]
    if first.measures and not generators[1].shares_circuit:
        assert first.qpu is not None
        p_KS = qpu.probabilities(first.qpu, torch.stack([generator.angles() for generator in generators]))
    elif generators[1].shares_circuit:
        p_KS = first.probabilities().expand(len(generators), -1)
    else:
        return [generator() for generator in generators]
    return [generator.mapping(p_S) for generator, p_S in zip(generators, p_KS, strict=True) if generator.mapping]


def qubits(config: Config, layers_K: Sequence[Layers]) -> int:
    """n of a circuit that serves policies of these layers; raises UserError for circuit.qubits that are too few."""
    m, asked = config.mapping, config.circuit.qubits
    if lookup("generator.source", config.generator.source, SOURCES).features:
        return max(1, *((free_numbers(config, layers) - 1).bit_length() for layers in layers_K))
    if lookup("mapping.kind", m.kind, KINDS).mixes:
        return asked or _as_many_states_as_angles(config)
    least = max(graph.num_qubits(sum(size for size, _ in layers), m.chunk) for layers in layers_K)
    if asked is not None and asked < least:
        raise UserError(
            f"circuit.qubits = {asked}: mapping.chunk = {m.chunk} needs {least} or more; or raise the chunk"
        )
    return asked or least


def _as_many_states_as_angles(config: Config) -> int:
    n = 2
    while 2**n < ansatz.build(config.circuit, n).num_angles:
        n += 1
    return n


def free_numbers(config: Config, layers: Layers) -> int:
    """How many numbers a control trains: generator.numbers, or as many as the circuit source does."""
    numbers = config.generator.numbers or circuit_total(config, layers)
    num_weights = sum(size for size, _ in layers)
    if numbers > num_weights:
        raise UserError(
            f"{numbers:,} free numbers are more than the policy's {num_weights:,} weights: set generator.numbers to "
            f"{num_weights} or fewer, or use generator.source direct"
        )
    return numbers


def circuit_total(config: Config, layers: Layers) -> int:
    """How many numbers the circuit source trains."""
    circuit = config.generator.model_copy(update={"source": "circuit", "whiten": None})
    return Generator(config.model_copy(update={"generator": circuit, "qpu": Qpu()}), layers).counts()["total"]


def _check(config: Config) -> None:
    """Refuse, before anything is built, what does not go together."""
    g, m, source = config.generator, config.mapping, lookup("generator.source", config.generator.source, SOURCES)
    if not source.generates or source.features:
        return
    if m.kind == "expansion" and m.output == "raw":
        raise UserError("mapping.kind expansion needs mapping.output residual or fan_in: raw is the papers' network's")
    if not source.trained and not _trains(m):
        raise UserError(
            f"generator.source {g.source} trains nothing, and mapping.kind {m.kind} with mapping.trained "
            f"{str(m.trained).lower()} neither: use another source, or a mapping that is trained"
        )
    sampled = any(config.qpu.of_rank(r).shots is not None for r in range(max(1, len(config.qpu.per_rank))))
    if m.feature == "logarithm" and sampled and source.runs_circuit:
        raise UserError(
            "mapping.feature logarithm needs exact probabilities: of a basis state that no shot found the logarithm is "
            "infinite; use linear or tanh, or set qpu.shots none"
        )


def _trains(m: MappingModel) -> bool:
    return m.trained and m.kind != "expansion"


def _check_memory(config: Config, num_weights: int, n: int, asked: bool) -> None:
    """Refuse, before anything is built, what this machine cannot hold; asked: whether so many qubits were asked for."""
    width = max((n + 1, *config.mapping.hidden))
    kind = lookup("mapping.kind", config.mapping.kind, KINDS)
    needed = 2**n * (3 * 16 + 4 * kind.floats(n, width)) + 16 * num_weights
    available = machine_memory()
    if needed > available:
        what, remedy = f" with mapping.chunk = {config.mapping.chunk}", "raise mapping.chunk"
        if kind.mixes or asked:
            what, remedy = "", "set fewer circuit.qubits"
        raise UserError(
            f"{num_weights:,} policy weights{what} take {n} qubits and about {needed / 2**30:,.0f} GiB, this machine "
            f"has {available / 2**30:,.0f}: {remedy}"
        )
