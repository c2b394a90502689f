"""The border between the quantum, distributed side and everything else: the policy, and its file.

Tensors ``w_M`` (float32), ``mean_O``, ``m2_O`` (float64); the description holds architecture, head and environment.
A policy that was trained on integers also has ``scales_S`` (float64) and its settings under ``quantize``.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqtrl import tensorfile
from distqtrl.config import Quantize
from distqtrl.policy import lower, network
from distqtrl.policy.distribution import Categorical, Gaussian, Head, SquashedGaussian
from distqtrl.policy.network import Architecture
from distqtrl.policy.normalizer import Normalizer
from distqtrl.quantize.aware import Trained
from distqtrl.quantize.calibrate import Network, QuantizedNetwork

FORMAT = "distqtrl policy 1"
MOST = 60  # characters of an agent in the name of its file
DIGEST = r"-[0-9a-f]{12}$"  # an agent that is called so gets one of its own
HEADS: dict[str, type[Head]] = {"categorical": Categorical, "gaussian": Gaussian, "squashed": SquashedGaussian}


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
        self._program = lower.pruned(lower.program(self.quantized(), self.head)) if self.trained else None

    def act(self, obs_BO: np.ndarray) -> np.ndarray:
        """The greedy actions for the environment: the most probable one, or the saturated mean."""
        if self._program is not None:
            return self._program.act(obs_BO)
        outputs = self._outputs(self.normalizer.apply(obs_BO).astype(np.float32, copy=False))
        return self.head.to_environment(self.head.greedy(outputs))

    def floating(self) -> Network:
        """What quantizing after training reads of a policy."""
        layers = [(w.double().numpy(), b.double().numpy()) for w, b in network.unpack(self.architecture, self.w_M)]
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
            "head": {"kind": head, **asdict(self.head)},
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
    head, trained = _tuples(about["head"]), None
    if "quantize" in about:
        trained = Trained(Quantize(**about["quantize"]), tensors["scales_S"])
    return Policy(
        Architecture(**_tuples(about["architecture"])),
        HEADS[head.pop("kind")](**head),
        torch.from_numpy(tensors["w_M"]),
        Normalizer(about["count"], tensors["mean_O"], tensors["m2_O"]),
        about["environment"],
        about["origin"],
        trained,
        tuple(about.get("agents", ())),
    )


def files(run: Path) -> list[Path]:
    """The policy files of a run directory: policy.safetensors, or policy-NAME.safetensors of several agents."""
    return sorted(run.glob("policy-*.safetensors")) or [run / "policy.safetensors"]


def names(policies: Sequence[str]) -> list[str]:
    """The names of the files of all policies of a run; of several each its own, also where case does not count.

    A name that is no good in a file's name, too long or like another one's gets a digest; the file holds the agents.

    >>> names(["a"]), names(["a", "red/0"])
    (['policy.safetensors'], ['policy-a.safetensors', 'policy-red_0-36825b529af7.safetensors'])
    """
    if len(policies) == 1:
        return ["policy.safetensors"]
    stems = [re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:MOST] for name in policies]
    alike = Counter(stem.lower() for stem in stems)
    plain = [
        s == n and alike[s.lower()] == 1 and not re.search(DIGEST, s) for s, n in zip(stems, policies, strict=True)
    ]
    digests = [hashlib.sha256(name.encode()).hexdigest()[:12] for name in policies]
    out = [s if good else f"{s}-{d}" for s, d, good in zip(stems, digests, plain, strict=True)]
    return [f"policy-{stem}.safetensors" for stem in out]


def team(path: Path) -> list[Policy]:
    """All policies of a run directory; of a file, it and those beside it that play other agents. Raises as ``load``."""
    return [load(file) for file in files(path)] if path.is_dir() else [load(path), *partners(path)]


def partners(path: Path) -> list[Policy]:
    """The policies beside a policy file that play the other agents."""
    return [load(file) for file in files(path.parent) if file != path and path.name.startswith("policy-")]


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
