"""A net whose weights come from a generator, by torch's parametrizations.

Parametrizations, and not ``torch.func.functional_call``: they change what ``net.fc.weight`` *is*, so the net keeps its
type, its forward and its parts, and whoever calls a part of it by itself (stable-baselines3 evaluates actions without
the policy's forward) gets generated weights, too. ``functional_call`` would need a wrapper around every way in.

**What runs when.** All chosen tensors are slices of one w_M, which is kept until a parameter of source or mapping
changes: one circuit per set of parameters (per optimizer step), however many forward passes, layers or environment
steps read it, under ``no_grad`` or not. Every ``backward()`` adds one gradient of the circuit (an adjoint sweep on our
engine; the shift rule's circuits with shots), however many forward passes it goes through. So a step of Adam after
one ``backward()`` costs one circuit and one gradient.

A change is seen by the parameters' identity, version counter, memory and bytes (the last because ``.data`` writes,
as in target networks' averages, count in no version). The graph from parameters to w_M hides in one node whose
backward may run often: it keeps its inner graph. It can be differentiated once, not twice.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from distqtrl.config.run import Config
from distqtrl.config.stages import Circuit, MappingModel, Qpu
from distqtrl.errors import UserError
from distqtrl.nn import choose, sources

Net = TypeVar("Net", bound=nn.Module)
Fields = dict[str, Any]


@torch.inference_mode(False)  # parameters that are made in it could not be trained
def generate(
    net: Net,
    circuit: Circuit | Fields | Callable[..., Any] | None = None,
    mapping: MappingModel | Fields | None = None,
    *,
    layers: Iterable[str | type[nn.Module]] | None = None,
    qubits: int | None = None,
    qpu: Qpu | Fields | None = None,
    weight_shapes: sources.Shapes | None = None,
    seed: int | None = None,
    config: Config | None = None,
) -> Net:
    """The net itself, changed in place: its weights are generated, and its parameters are the generator's.

    circuit: of ours (distqtrl.config.stages.Circuit, or a dictionary of its fields), or anything callable that returns
    p_S, a tensor of 2**n probabilities: an nn.Module, or a function of parameters with these ``weight_shapes`` (a
    PennyLane QNode; 8 stands for the shape (8,), and 1 for a single number). mapping, qpu: stages of the configuration,
    likewise. qubits: how many; without mapping.chunk, as many weights per basis state as they need. layers: names and
    types of what is generated (none: see ``choose``). config: where all else comes from, generator.source (the
    controls) and train.seed included. seed: of theta and phi, in place of train.seed; torch's own generator, default
    type and default device have no part in them.

    Weights start at the spread of freshly initialised layers. Make the optimizer afterwards. Writing to a generated
    weight changes nothing (an ``orthogonal_`` writes to a copy); assigning one is an error. Raises UserError
    for a net, a source or settings that do not fit, and changes nothing then.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"{sources.WHERE}: {type(net).__name__} is not a torch.nn.Module: give one")
    found = choose.chosen(net, layers)
    sizes = choose.groups(found)
    source, network = sources.made(circuit, mapping, sizes, qubits, qpu, weight_shapes, seed, config)
    like = found[0].tensor
    weights = Weights(source, network.to(like.dtype)).to(like.device)
    weights()  # what cannot run fails while the net is as it was
    start = 0
    for c, offset in zip(found, choose.values(found), strict=True):
        piece = Slice(weights, start, c.tensor.shape, offset, owner=c is found[0])
        start += c.tensor.numel()
        _install(c.owner, c.name, piece)
    return net


class Weights(nn.Module):
    """() -> w_M of the present parameters, made once and kept until they change. ``runs`` counts how often.

    Parameters and buffers of source and mapping are its own, by flat names, and the two are no parts of it: what walks
    over a net's layers, such as an orthogonal initialisation, would take the mapping's layers for the net's.
    """

    like: Tensor

    def __init__(self, source: nn.Module, mapping: sources.Mapping) -> None:
        super().__init__()
        self.runs = 0
        self._made: _Made | None = None
        self._inner = (_Generate(source, mapping),)  # no submodule
        self._names: dict[str, str] = {}
        # The type of the weights. vector_to_parameters gives all parameters the widest one that any of them has.
        self.register_buffer("like", mapping.bits.new_empty(0), persistent=False)
        for path, module in self._inner[0].named_modules():
            for name, p in module.named_parameters(recurse=False):
                self.register_parameter(self._flat(path, name), p)
            for name, buffer in module.named_buffers(recurse=False):
                lasts = name not in module._non_persistent_buffers_set
                self.register_buffer(self._flat(path, name), buffer, persistent=lasts)

    def _flat(self, path: str, name: str) -> str:
        whole = f"{path}.{name}"
        self._names[whole] = whole.replace(".", "__")
        return self._names[whole]

    @property
    def source(self) -> Any:
        """() -> p_S; ``qpu`` is its QPU, if it is our circuit."""
        return self._inner[0].source

    @property
    def mapping(self) -> sources.Mapping:
        """p_S -> w_M."""
        return self._inner[0].mapping

    def forward(self) -> Tensor:
        if self._made is None or not self._made.holds():
            self._made = None  # the old graph goes before there is a new one
            self._made = _Made(self)
            self.runs += 1
        return self._made.w_M

    def generated(self) -> Tensor:
        """w_M with its graph, made anew."""
        tensors = {n: getattr(self, f) for n, f in self._names.items()}
        for name, t in tensors.items():
            if name.startswith("mapping.") and t.is_floating_point():
                tensors[name] = t.to(self.like.dtype)
        w_M: Tensor = torch.func.functional_call(self._inner[0], tensors, ())
        return w_M

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


class _Generate(nn.Module):
    """Mapping after source."""

    def __init__(self, source: nn.Module, mapping: sources.Mapping) -> None:
        super().__init__()
        self.source, self.mapping = source, mapping

    def forward(self) -> Tensor:
        w_M: Tensor = self.mapping(self.source().to(self.mapping.bits.device))
        return w_M


class _Made:
    """w_M, and what it was made of."""

    def __init__(self, weights: Weights) -> None:
        self._tables: tuple[dict[str, Any], ...] = (weights._parameters, weights._buffers)
        self._tensors = self._present()
        self._facts = [_facts(t) for t in self._tensors]
        self._bytes = [_Bytes(t) for t in self._tensors[: len(weights._parameters)]]
        leaves = [t for t in self._tensors if t.requires_grad]
        device = self._tensors[-1].device.type  # of a buffer of the mapping
        if device == "meta":
            raise UserError("the net was moved to the meta device: generate it on a device, then load its state_dict")
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            inner_M = weights.generated()
            self.w_M = _Node.apply([inner_M], leaves, *leaves) if inner_M.requires_grad else inner_M

    def holds(self) -> bool:
        """Whether the parameters are the same, in every sense.

        What is not trained may be another tensor of the same memory: TorchRL wraps buffers anew.
        """
        tensors = self._present()
        return (
            all(a is b or not a.requires_grad for a, b in zip(tensors, self._tensors, strict=True))
            and [_facts(t) for t in tensors] == self._facts
            and all(values.same() for values in self._bytes)
        )

    def _present(self) -> list[Tensor]:
        return [t for table in self._tables for t in table.values()]


def _facts(t: Tensor) -> tuple[int, int, bool, torch.dtype]:
    return t._version, t.data_ptr(), t.requires_grad, t.dtype


class _Bytes:
    """A tensor's values, compared with what they were; as memory, which costs a third of a microsecond."""

    def __init__(self, t: Tensor) -> None:
        self._seen = t.detach()
        self._memory = None
        if t.device.type == "cpu" and t.is_contiguous() and t.dtype != torch.bfloat16:
            self._memory = self._seen.numpy()
            self._before: Any = self._memory.tobytes()
        else:
            self._before = self._seen.clone()

    def same(self) -> bool:
        if self._memory is None:
            return torch.equal(self._seen, self._before)
        return bool(self._memory.tobytes() == self._before)


class _Node(torch.autograd.Function):
    """w_M as a function of its leaves, whose backward may run as often as wanted."""

    @staticmethod
    def forward(ctx: Any, inner: list[Tensor], leaves: list[Tensor], *same: Tensor) -> Tensor:
        ctx.inner, ctx.leaves = inner[0], leaves  # in a list, so that this graph does not go on into that one
        return inner[0].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_M: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.autograd.grad(ctx.inner, ctx.leaves, v_M, retain_graph=True, allow_unused=True)
        return None, None, *found


class Slice(nn.Module):
    """The parametrization of one tensor: its part of w_M, as a copy, so that who writes to it writes to nothing.

    The first slice of a net is the owner: parameters appear there, once, in ``parameters()`` and ``state_dict()``.
    """

    offset: Tensor | None

    def __init__(self, weights: Weights, start: int, shape: torch.Size, offset: Tensor | None, owner: bool) -> None:
        super().__init__()
        if owner:
            self.weights = weights
        self._weights = (weights,)  # no submodule
        self._start, self._shape, self._installed = start, shape, False
        self.register_buffer("offset", offset)

    def forward(self) -> Tensor:
        return _uncompiled(self)

    def read(self) -> Tensor:
        """The tensor."""
        w_M = self._weights[0]()
        part = w_M[self._start : self._start + self._shape.numel()].clone().view(self._shape)
        return part if self.offset is None else part + self.offset

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """There is nothing to keep of the tensor that is replaced; afterwards none can be put in its place."""
        if self._installed:
            raise UserError("this weight is generated and cannot be assigned: train the generator's parameters instead")
        return ()


def generators(net: nn.Module) -> list[Weights]:
    """What generates weights in a net: its ``runs``, ``source`` (``source.qpu.ledger`` of our circuit), ``mapping``."""
    return [module for module in net.modules() if isinstance(module, Weights)]


_disabled: Callable[[Slice], Tensor] | None = None


def _uncompiled(piece: Slice) -> Tensor:
    """The tensor, outside of what torch.compile compiles: a circuit is no graph of tensors."""
    global _disabled
    if _disabled is None:  # not at import: it loads the compiler, as every optimizer of torch does
        _disabled = torch.compiler.disable(Slice.read, reason="weights of distqtrl.nn are generated by a circuit")
    return _disabled(piece)


def _install(owner: nn.Module, name: str, piece: Slice) -> None:
    piece._installed = False
    parametrize.register_parametrization(owner, name, piece, unsafe=True)  # what it checks, it checks by a circuit run
    piece._installed = True
    _copyable(type(owner))
    if isinstance(owner, nn.RNNBase):
        _forget(owner)
        if _forget not in owner._forward_hooks.values():
            owner.register_forward_hook(_forget)


def _forget(rnn: nn.Module, *_: Any) -> None:
    """Recurrent layers keep the tensors of their last call, which could not be copied; they read them again anyway."""
    rnn._flat_weights = [None] * len(rnn._flat_weights)  # type: ignore[arg-type, assignment]


def _copyable(kind: Any) -> None:
    """Let layers of a class that torch made for one parametrized layer be pickled and copied.

    Torch's refuse to be pickled, and their copies share the class: undoing a copy's parametrization ends the other's.
    """
    kind.__reduce_ex__, kind.__setstate__ = _reduced, _restore
    if "__deepcopy__" in vars(kind):
        del kind.__deepcopy__


def _reduced(layer: nn.Module, protocol: int) -> tuple[Any, ...]:
    """How a layer is pickled and copied: as its own class, whose tensors are parametrized again."""
    state = {key: value for key, value in layer.__dict__.items() if key != "_flat_weight_refs"}
    return _new, (type(layer).__bases__[0], tuple(layer.parametrizations)), state  # type: ignore[arg-type]


def _new(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty layer with these tensors parametrized, as ``register_parametrization`` does it."""
    layer = kind.__new__(kind)
    parametrize._inject_new_class(layer)
    for name in names:
        parametrize._inject_property(layer, name)
    _copyable(type(layer))
    return layer


def _restore(layer: nn.Module, state: dict[str, Any]) -> None:
    layer.__dict__.update(state)
    if isinstance(layer, nn.RNNBase):
        gone = weakref.ref(torch.empty(0))  # whose tensor is none of the layer's: it reads them again
        layer._flat_weight_refs = [gone for _ in layer._flat_weights_names]  # type: ignore[misc]
