"""A trained net of anyone's as our policy: what the integer program and the exports are made of.

It must be an MLP: Linear layers with ReLU or Tanh between them, one kind of the two. What is dropout, identity or
flattening is passed over; whatever else there is gets named.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from distqtrl.config.stages import Environment
from distqtrl.environment.single import Single
from distqtrl.environment.spaces import Spaces
from distqtrl.errors import UserError, shortened
from distqtrl.nn.sources import configured
from distqtrl.policy import network
from distqtrl.policy.distribution import Categorical, Factored, Gaussian, Head, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.policy.policy_file import MOST_SEEN, Policy

PASSED = (nn.Identity, nn.Flatten, nn.Dropout)
ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh"}
WHERE = "distqtrl.nn.policy"
CLOSE = 1e-3  # of two computations in single precision, in units of the largest output
Named = tuple[str, nn.Module]


def policy(
    net: nn.Module | Iterable[nn.Module],
    environment: str | dict[str, Any] | Environment,
    *,
    observations: tuple[np.ndarray, np.ndarray] | None = None,
    actions: Literal["environment", "unit"] = "environment",
) -> Policy:
    """The policy that acts greedily as this net does: ``policy.act(obs_BO)``, ``policy.save(path)`` for an export.

    net: a Sequential, the modules themselves in order, or stable-baselines3's actor-critic policy with an MLP;
    generated weights are taken as they stand. environment: Gymnasium's id, or more of the stage of that name.
    observations: mean (O,) and variance (O,) with which the net's inputs were normalised, if they were. actions: a
    continuous net's outputs are in the environment's units, or in units of half the range around its middle; a net
    that ends in Tanh fills the range. Several choices at once (MultiDiscrete, MultiBinary) take a logit for every
    choice, one factor's after the other's. Where the environment observes an action_mask, the net reads what is beside
    it, and rows of ``act`` end in it.

    Raises UserError that names every layer that cannot be exported, weights that are no finite numbers, or widths that
    do not fit the environment.
    """
    if actions not in ("environment", "unit"):
        raise UserError(f"actions = {shortened(actions)}: write environment or unit")
    stage = {"id": environment} if isinstance(environment, str) else environment
    if not isinstance(stage, Environment) and not (isinstance(stage, dict) and "id" in stage):
        raise UserError(
            f'{WHERE}: environment = {shortened(stage)}: give the id of Gymnasium, such as "CartPole-v1", or a '
            'dictionary with it: {"id": "CartPole-v1"}'
        )
    config = configured(None, None, WHERE, environment=stage).environment
    single = Single(config)
    spaces = single.spaces[0]
    single.close()
    named = list(_layers(net))
    linears, activation, squashed = _mlp(net, named, spaces)
    head = _head(spaces, squashed or getattr(net, "squash_output", False) is True)
    layers = [_numbers(name, module) for name, module in named if isinstance(module, nn.Linear)]
    widths = (linears[0].in_features, *(layer.out_features for layer in linears))
    _refuse_widths(widths, spaces, head, config.id)
    architecture = Architecture(widths[0], widths[1:-1], widths[-1], activation)
    _refuse_other_forward(net, layers, architecture, squashed)
    if isinstance(head, Gaussian) and actions == "environment":
        layers[-1] = _in_units(*layers[-1], head)
    w_M = torch.cat([part.flatten() for layer in layers for part in layer])
    normalizer = Normalizer.fresh(widths[0])
    if observations is not None:
        normalizer = Normalizer(1.0, *_moments(observations, widths[0]))
    return Policy(architecture, head, w_M, normalizer, config.model_dump(mode="json"), {"source": "distqtrl.nn"})


def _moments(given: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (O,) and variance (O,) of observations, as they were given."""
    try:
        mean_O, variance_O = (np.asarray(values, np.float64) for values in given)
    except (TypeError, ValueError):  # not two, or no numbers
        mean_O = variance_O = np.empty(0)
    held = (np.abs(mean_O) <= MOST_SEEN).all() and ((variance_O >= 0) & (variance_O <= MOST_SEEN)).all()
    if (mean_O.shape, variance_O.shape) != ((width,), (width,)) or not held:
        raise UserError(
            f"observations: give mean and variance of {width} numbers each, none beyond {MOST_SEEN:g}, "
            "no variance below 0"
        )
    return mean_O, variance_O


def _layers(net: Any) -> Iterator[Named]:
    """What computes the actions, in order."""
    if hasattr(net, "mlp_extractor") and hasattr(net, "action_net"):  # stable-baselines3
        if type(net.pi_features_extractor).__name__ != "FlattenExtractor":
            yield "pi_features_extractor", net.pi_features_extractor
        yield from _inside("mlp_extractor.policy_net", net.mlp_extractor.policy_net)
        yield from _inside("action_net", net.action_net)
    elif not isinstance(net, nn.Module | Iterable):
        raise UserError(
            f"{WHERE}: {shortened(net)} is not a network: give a Sequential, or a list of its layers in order"
        )
    elif isinstance(net, nn.Sequential | nn.Linear) or not isinstance(net, nn.Module):
        parts = net.children() if isinstance(net, nn.Sequential) else [net] if isinstance(net, nn.Module) else net
        for number, module in enumerate(parts):
            yield from _inside(str(number), module)
    else:
        raise UserError(
            f"{type(net).__name__} computes its actions in a forward of its own, which cannot be exported: give the "
            "Sequential in it that does, or a list of its layers in order"
        )


def _inside(name: str, module: nn.Module) -> Iterator[Named]:
    if isinstance(module, nn.Sequential):
        for child, inner in module.named_children():
            yield from _inside(f"{name}.{child}", inner)
    elif not isinstance(module, PASSED):
        yield name, module


def _mlp(net: Any, named: list[Named], spaces: Spaces) -> tuple[list[nn.Linear], str, bool]:
    """Its Linear layers, the activation between them, and whether a Tanh ends it; names all that is none of it."""
    wrong: list[str] = []
    between = [name for kind, name in ACTIVATIONS.items() for _, m in named[:-1] if isinstance(m, kind)]
    first = next((kind for _, m in named[:-1] for kind in ACTIVATIONS if isinstance(m, kind)), nn.ReLU)
    squashed = bool(named) and isinstance(named[-1][1], nn.Tanh) and bool(spaces.low)
    for position, (name, module) in enumerate(named):
        before = named[position - 1][1] if position else None
        what = f"{name} ({_kind(module)})"
        if isinstance(module, nn.Linear):
            if isinstance(before, nn.Linear):
                wrong.append(f"{what} follows a Linear without ReLU or Tanh between them")
        elif not isinstance(module, tuple(ACTIVATIONS)):
            wrong.append(f"{what} is neither Linear, ReLU nor Tanh")
        elif not isinstance(before, nn.Linear):
            wrong.append(f"{what} follows no Linear")
        elif position == len(named) - 1:
            if not squashed:
                wrong.append(f"{what} comes after the last Linear")
        elif not isinstance(module, first):
            wrong.append(f"{what} differs from the {first.__name__} before it")
    linears = [module for _, module in named if isinstance(module, nn.Linear)]
    if not linears:
        wrong.append("there is no Linear")
    if wrong:
        raise UserError(f"{type(net).__name__} cannot be exported: {'; '.join(wrong)}")
    return linears, between[0] if between else "relu", squashed


def _kind(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def _head(spaces: Spaces, squashed: bool) -> Head:
    if spaces.low:
        return (SquashedGaussian if squashed else Gaussian)(spaces.low, spaces.high)
    if spaces.num_actions is None:
        return Factored(spaces.factors, spaces.starts, spaces.masked)
    return Categorical(spaces.num_actions, spaces.action_start, spaces.masked)


def _refuse_widths(widths: tuple[int, ...], spaces: Spaces, head: Head, name: str) -> None:
    if (widths[0], widths[-1]) != (spaces.num_observations, head.num_outputs):
        choices = f", a logit for every choice among {', '.join(map(str, spaces.factors))}" if spaces.factors else ""
        raise UserError(
            f"the net takes {widths[0]} numbers and gives {widths[-1]}; {name} has {spaces.num_observations} "
            f"observations and needs {head.num_outputs} outputs{choices}"
        )


def _numbers(name: str, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias, in double precision; raises UserError for what no policy file holds."""
    if is_lazy(layer.weight) or layer.weight.is_meta:
        raise UserError(f"{name} ({_kind(layer)}) has no weights yet: call the net, or load its weights, before")
    if layer.weight.is_complex():
        raise UserError(f"{name} ({_kind(layer)}) has complex weights, a policy file holds real ones: build a real net")
    weight = layer.weight.detach().double().cpu()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().cpu()
    if not (weight.float().isfinite().all() and bias.float().isfinite().all()):
        raise UserError(
            f"{name} ({_kind(layer)}) has weights that are not finite in single precision: train the net again, "
            "with a lower learning rate, or take it from before they became so"
        )
    return weight, bias


def _in_units(weight: Tensor, bias: Tensor, head: Gaussian) -> tuple[Tensor, Tensor]:
    """The layer in units of half the range around its middle."""
    low_A, high_A = torch.tensor(head.low, dtype=torch.float64), torch.tensor(head.high, dtype=torch.float64)
    half_A, middle_A = (high_A - low_A) / 2, (high_A + low_A) / 2
    half_A = torch.where(half_A > 0, half_A, 1.0)  # an action that cannot change
    return weight / half_A.unsqueeze(1), (bias - middle_A) / half_A


def _refuse_other_forward(
    net: Any, layers: list[tuple[Tensor, Tensor]], architecture: Architecture, squashed: bool
) -> None:
    """A Sequential's subclass may do something else with its parts: compare."""
    if not isinstance(net, nn.Sequential) or type(net).forward is nn.Sequential.forward:
        return
    like, training = next(iter(net.parameters())), {part: part.training for part in net.modules()}
    obs_BO = torch.randn(16, architecture.num_inputs, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            theirs = net.eval()(obs_BO.to(like.device, like.dtype)).double().cpu()
        finally:
            for part, mode in training.items():
                part.training = mode
        ours = network.outputs(architecture, layers, obs_BO.double())
    ours = ours.tanh() if squashed else ours
    if theirs.shape != ours.shape or (theirs - ours).abs().max() > CLOSE * ours.abs().max().clamp(min=1):
        raise UserError(f"{type(net).__name__} does something else than its layers in order, which cannot be exported")
