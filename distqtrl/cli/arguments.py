"""What the commands' arguments have in common: numbers, lists, and a flag for every field of the configuration."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, TypeAdapter, ValidationError

from distqtrl.config.run import Config, stages
from distqtrl.config.sources import DAMAGED, load, preset, presets, with_flags
from distqtrl.errors import UserError
from distqtrl.files.places import expanded

NEGATIVE = re.compile(r"-(\.?\d|inf|nan)")  # how a negative number starts; argparse's own pattern knows no exponent
MOST = 10**9  # episodes, vectors, seconds: what nobody waits for, and memory still holds the returns of
MOST_LISTED = 10_000  # numbers in a list
Flags = dict[str, list[str]]


class Parser(argparse.ArgumentParser):
    """argparse that raises UserError instead of printing and exiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = NEGATIVE  # a value, not a flag
        self.commands: dict[str, Parser] = {}

    @property
    def flags(self) -> list[str]:
        """The names of its flags."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


# ---- arguments of several commands


def path(text: str) -> Path:
    """An argument that names a file or folder; an empty one would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path, as of a variable that is not set: name a file or folder")
    return expanded(text)


def add_configuration(command: argparse.ArgumentParser, preset: str = "the name of a preset, as for train") -> None:
    """Add the ways to name a configuration, which ``resolve`` reads."""
    command.add_argument("preset", nargs="?", metavar="PRESET", help=preset.replace("%", "%%"))
    command.add_argument("--config", type=path, metavar="FILE", help="a TOML or JSON file instead of a preset")


def add_fields(command: argparse.ArgumentParser) -> None:
    """Add a flag for every field of the configuration, which ``parse`` hands on as Flags."""
    for stage, model in stages().items():
        group = command.add_argument_group(stage, (model.__doc__ or stage).splitlines()[0].replace("%", "%%"))
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = " ".join(str(x) for x in default) if isinstance(default, tuple) else default
            text = f"{field.description} [{shown}]".replace("%", "%%")
            group.add_argument(f"--{stage}.{name}", nargs="+", metavar="X", help=text)


def add_alone(command: argparse.ArgumentParser, flag: str, text: str) -> None:
    """Add a flag of a shared command with which one process answers, and the other ranks are not needed."""
    command.set_defaults(alone=command.add_argument(flag, action="store_true", help=text).dest)


def add_proof(command: argparse.ArgumentParser) -> None:
    """Add how much an export or its verification compares."""
    text = "vectors to compare [1000000]"
    command.add_argument("--vectors", type=whole_number(1), default=1_000_000, metavar="N", help=text)
    text = "episodes in which the C code acts [100]"
    command.add_argument("--episodes", type=whole_number(1), default=100, metavar="N", help=text)
    text = "seconds that a compiler, simulator or other tool may take [1 to 30 minutes, by tool]"
    command.add_argument("--tool-limit", type=whole_number(1), metavar="S", help=text)


def add_permission(command: argparse.ArgumentParser) -> None:
    """Add the permission to import what a file names."""
    text = "run the module that the file's environment.id names, or its language.task; only for files that you trust"
    command.add_argument("--import-environment", action="store_true", help=text)


# ---- their values


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """The type of an argument: a whole number, written as the fields of a configuration may be."""
    whole = TypeAdapter(Annotated[int, Field(ge=least, le=most)])

    def number(text: str) -> int:
        try:
            return whole.validate_python(text)
        except ValidationError:
            raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a whole number from {least} to {most}") from None

    return number


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list of ranges; raises UserError.

    >>> numbers("0-3,8")
    (0, 1, 2, 3, 8)
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"'{text[:60]}' is not a list of numbers: write for example 0-9 or 1,2,4")
        first, last = int(match[1]), int(match[2] or match[1])
        if len(found) + last - first >= MOST_LISTED:
            raise UserError(f"'{text[:60]}' has more than {MOST_LISTED:,} numbers: write fewer")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise UserError(f"'{text[:60]}' names a number twice")
    return tuple(found)


def coefficients(text: str | None) -> tuple[float, float] | None:
    """Static watts and joules per toggle of an --energy such as 0.06,2e-13, None without it; raises UserError."""
    if text is None:
        return None
    try:
        watts, joules = map(float, text.split(","))
    except ValueError:
        watts = joules = -1.0
    if not (0 <= watts < math.inf and 0 <= joules < math.inf):
        raise UserError(f"--energy {text}: write WATTS,JOULES: static power and energy per toggle, such as 0.06,2e-13")
    return watts, joules


def resolve(args: argparse.Namespace, flags: Flags) -> Config:
    """The configuration that a train, slurm or search-bits command asks for; raises UserError."""
    ways = {"preset": "PRESET", "config": "--config FILE"} | ({"resume": "--resume RUN"} if "resume" in args else {})
    given = [name for name in ways if getattr(args, name) is not None]
    if len(given) != 1:
        known = ", ".join(presets())
        raise UserError(f"{args.command} takes one of {', '.join(ways.values())}; presets: {known}")
    if given == ["resume"]:
        if args.run is not None:
            raise UserError("--resume RUN resumes RUN: remove --run")
        there = (args.resume / "config.json").exists()
        remedy = DAMAGED if there else "give the directory of a run, or begin one with --run"
        return with_flags(load(args.resume / "config.json", remedy), flags)
    config = preset(args.preset) if args.preset else load(args.config)
    return with_flags(config, flags)
