"""The border between the quantum, distributed side and everything else: the policy, and its file.

Tensors ``w_M`` (float32), ``mean_O``, ``m2_O`` (float64); the description holds architecture, head and environment.
A policy that was trained on integers also has ``scales_S`` (float64) and its settings under ``quantize``.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from distqtrl.config.stages import Environment, Quantize
from distqtrl.errors import UserError, shortened
from distqtrl.files import places, schema
from distqtrl.files import tensors as tensorfile
from distqtrl.files.places import Place, quoted
from distqtrl.files.schema import Names, Record, Several, Word
from distqtrl.policy import lower, network
from distqtrl.policy.distribution import (
    Array,
    Bounded,
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
REMEDY = "give a run's policy.safetensors, or train it again"
LAYERS = 100  # at most
MOST_SCALED = 1e30
MOST_SEEN = 1e300  # squares of sums stay finite
MOST = 60  # characters of an agent in the name of its file
DIGEST = r"-[0-9a-f]{12}$"  # an agent that is called so gets one of its own
ENVIRONMENT = {"id", "local_num", "max_episode_steps", "observation", "image", "frames", "num_actions", "kwargs"}
HEADS: dict[str, type[Head]] = {
    "categorical": Categorical,
    "factored": Factored,
    "gaussian": Gaussian,
    "squashed": SquashedGaussian,
}


Parts = tuple[dict[str, Any], tensorfile.Tensors]  # of a policy, as its file holds them


class Shape(Record):
    """The keys of ``architecture``."""

    num_inputs: Several
    hidden: tuple[Several, ...] = Field(max_length=LAYERS)
    num_outputs: Several
    activation: Literal["tanh", "relu"]
    image: tuple[Several, ...] = Field((), max_length=4)
    convolutions: tuple[Word, ...] = Field((), max_length=LAYERS)


class Description(Record):
    """What a policy file holds besides tensors; head, environment and quantize have their own models."""

    format: Literal["distqtrl policy 1"]
    architecture: Shape
    head: dict[str, Any]
    count: float = Field(ge=0, le=schema.LARGE)
    environment: dict[str, Any]
    origin: dict[Word, str | int | float | bool | None]
    agents: Names
    quantize: dict[str, Any] | None = None


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
        self.environment = Environment(**self.environment).model_dump(mode="json")
        self._outputs = network.acting(self.architecture, self.w_M)
        self._width = self.architecture.num_inputs + (self.head.num_outputs if self.head.masked else 0)
        self._program: Program | None = None
        if self.trained and self.head.masked:
            self._integers = integers.acting(self.quantized())
        elif self.trained:
            self._program = self.program()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, and processes of the user's: all but the functions that are made of it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def act(self, obs_BO: np.ndarray) -> np.ndarray:
        """The greedy actions for the environment: the most probable one (per factor), or the saturated mean.

        obs_BO: (..., O); rows of a masked head end in the mask. Raises UserError where they are no numbers or O is not
        what the policy reads.
        """
        obs_BO = _array(obs_BO)
        if obs_BO.dtype.kind not in "fiub" or obs_BO.shape[-1:] != (self._width,):
            given = f"an array {obs_BO.shape} of {obs_BO.dtype}"
            raise UserError(f"observations are {given}: give numbers of shape (B, {self._width}), a row for each")
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

    def program(self, quantized: QuantizedNetwork | None = None) -> Program:
        """The integer program that is exported: of a quantization after training, or the one it was trained with.

        Raises UserError for a head that no integer program is made of.
        """
        return lower.pruned(lower.program(quantized or self.quantized(), self.head))

    def save(self, path: Place) -> None:
        """Write the policy file, whole or not at all; raises UserError for what is no path."""
        tensorfile.write(places.path("path", path), *self.parts())

    def parts(self) -> Parts:
        """What its file holds: the description, and tensors, which may change with the run."""
        head = next(name for name, kind in HEADS.items() if type(self.head) is kind)
        about = {
            "format": FORMAT,
            "architecture": {key: x for key, x in asdict(self.architecture).items() if x or key == "hidden"},
            "head": {"kind": head, **{key: x for key, x in asdict(self.head).items() if key != "masked" or x}},
            "count": self.normalizer.count,
            "environment": self.environment,
            "origin": self.origin,
            "agents": self.agents,
        }
        tensors = {"w_M": self.w_M.numpy(), **self.normalizer.tensors()}
        del tensors["count"]  # the description has it
        if self.trained is not None:
            about["quantize"] = self.trained.settings.model_dump(mode="json")
            tensors["scales_S"] = self.trained.scales_S
        return about, tensors


def load(path: Path) -> Policy:
    """The policy of a file; raises UserError when the file is absent, truncated, foreign or changed, or cannot act."""
    about, tensors = tensorfile.read(path, FORMAT, REMEDY)
    try:
        with np.errstate(all="ignore"):  # what overflows is refused by what it gives
            return made(about, tensors)
    except (ValueError, UserError) as error:
        raise UserError(f"{path} holds no policy ({error}): {REMEDY}") from None


def made(about: dict[str, Any], tensors: tensorfile.Tensors) -> Policy:
    """The policy of a description and tensors; raises ValueError and UserError for what does not fit."""
    told = schema.checked(Description, about)
    architecture = Architecture(**told.architecture.model_dump())
    if architecture.convolutions and math.prod(architecture.image) != architecture.num_inputs:
        raise ValueError(f"an image of {architecture.image} for a network of {architecture.num_inputs} inputs")
    head = _head(told.head)
    if head.num_outputs != architecture.num_outputs:
        raise ValueError(f"a head of {head.num_outputs} for a network of {architecture.num_outputs} outputs")
    environment = schema.complete(Environment, told.environment, "environment", ENVIRONMENT)
    wanted: dict[str, tuple[type, tensorfile.Shape]] = {
        "w_M": (np.float32, (architecture.num_weights,)),
        "mean_O": (np.float64, (architecture.num_inputs,)),
        "m2_O": (np.float64, (architecture.num_inputs,)),
    }
    trained = None
    if "quantize" in about:
        settings = schema.complete(Quantize, told.quantize, "quantize", Quantize.model_fields.keys())
        num = len(lower.quantizer(settings, architecture, head).scales_S) if _affordable(tensors, architecture) else 0
        tensorfile.check(tensors, wanted | {"scales_S": (np.float64, (num,))})
        if (most := tensors["scales_S"].max(initial=0)) > MOST_SCALED:
            raise ValueError(f"scales_S holds {most:g}")
        trained = Trained(settings, tensors["scales_S"])
    else:
        tensorfile.check(tensors, wanted)
    mean_O, m2_O = tensors["mean_O"], tensors["m2_O"]
    if m2_O.min(initial=0) < 0 or max(m2_O.max(initial=0), np.abs(mean_O).max(initial=0)) > MOST_SEEN:
        raise ValueError("mean_O and m2_O are not a mean and a sum of squares")
    if 0 < told.count < 1 or (not told.count and (mean_O.any() or m2_O.any())):
        raise ValueError(f"count = {told.count} observations cannot have a mean and a sum of squares")
    w_M, normalizer = torch.from_numpy(tensors["w_M"]), Normalizer.of({**tensors, "count": np.array(told.count)})
    values = environment.model_dump(mode="json")
    return Policy(
        architecture=architecture,
        head=head,
        w_M=w_M,
        normalizer=normalizer,
        environment=values,
        origin=dict(told.origin),
        trained=trained,
        agents=told.agents,
    )


def _array(given: Any) -> np.ndarray:
    """Observations as NumPy has them; raises UserError for a tensor whose values it cannot have."""
    if not isinstance(given, torch.Tensor):
        try:
            return np.asarray(given)
        except ValueError:  # rows of several lengths
            return np.asarray(given, object)
    try:
        found: np.ndarray = (given.float() if given.dtype is torch.bfloat16 else given).numpy(force=True)
    except (TypeError, RuntimeError):
        kind = f"{given.dtype}, {given.layout}, on {given.device}"
        raise UserError(f"observations are a tensor of {kind}: give a dense one that has values") from None
    return found


def _affordable(tensors: tensorfile.Tensors, architecture: Architecture) -> bool:
    """Check that the file is as large as its architecture says, before anything of that size is allocated."""
    return "w_M" in tensors and tensors["w_M"].size == architecture.num_weights


def check(head: Head, who: str) -> None:
    """Raise UserError unless a policy file can hold the head."""
    try:
        schema.checked(type(head), asdict(head))
    except ValueError as error:
        raise UserError(
            f"{who}: no policy file holds its actions ({error}): make it take smaller numbers, and scale or shift them"
        ) from None


def _head(values: Mapping[str, Any]) -> Head:
    """The head of its table; raises ValueError."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in HEADS:
        raise ValueError(f"head.kind = {shortened(kind)}: known are {', '.join(HEADS)}")
    rest = {key: value for key, value in values.items() if key != "kind"}
    wanted = {f.name for f in fields(HEADS[kind])}
    for key in sorted((rest.keys() - wanted) | (wanted - rest.keys() - {"masked"})):  # written where it is so
        raise ValueError(f"head: {'lacks the key' if key in wanted else 'unknown key'} {shortened(key)}")
    head = schema.checked(HEADS[kind], rest)
    if isinstance(head, Bounded) and not (
        len(head.low) == len(head.high) and all(a <= b for a, b in zip(head.low, head.high, strict=True))
    ):
        raise ValueError("head: low and high are not bounds")
    return head


def files(run: Path) -> list[Path]:
    """The policy files of a run directory: policy.safetensors, or policy-NAME.safetensors of several agents."""
    whole = run / "policy.safetensors"
    return [whole] if whole.exists() else sorted(run.glob("policy-*.safetensors")) or [whole]


def _of_run(run: Path) -> list[Path]:
    """The policy files of a run directory; raises UserError where the run has none yet."""
    found = files(run)
    if (run / "config.json").exists() and not found[0].exists():
        raise UserError(f"{run} has no policy yet: distqtrl train --resume {quoted(run)} finishes it")
    return found


def only(source: Path) -> Path:
    """The policy file of a run directory, or the file itself; raises UserError where there are several."""
    found = _of_run(source) if source.is_dir() else [source]
    if len(found) > 1:
        raise UserError(f"{source} has several policies: give one of {', '.join(file.name for file in found)}")
    return found[0]


def names(policies: Sequence[str]) -> list[str]:
    """The file names of all policies of a run, which differ even where case does not count.

    A name that cannot be a file's, is too long or too much like another gets a digest; the file lists the agents.

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
    """All policies of a run directory; given a file, its policy and its partners. Raises UserError, as ``load``."""
    return [load(file) for file in _of_run(path)] if path.is_dir() else [load(path), *partners(path)]


def partners(path: Path) -> list[Policy]:
    """The policies in the folder of a policy file that play the other agents."""
    found = files(path.parent)
    return [load(file) for file in found if file != path] if path in found else []
