"""Sources of probabilities, () -> p_S in float64, and the mapping that makes weights of them.

The one module that knows how the rest of the package generates weights.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Table
from typing import Any

import torch
from torch import Tensor, nn

from distqtrl import seeding
from distqtrl.circuit import qpu
from distqtrl.config.run import Config, validated
from distqtrl.config.values import Stage, whole
from distqtrl.defaults import torch_defaults
from distqtrl.errors import UserError, shortened
from distqtrl.generator.controls import SOURCES, fresh_weights
from distqtrl.generator.generator import Generator
from distqtrl.mapping.model import Mapping as Mapping

WHERE = "distqtrl.nn.generate"
MOST_QUBITS = 40
Shapes = Table[str, int | Sequence[int]]
Settings = Stage | dict[str, Any] | None
Layers = list[tuple[int, int]]


class Circuit(nn.Module):
    """Our circuit, or the control in its place: () -> p_S. It runs in float64, wherever theta_P is."""

    def __init__(self, config: Config, generator: Generator) -> None:
        super().__init__()
        self.control: Generator | None = None
        self._config, self._qpu = config, generator.qpu
        self.coordinates = generator.coordinates
        if generator.source == "circuit":
            if self.coordinates is None:
                self.theta_P = generator.theta_P
            assert self._qpu is not None
            self.num_qubits = self._qpu.num_qubits
        else:
            generator.qpu = None  # it was measured
            self.control = generator

    @property
    def qpu(self) -> qpu.QPU:
        """With its ledger, which counts circuits and gradients."""
        if self._qpu is None:
            self._qpu = qpu.build(self._config.circuit, self._config.qpu, self.num_qubits, self._config.train.seed)
        return self._qpu

    def forward(self) -> Tensor:
        if self.control is not None:
            return self.control.probabilities()
        theta_P = self.theta_P if self.coordinates is None else self.coordinates()
        return qpu.probabilities(self.qpu, theta_P.double().cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_qpu": None}  # devices are made anew


class Foreign(nn.Module):
    """Anyone's () -> p_S, or a function (such as a PennyLane QNode) of parameters that are made here.

    shapes: of those parameters, by the names of the function's arguments, as PennyLane's TorchLayer takes them; they
    start uniform in +-pi, in float64.
    """

    def __init__(self, source: Callable[..., Any], shapes: Shapes, seed: int) -> None:
        super().__init__()
        rng = seeding.stream(seed, "initialise", seeding.ANGLES)
        angles = {
            name: torch.as_tensor(rng.uniform(-math.pi, math.pi, shape), device="cpu")
            for name, shape in _sizes(shapes).items()
        }
        self.source = source
        self._name = getattr(source, "__name__", type(source).__name__)
        called = source.forward if isinstance(source, nn.Module) else source
        try:
            inspect.signature(called).bind(**angles)
        except TypeError as error:
            raise UserError(
                f"the source {self._name} cannot be called ({error}): give weight_shapes, a shape for every argument, "
                'such as {"theta": (3, 8)}'
            ) from None
        except ValueError:
            pass  # it has no signature
        try:
            self.angles = nn.ParameterDict(angles)
        except (KeyError, TypeError) as error:
            raise UserError(f"{WHERE}: weight_shapes: {error.args[0]}: rename that argument of {self._name}") from None

    def forward(self) -> Tensor:
        p_S = self.source(**self.angles)
        self._refuse(p_S)
        p: Tensor = p_S.double()
        return p

    def _refuse(self, p_S: Any) -> None:
        """Raise UserError for what is not a distribution over basis states, or cannot be trained."""
        name = f"the source {self._name}"
        if not isinstance(p_S, Tensor) or not p_S.is_floating_point() or p_S.dim() != 1:
            what = f"a {p_S.dtype} of shape {tuple(p_S.shape)}" if isinstance(p_S, Tensor) else type(p_S).__name__
            raise UserError(f"{name} returned {what}: return p_S, a tensor of 2**n probabilities")
        if len(p_S) < 2 or len(p_S).bit_count() != 1:
            raise UserError(f"{name} returned {len(p_S)} probabilities: return one for every basis state, 2**n")
        p, tolerance = p_S.detach().double(), 1e-6 if p_S.dtype == torch.float64 else 1e-3
        total, least = float(p.sum()), float(p.min())
        if not (least >= -tolerance and abs(total - 1) <= tolerance):  # also NaN
            raise UserError(f"{name} returned an invalid distribution: sum {total:.9g}, smallest {least:.3g}")
        trained = any(p.requires_grad for p in self.parameters())
        if torch.is_grad_enabled() and p_S.requires_grad != trained:
            if trained:
                raise UserError(f"{name} returned probabilities without a graph: its parameters could not be trained")
            raise UserError(
                f"{name} depends on parameters that it does not own: make it a torch.nn.Module that registers them, or "
                "give weight_shapes"
            )


def _sizes(shapes: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a table, in which a number is the length of a vector, and 1 a single number; raises UserError."""
    remedy = 'give a shape for every argument, such as {"theta": (3, 8)} or {"theta": 8}'
    if not isinstance(shapes, Table):
        raise UserError(f"{WHERE}: weight_shapes = {shortened(shapes)}: {remedy}")
    found: dict[str, tuple[int, ...]] = {}
    for name, given in shapes.items():
        length = whole(given)
        sizes = list(given) if length is None and isinstance(given, Iterable) else [] if length == 1 else [given]
        shape = tuple(size for size in map(whole, sizes) if size is not None and size > 0)
        if len(shape) < len(sizes):
            raise UserError(f"{WHERE}: weight_shapes: {name} = {shortened(given)}: {remedy}")
        found[name] = shape
    return found


def made(
    circuit: Settings | Callable[..., Any],
    mapping: Settings,
    layers: Layers,
    qubits: int | None,
    qpu: Settings,
    weight_shapes: Shapes | None,
    seed: int | None,
    config: Config | None,
) -> tuple[nn.Module, Mapping]:
    """Source and calibrated mapping of what ``generate`` is given; raises UserError."""
    free = config is None and (mapping is None or (isinstance(mapping, dict) and "chunk" not in mapping))
    if circuit is None or isinstance(circuit, dict | Stage):
        if weight_shapes is not None:
            raise UserError(f"{WHERE}: weight_shapes are for a source of your own: remove them")
        return _own(configured(config, seed, circuit=circuit, mapping=mapping, qpu=qpu), layers, qubits, free)
    for name, value in (("qubits", qubits), ("qpu", qpu)):
        if value is not None:
            raise UserError(f"{WHERE}: {name} = {value} is for our circuits, not for a source of your own: remove it")
    if isinstance(circuit, Config):
        raise UserError(f"{WHERE}: a whole configuration goes to config, circuit takes its stage")
    if not callable(circuit):
        raise UserError(f"{WHERE}: circuit = {shortened(circuit)} is neither settings nor a source that can be called")
    shapes = {} if weight_shapes is None else weight_shapes
    return _foreign(configured(config, seed, mapping=mapping), layers, circuit, shapes, free)


def configured(config: Config | None, seed: int | None, where: str = WHERE, **stages: Any) -> Config:
    """A configuration with fields of these stages, models or dictionaries, replaced; raises UserError.

    where: who was called, for its line.
    """
    if config is not None and not isinstance(config, Config):
        raise UserError(
            f"{where}: config = {shortened(config)}: give a distqtrl.Config, made with distqtrl.preset or distqtrl.read"
        )
    values = (config or Config()).model_dump()
    if seed is not None:
        values["train"]["seed"] = seed
    for name, fields in stages.items():
        if fields is not None and not isinstance(fields, dict | Stage):
            raise UserError(
                f"{where}: {name} = {shortened(fields)}: give a dictionary of fields, or the configuration's model"
            )
        values[name] |= fields.model_dump() if isinstance(fields, Stage) else fields or {}
    return validated(values, where)


def _own(config: Config, layers: Layers, qubits: int | None, free: bool) -> tuple[nn.Module, Mapping]:
    """Circuit and mapping of a configuration, as the command line makes them."""
    if not SOURCES[config.generator.source].generates:
        raise UserError(f"{WHERE}: generator.source = {config.generator.source} generates nothing: leave the net alone")
    if config.generator.whiten == "every":
        raise UserError(f"{WHERE}: generator.whiten every needs to be told of optimizer steps: use start")
    if qubits is not None:
        given, qubits = qubits, whole(qubits)
        if qubits is None:
            raise UserError(f"{WHERE}: qubits = {shortened(given)}: give a whole number, 1 to {MOST_QUBITS}")
        config = _enough(config, layers, qubits, free, f"qubits = {qubits}")
    with torch_defaults():
        generator = Generator(config, layers, num_qubits=qubits or 0)
    mapping, generator.mapping = generator.mapping, None
    assert mapping is not None
    return Circuit(config, generator), mapping


def _foreign(
    config: Config, layers: Layers, source: Callable[..., Any], shapes: Shapes, free: bool
) -> tuple[nn.Module, Mapping]:
    """Anyone's source, and a mapping that is calibrated on it."""
    made = Foreign(source, shapes, config.train.seed)
    with torch.enable_grad():
        p_S = made()
    n = len(p_S).bit_length() - 1
    config = _enough(config, layers, n, free, f"the source's {len(p_S)} probabilities")
    with torch_defaults(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.integer(config.train.seed, "initialise", seeding.WEIGHTS))
        mapping = Mapping(config.mapping, layers, n)
        torch.manual_seed(seeding.integer(config.train.seed, "initialise", seeding.WEIGHTS))
        fresh_M = fresh_weights(layers)
        mapping.calibrate(p_S.detach().cpu(), fresh_M)
    return made, mapping


def _enough(config: Config, layers: Layers, qubits: int, free: bool, what: str) -> Config:
    """The configuration with a chunk for which so many qubits are enough: the least where it is free."""
    num_weights = sum(size for size, _ in layers)
    least = math.ceil(num_weights / 2**qubits) if qubits > 0 else 0
    if not 0 < qubits <= MOST_QUBITS:
        raise UserError(f"{WHERE}: {what}: use 1 to {MOST_QUBITS} qubits")
    if free:
        return configured(config, None, mapping={"chunk": least})
    if config.mapping.chunk < least:
        raise UserError(
            f"{WHERE}: {what} with mapping.chunk = {config.mapping.chunk}: {num_weights:,} weights need {least} or more"
        )
    return config
