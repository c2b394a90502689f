"""What a search tries: candidates, seeds, and everything else that it was asked for."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqtrl.config.run import Config, validated
from distqtrl.environment.vector import make
from distqtrl.errors import UserError
from distqtrl.export import folder
from distqtrl.export.options import Options
from distqtrl.search import cost
from distqtrl.slurm import numbers

FORMAT = "distqtrl search 1"
WIDTHS = tuple("12345678")  # of the core, as text
BITS = 8  # of inputs and outputs where a step of the rule does not say otherwise
OWN = ("train.seed", "quantize.aware", "quantize.core_bits", "quantize.input_bits", "quantize.output_bits")
FLAGS = {"train.seed": "--seeds", "quantize.aware": "none of it, it trains both"}
FLAGS |= {f"quantize.{kind}_bits": f"--{kind}-bits" for kind in ("core", "input", "output")}


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


def search(args: Namespace, config: Config, flags: Mapping[str, Any]) -> Search:
    """The search of a command line (``distqtrl search-bits --help``); raises UserError."""
    for key in OWN:
        if key in flags:
            raise UserError(f"--{key}: the search sets it itself: remove it, and give {FLAGS[key]}")
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
    rule = args.mode == "rule"
    made = Search(
        directory=args.output,
        config=config,
        mode=args.mode,
        widths=_descending(_numbers("--widths", args.widths, 1)),
        core_bits=_core(args.core_bits),
        input_bits=_descending(_numbers("--input-bits", args.input_bits, 1, 8)),
        output_bits=_descending(_numbers("--output-bits", args.output_bits, 1, 8)),
        seeds=_numbers("--seeds", args.seeds, 0, 2**32 - 1),
        stop_at_failure=args.stop_at_failure,
        cost=args.cost if rule else args.cost or "luts",
        core=args.core,
        energy=folder.coefficients(args.energy) if args.energy else None,
        export=Options(
            folder.targets(args.target), None, None, None, None, None, args.vectors, args.episodes, False, None,
            imports=True, limit_s=args.tool_limit,
        ),
    )  # fmt: skip
    _check_rule(args, made) if rule else _check_pareto(args, made)
    _check_masks(config)
    return made


def _check_masks(config: Config) -> None:
    world = make(config.environment)
    masked = any(spaces.masked for spaces in world.spaces)
    world.close()
    if masked:
        raise UserError(
            f"{config.environment.id} observes an action_mask, which an exported program does not read: a search "
            "exports what it chooses, give it an environment without a mask"
        )


def _check_rule(args: Namespace, search: Search) -> None:
    if args.cost is not None or args.energy is not None:
        flag, value = ("--cost", args.cost) if args.cost is not None else ("--energy", args.energy)
        raise UserError(f"{flag} {value}: the rule looks at no cost: remove it, or give --mode pareto")
    if any(len(core) > 1 for core in search.core_bits):
        raise UserError(f"--core-bits {args.core_bits}: the rule takes one number for all layers: use --mode pareto")
    if len(search.output_bits) > 1:
        raise UserError(f"--output-bits {args.output_bits}: the rule keeps one number: use --mode pareto for more")
    if len(search.seeds) < 2:
        raise UserError(f"--seeds {args.seeds}: the rule needs the deviation over seeds: give 2 or more, such as 0-4")


def _check_pareto(args: Namespace, search: Search) -> None:
    if search.stop_at_failure:
        raise UserError("--stop-at-failure belongs to --mode rule: remove it")
    for core in search.core_bits:
        if len(core) not in (1, len(search.config.policy.hidden) + 1):
            layers = len(search.config.policy.hidden) + 1
            raise UserError(
                f"--core-bits {':'.join(map(str, core))}: the policy has {layers} layers: give 1 or {layers}"
            )
    if search.cost == "energy" and search.energy is None:
        raise UserError("--cost energy needs --energy WATTS,JOULES: static power and energy per toggle")
    if search.cost != "energy" and search.energy is not None:
        raise UserError(f"--energy {args.energy}: only --cost energy has a use for it: remove it")
    assert search.cost is not None
    cost.check(search.cost)


def _descending(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(values, reverse=True))


def _core(text: str) -> tuple[tuple[int, ...], ...]:
    """Bits of the core, such as 8,6,4 or (per layer) 4:2:3,4, from the largest on."""
    found = [tuple(int(b) if b in WIDTHS else 0 for b in part.split(":")) for part in text.split(",")]
    if not all(1 <= bits <= 8 for part in found for bits in part):
        raise UserError(f"--core-bits {text}: write numbers from 1 to 8, such as 8,6,4, or 4:2:3 for three layers")
    if len(set(found)) < len(found):
        raise UserError(f"--core-bits {text}: names a number twice")
    return tuple(sorted(found, reverse=True))


def _numbers(flag: str, text: str, least: int, most: int | None = None) -> tuple[int, ...]:
    try:
        values = numbers(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
    for value in values:
        if value < least or (most is not None and value > most):
            upper = "" if most is None else f", at most {most}"
            raise UserError(f"{flag} {text}: {value} does not fit: at least {least}{upper}")
    return values
