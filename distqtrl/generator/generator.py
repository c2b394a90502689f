"""circuit ∘ mapping as one module, () -> w_M, or a control (``controls``) in its place."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.circuit import qpu
from distqtrl.circuit.memory import machine_memory
from distqtrl.circuit.shift import Ranks
from distqtrl.config.run import Config
from distqtrl.config.stages import Qpu
from distqtrl.errors import UserError, lookup
from distqtrl.generator import names
from distqtrl.generator.controls import SOURCES, Layers, Source, fresh_weights
from distqtrl.mapping import graph
from distqtrl.mapping.model import KINDS, Mapping


class Generator(nn.Module):
    """() -> w_M. ``layers`` holds (number of weights, fan-in) of every policy layer.

    Equal configurations give equal parameters on every rank; p_S and w_M differ between ranks when QPUs do or draw
    shots. Raises UserError for a circuit or QPU that does not exist, cannot do what is asked, or needs more memory
    than there is.

    number: of the policy among several, which draw their own parameters. beside: another policy's generator, whose QPU
    this one uses, too, and with agents.sharing shared_circuit also its probabilities. num_qubits: at least so many.
    """

    w_M: nn.Parameter  # of a source that generates nothing
    theta_P: nn.Parameter  # of one that measures

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
        self._key = (number,) if number else ()
        self._beside = [] if beside is None or config.agents.sharing != "shared_circuit" else [beside]  # no submodule
        self._circuit = config.circuit
        self.source, self.layers = config.generator.source, tuple(layers)
        self.num_weights = sum(size for size, _ in layers)
        self.qpu: qpu.QPU | None = None
        self.mapping: Mapping | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.integer(config.train.seed, "initialise", 0, *self._key))
            if not self.kind.generates:
                self.w_M = nn.Parameter(fresh_weights(layers))
                return
            _check_memory(config, self.num_weights)
            self.mapping = Mapping(config.mapping, layers, num_qubits)
        if self._beside:
            self.qpu = self._beside[0].qpu
        else:
            self._start(config, self.mapping.num_qubits, ranks or Ranks(), None if beside is None else beside.qpu)
        with torch.no_grad():
            self.mapping.calibrate(self._ideal_probabilities())

    def _start(self, config: Config, n: int, ranks: Ranks, other: qpu.QPU | None) -> None:
        """Draw what the source starts from; other: the QPU of another policy's generator."""
        rng = seeding.stream(config.train.seed, "initialise", 1, *self._key)
        if self.kind.runs_circuit:
            if not self.kind.trained:
                ranks = Ranks()  # measured as rank 0 does, so that all ranks have the same
            self.qpu = other or qpu.build(config.circuit, config.qpu, n, config.train.seed, ranks)
        start = self.kind.start(rng, 2**n, self.qpu)
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
        tensor: Tensor = getattr(self, self.kind.tensor)
        return tensor

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

    def _ideal_probabilities(self) -> Tensor:
        """p_S without shots and noise, the same on every rank."""
        if self._beside:
            return self._beside[0]._ideal_probabilities()
        device = self._ideal_qpu() if self.measures else None
        return self.kind.probabilities(self._tensor, device)

    def _ideal_qpu(self) -> qpu.QPU:
        """The circuit on our exact engine."""
        assert self.qpu is not None
        return qpu.build(self._circuit, Qpu(), self.qpu.num_qubits)

    def forward(self) -> Tensor:
        """w_M; gradients flow to whatever the source and the mapping train."""
        if self.mapping is None:
            return self.w_M
        w_M: Tensor = self.mapping(self.probabilities())
        return w_M

    def ideal(self) -> Tensor:
        """w_M without shots and noise, the same on every rank; counts in no ledger."""
        w_M: Tensor = self.w_M if self.mapping is None else self.mapping(self._ideal_probabilities())
        return w_M.detach()

    def set_precision(self, dtype: torch.dtype) -> None:
        """Use dtype from the mapping on; angles, free numbers and probabilities stay float64."""
        if self.mapping is None:
            self.w_M.data = self.w_M.data.to(dtype)
        else:
            self.mapping.to(dtype)

    def counts(self) -> dict[str, int]:
        """Trained parameters of the circuit (or of the vector in its place) and of the mapping."""
        total = sum(p.numel() for p in self.parameters())
        mapping = 0 if self.mapping is None else sum(p.numel() for p in self.mapping.parameters())
        return {"source": total - mapping, "mapping": mapping, "total": total}


def effective_parameters(generators: Sequence[Generator]) -> int:
    """Rank of d w_M / d(parameters) where the parameters stand, in double precision, without shots and noise.

    Directions that leave w_M as it is (an affine mapping's layers, redundant angles) do not count. Policies that share
    nothing have ranks of their own, which add up. Gradients of random combinations of the weights, their number doubled
    until the rank is below it.
    """
    if len(generators) > 1 and not generators[1].shares_circuit:
        return sum(effective_parameters([generator]) for generator in generators)
    first = generators[0]
    if first.mapping is None:
        return sum(generator.num_weights for generator in generators)
    first_qpu = first.qpu
    twins: list[Generator] = copy.deepcopy(list(generators), {id(first_qpu): None})
    for twin in twins:
        twin.qpu = first._ideal_qpu() if first_qpu is not None else None
        twin.set_precision(torch.float64)
    parameters = [p for twin in twins for p in twin.parameters()]
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
    chunk = config.mapping.chunk
    n = max(graph.num_qubits(sum(size for size, _ in layers), chunk) for layers in layers_K)
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
        p_KS = qpu.probabilities(first.qpu, torch.stack([generator.theta_P for generator in generators]))
    elif generators[1].shares_circuit:
        p_KS = first.probabilities().expand(len(generators), -1)
    else:
        return [generator() for generator in generators]
    return [generator.mapping(p_S) for generator, p_S in zip(generators, p_KS, strict=True) if generator.mapping]


def _check_memory(config: Config, num_weights: int) -> None:
    """Refuse, before anything is built, what this machine cannot hold."""
    n = graph.num_qubits(num_weights, config.mapping.chunk)
    width = max((n + 1, *config.mapping.hidden))
    values = lookup("mapping.kind", config.mapping.kind, KINDS).floats(n, width)
    needed = 2**n * (3 * 16 + 4 * values) + 16 * num_weights
    available = machine_memory()
    if needed > available:
        raise UserError(
            f"{num_weights:,} policy weights with mapping.chunk = {config.mapping.chunk} take {n} qubits and about "
            f"{needed / 2**30:,.0f} GiB, this machine has {available / 2**30:,.0f}: raise mapping.chunk"
        )
