"""What a search tries: candidates, seeds, and everything else that it was asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqtrl.config.run import Config, validated
from distqtrl.environment.world import make
from distqtrl.errors import UserError
from distqtrl.export.options import Options

FORMAT = "distqtrl search 1"
BITS = 8  # of inputs and outputs where a step of the rule does not say otherwise


@dataclass(frozen=True)
class Candidate:
    """A quantized policy: the width of all its hidden layers; bits of core (one number, or one per layer), inputs and
    outputs. The policy in floating point that candidates are compared with, of the largest width, is None."""

    width: int
    core_bits: tuple[int, ...]
    input_bits: int = BITS
    output_bits: int = BITS


def name(candidate: Candidate | None) -> str:
    """The candidate's name in tables and run directories.

    >>> name(Candidate(64, (4, 2, 3), 6)), name(None)
    ('w64-c4.2.3-i6-o8', 'float')
    """
    if candidate is None:
        return "float"
    core = ".".join(map(str, candidate.core_bits))
    return f"w{candidate.width}-c{core}-i{candidate.input_bits}-o{candidate.output_bits}"


@dataclass(frozen=True)
class Search:
    """A search as it was asked for; tuples of bits and widths are what is tried, from the largest on in the rule."""

    directory: Path
    config: Config
    mode: str  # rule, pareto
    widths: tuple[int, ...]
    core_bits: tuple[tuple[int, ...], ...]
    input_bits: tuple[int, ...]
    output_bits: tuple[int, ...]
    seeds: tuple[int, ...]
    stop_at_failure: bool
    cost: str | None
    core: str  # the one that costs: folded, unrolled
    energy: tuple[float, float] | None
    export: Options

    def settings(self) -> dict[str, Any]:
        """What a second start must agree on, as JSON has it."""
        values: dict[str, Any] = {key: value for key, value in vars(self).items() if key not in ("directory", "export")}
        options = {"targets": self.export.targets, "vectors": self.export.vectors, "episodes": self.export.episodes}
        values = {**values, **options, "config": self.config.model_dump(mode="json")}
        return {key: _listed(value) for key, value in values.items()}

    def run(self, candidate: Candidate | None, seed: int) -> Path:
        """The run directory of a training."""
        return self.directory / "runs" / f"{name(candidate)}-seed{seed}"

    def configuration(self, candidate: Candidate | None, seed: int) -> Config:
        """The configuration of one training; raises UserError where it is not valid."""
        values = self.config.model_dump()
        values["train"]["seed"] = seed
        values["quantize"]["aware"] = candidate is not None
        width = self.widths[0] if candidate is None else candidate.width
        values["policy"]["hidden"] = [width] * len(self.config.policy.hidden)
        if candidate is not None:
            for kind in ("core_bits", "input_bits", "output_bits"):
                values["quantize"][kind] = getattr(candidate, kind)
        return validated(values, name(candidate))


def _listed(value: Any) -> Any:
    return [_listed(x) for x in value] if isinstance(value, tuple) else value


def check(config: Config) -> None:
    """Raise UserError for a configuration of which the bit widths cannot be searched."""
    if not config.policy.hidden:
        raise UserError("policy.hidden is empty: a search of widths needs a policy with hidden layers")
    if config.generator.source == "equal_mlp":
        raise UserError("generator.source = equal_mlp has a width of its own: a search of widths needs another source")
    if config.agents.sharing != "shared":
        raise UserError(
            f"agents.sharing = {config.agents.sharing}: a search chooses the bits of one policy: use shared"
        )
    if config.qpu.replicas > 1:
        raise UserError(f"qpu.replicas = {config.qpu.replicas}: every training of a search runs in one thread: use 1")
    world = make(config.environment)
    masked = any(spaces.masked for spaces in world.spaces)
    world.close()
    if masked:
        raise UserError(
            f"{config.environment.id} observes an action_mask, which an exported program does not read: a search "
            "exports what it chooses, give it an environment without a mask"
        )
