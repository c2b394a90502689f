"""The border between the quantum, distributed side and everything else: the policy, and its file.

Tensors ``w_M`` (float32), ``mean_O``, ``m2_O`` (float64); the description holds architecture, head and environment.
A policy that was trained on integers also has ``scales_S`` (float64) and its settings under ``quantize``.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqtrl import tensorfile
from distqtrl.config import Quantize, UserError
from distqtrl.policy import lower, network
from distqtrl.policy.distribution import (
    Array,
    Categorical,
    Factored,
    Gaussian,
    Head,
    SquashedGaussian,
    allowed,
    masks,
    read,
)
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.quantize import integers
from distqtrl.quantize.aware import Trained
from distqtrl.quantize.calibrate import Network, QuantizedNetwork
from distqtrl.quantize.program import Program

FORMAT = "distqtrl policy 1"
HEADS: dict[str, type[Head]] = {
    "categorical": Categorical,
    "factored": Factored,
    "gaussian": Gaussian,
    "squashed": SquashedGaussian,
}


@dataclass
class Policy:
    """A policy as it acts: network, weights (float32), head, observation normalisation, and where it belongs.

    ``environment`` holds the stage of that name of a configuration; ``origin`` says how the weights came about.
    With ``trained`` (a quantizer's settings and scales) it acts as the integer program that is exported. ``agents`` are
    those that it plays, where the environment has several.
    """

    architecture: Architecture
    head: Head
    w_M: torch.Tensor
    normalizer: Normalizer
    environment: dict[str, Any]
    origin: dict[str, Any] = field(default_factory=dict)
    trained: Trained | None = None
    agents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.w_M = self.w_M.detach().float()
        self._outputs = network.acting(self.architecture, self.w_M)
        self._program: Program | None = None
        if self.trained and self.head.masked:
            self._integers = integers.acting(self.quantized())
        elif self.trained:
            self._program = lower.pruned(lower.program(self.quantized(), self.head))

    def act(self, obs_BO: np.ndarray) -> np.ndarray:
        """The greedy actions for the environment: the most probable one (per factor), or the saturated mean.

        Rows of a masked head end in the mask.
        """
        if self._program is not None:
            return self._program.act(obs_BO)
        seen_BO = read(self.head, obs_BO)
        outputs: Array
        if self.trained:
            outputs = self._integers(seen_BO)
        else:
            outputs = self._outputs(self.normalizer.apply(seen_BO).astype(np.float32, copy=False))
        if self.head.masked:
            outputs = allowed(outputs, masks(self.head, obs_BO))
        return self.head.to_environment(self.head.greedy(outputs))

    def floating(self) -> Network:
        """What quantizing after training reads of a policy."""
        layers = [(w.double().numpy(), b.double().numpy()) for w, b in network.unpack(self.architecture, self.w_M)]
        if isinstance(self.head, Factored):
            layers[-1] = self.head.centred(*layers[-1])
        mean_O, scale_O, clamp = self.normalizer.affine
        kind = lower.OUTPUTS[type(self.head)]
        return Network(tuple(layers), self.architecture.activation, mean_O, scale_O, clamp, kind)

    def quantized(self) -> QuantizedNetwork:
        """The integers and grids that it was trained with."""
        assert self.trained is not None
        quantizer = lower.quantizer(self.trained, self.architecture, self.head)
        return quantizer.network(network.unpack(self.architecture, self.w_M), *self.normalizer.affine)

    def save(self, path: Path) -> None:
        """Write the policy file, whole or not at all."""
        head = next(name for name, kind in HEADS.items() if type(self.head) is kind)
        about = {
            "format": FORMAT,
            "architecture": asdict(self.architecture),
            "head": {"kind": head, **{key: x for key, x in asdict(self.head).items() if key != "masked" or x}},
            "count": self.normalizer.count,
            "environment": self.environment,
            "origin": self.origin,
            "agents": self.agents,
        }
        n = self.normalizer
        tensors = {"w_M": self.w_M.numpy(), "mean_O": n.mean_O, "m2_O": n.m2_O}
        if self.trained is not None:
            about["quantize"] = self.trained.settings.model_dump(mode="json")
            tensors["scales_S"] = self.trained.scales_S
        tensorfile.write(path, about, tensors)


def load(path: Path) -> Policy:
    """The policy of a file; raises UserError when it is absent, truncated, foreign or changed."""
    about, tensors = tensorfile.read(path, FORMAT, "give a run's policy.safetensors, or train it again")
    trained = None
    if "quantize" in about:
        trained = Trained(Quantize(**about["quantize"]), tensors["scales_S"])
    return Policy(
        Architecture(**_tuples(about["architecture"])),
        _head(path, about["head"]),
        torch.from_numpy(tensors["w_M"]),
        Normalizer(about["count"], tensors["mean_O"], tensors["m2_O"]),
        about["environment"],
        about["origin"],
        trained,
        tuple(about.get("agents", ())),
    )


def _head(path: Path, values: dict[str, Any]) -> Head:
    rest = _tuples(values)
    try:
        return HEADS[rest.pop("kind")](**rest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no policy (head {values}: {error}): train it again") from None


def files(run: Path) -> list[Path]:
    """The policy files of a run directory: policy.safetensors, or policy-NAME.safetensors of several agents."""
    return sorted(run.glob("policy-*.safetensors")) or [run / "policy.safetensors"]


def team(path: Path) -> list[Policy]:
    """All policies of a run directory; of a file, it and those beside it that play other agents. Raises as ``load``."""
    return [load(file) for file in files(path)] if path.is_dir() else [load(path), *partners(path)]


def partners(path: Path) -> list[Policy]:
    """The policies beside a policy file that play the other agents."""
    return [load(file) for file in files(path.parent) if file != path and path.name.startswith("policy-")]


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
