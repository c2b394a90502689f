"""Which tensors of a net are generated, and the scale they start at.

Unless told, these are weights and biases of the layers in ``LAYERS`` that are trained (``requires_grad``). Everything
else stays as it is and goes on being trained directly: norm layers, embeddings, and loose parameters such as a
policy's log_std, because what they start at is a value (one, the user's), not a distribution of width 1/sqrt(fan_in).
Who names such a tensor gets it generated around its present value.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from distqtrl.errors import UserError, nearest, shortened

LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
OLD_STYLE = ("_orig", "_g", "_v")  # what hooks of torch.nn.utils (weight_norm, spectral_norm, prune) rename a tensor to


@dataclass(frozen=True)
class Chosen:
    """A tensor that will be generated. around: its values are added to what is generated."""

    owner: nn.Module
    name: str
    path: str
    fan_in: int
    around: bool

    @property
    def tensor(self) -> Tensor:
        return getattr(self.owner, self.name)


def chosen(net: nn.Module, wanted: Iterable[str | type[nn.Module]] | None) -> list[Chosen]:
    """The tensors, in the order of ``net.parameters()``.

    wanted: names of modules (all that is in them) or of tensors, and types of modules; none = the default. Raises
    UserError for names that do not exist and for tensors that cannot be generated.
    """
    for path, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{path or 'the net'} is compiled, and keeps its weights: give it as it was before torch.jit"
            )
    if isinstance(wanted, str | type) or not isinstance(wanted, Iterable | None):
        wanted = [wanted]
    places = [Chosen(owner, name, path, *_start(owner, name, p)) for owner, name, path, p in _parameters(net)]
    if not places:
        raise UserError(f"{type(net).__name__} has no parameters that could be generated")
    found = _named(net, places, list(wanted)) if wanted is not None else [p for p in places if _usual(p)]
    if not found:
        what = "layer to generate, such as Linear or Conv2d" if wanted is None else "parameters in what is named"
        raise UserError(f"{type(net).__name__} has no {what}: name what to generate in layers")
    _refuse(places, found)
    return found


def groups(found: list[Chosen]) -> list[tuple[int, int]]:
    """(number of weights, fan-in) of every layer: tensors of one module that start at one scale go together."""
    runs = groupby(found, key=lambda c: (id(c.owner), c.fan_in))
    return [(sum(c.tensor.numel() for c in run), fan_in) for (_, fan_in), run in runs]


def _parameters(net: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """Every tensor once per module that has it, also where it is made by a parametrization, whose own are left out."""
    lists = [module for module in net.modules() if isinstance(module, parametrize.ParametrizationList)]
    inner = {id(module) for made in lists for module in made.modules()}
    for prefix, module in net.named_modules():
        for name in [] if id(module) in inner else _names(module):
            yield module, name, f"{prefix}.{name}".lstrip("."), getattr(module, name)


def _names(module: nn.Module) -> list[str]:
    made = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
    return [*made, *(name for name, p in module._parameters.items() if p is not None)]


def _start(owner: nn.Module, name: str, p: Tensor) -> tuple[int, bool]:
    """The fan-in by which torch draws fresh weights of the layer, and whether there is none, only a present value."""
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return owner.hidden_size, False
    if isinstance(owner, nn.MultiheadAttention):
        return owner.embed_dim, False
    weight = getattr(owner, "weight", None) if isinstance(owner, LAYERS) else p
    if is_lazy(p) or not isinstance(weight, Tensor) or is_lazy(weight) or weight.dim() < 2:
        return 1 if is_lazy(p) else max(1, p.numel()), True
    return nn.init._calculate_fan_in_and_fan_out(weight)[0], not isinstance(owner, LAYERS)


def _usual(c: Chosen) -> bool:
    return isinstance(c.owner, LAYERS) and c.tensor.requires_grad


def _named(net: nn.Module, places: list[Chosen], wanted: list[str | type[nn.Module]]) -> list[Chosen]:
    modules = dict(net.named_modules(remove_duplicate=False))
    inside: set[int] = set()
    tensors: set[str] = set()
    for item in wanted:
        if isinstance(item, type):
            matches = [module for module in modules.values() if isinstance(module, item)]
            if not matches:
                kinds = sorted({type(module).__name__ for module in modules.values()})
                raise UserError(f"layers: there is no {item.__name__} in the net: it has {', '.join(kinds)}")
            inside |= {id(m) for module in matches for m in module.modules()}
        elif not isinstance(item, str):
            raise UserError(
                f"layers: {shortened(item)} is neither the name nor the type of a layer: names are "
                'strings, such as "0" or "0.weight"'
            )
        elif item in modules:
            inside |= {id(m) for m in modules[item].modules()}
        else:
            aliases = {f"{path}.{name}".lstrip("."): m for path, m in modules.items() for name in _names(m)}
            if item not in aliases:
                known = filter(None, [*modules, *aliases])  # the net itself has no name
                raise UserError(f"layers: there is no '{item}' in the net: {nearest(item, known)}")
            tensors |= {c.path for c in places if c.owner is aliases[item] and c.name == item.rpartition(".")[2]}
    return [c for c in places if id(c.owner) in inside or c.path in tensors]


def _refuse(places: list[Chosen], found: list[Chosen]) -> None:
    """Raise UserError for what cannot be generated."""
    paths: dict[int, list[str]] = {}
    for c in places:
        paths.setdefault(id(c.owner._parameters.get(c.name, c)), []).append(c.path)
    for c in found:
        p = c.tensor
        if parametrize.is_parametrized(c.owner):
            raise UserError(
                f"{c.path} belongs to a layer that is parametrized already: generate first, undo it with "
                "torch.nn.utils.parametrize.remove_parametrizations, or leave the layer out"
            )
        if c.name.endswith(OLD_STYLE) and hasattr(c.owner, c.name.rpartition("_")[0]):
            raise UserError(f"{c.path} is computed by a hook of torch.nn.utils already: remove it, then generate")
        if is_lazy(p):
            raise UserError(f"{c.path} has no shape yet: call the net once on an observation, then generate")
        if p.is_meta:
            raise UserError(f"{c.path} is on the meta device: call net.to_empty(device='cpu'), then generate")
        if len(paths[id(p)]) > 1:
            raise UserError(f"{' and '.join(paths[id(p)])} are one shared tensor: untie them, or leave them out")
        if not p.is_floating_point():
            raise UserError(f"{c.path} is {p.dtype}: only real floating point numbers can be generated")
    kinds = {(c.tensor.dtype, c.tensor.device) for c in found}
    if len(kinds) > 1:
        words = " and ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise UserError(f"the chosen weights are {words}: bring them to one, or generate each part for itself")
    for size, fan_in in groups(found):
        if size == 1:
            path = next(c.path for c in found if c.tensor.numel() == 1 and c.fan_in == fan_in)
            raise UserError(f"{path} is a single number, which has no spread to start at: leave it out of layers")


def values(found: list[Chosen]) -> list[Tensor | None]:
    """The present values of what is generated around them, else none."""
    return [c.tensor.detach().clone(memory_format=torch.contiguous_format) if c.around else None for c in found]
