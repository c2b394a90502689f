"""The command line: every field of the configuration is a flag, and every mistake is one line."""

import argparse
import re
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from pydantic import Field, TypeAdapter, ValidationError

from distqtrl.config.run import Config, stages
from distqtrl.config.sources import load, preset, presets, with_flags
from distqtrl.errors import UserError
from distqtrl.export import targets

TARGETS = ",".join(targets.TARGETS)
NUMBER = re.compile(r"-(\.?\d|inf|nan)")  # how a negative number starts; argparse's own pattern knows no exponent
MANY = 10**9  # episodes, vectors, seconds: what nobody waits for, and memory still holds the returns of
Flags = dict[str, list[str]]


class Parser(argparse.ArgumentParser):
    """argparse that raises UserError in place of printing and leaving."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = NUMBER  # a value, not a flag

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _add_proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vectors", type=_number(1), default=1_000_000, metavar="N", help="to compare [1000000]")
    parser.add_argument("--episodes", type=_number(1), default=100, metavar="N", help="to drive with the C code [100]")
    text = "seconds that a compiler, simulator or other tool may take [1 to 30 minutes, by tool]"
    parser.add_argument("--tool-limit", type=_number(1), metavar="S", help=text)


def _add_permission(parser: argparse.ArgumentParser) -> None:
    text = "import the module that the file's environment.id names: for files that you trust, it runs code"
    parser.add_argument("--import-environment", action="store_true", help=text)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    for stage, model in stages().items():
        group = parser.add_argument_group(stage, (model.__doc__ or "").splitlines()[0].replace("%", "%%"))
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = " ".join(str(x) for x in default) if isinstance(default, tuple) else default
            text = f"{field.description} [{shown}]".replace("%", "%%")
            group.add_argument(f"--{stage}.{name}", nargs="+", metavar="X", help=text)


def _number(least: int, most: int = MANY) -> Callable[[str], int]:
    """A whole number, written as the fields of a configuration may be."""
    whole = TypeAdapter(Annotated[int, Field(ge=least, le=most)])

    def number(text: str) -> int:
        try:
            return whole.validate_python(text)
        except ValidationError:
            raise argparse.ArgumentTypeError(f"'{text[:40]}' is no whole number from {least} to {most}") from None

    return number


def resolve(args: argparse.Namespace, flags: Flags) -> Config:
    """The configuration that a train, slurm or search-bits command asks for."""
    ways = {"preset": "PRESET", "config": "--config FILE"} | ({"resume": "--resume RUN"} if "resume" in args else {})
    given = [name for name in ways if getattr(args, name) is not None]
    if len(given) != 1:
        known = ", ".join(presets())
        raise UserError(f"{args.command} takes one of {', '.join(ways.values())}; presets: {known}")
    if given == ["resume"]:
        if args.run is not None:
            raise UserError("--resume RUN goes on with RUN: remove --run")
        return with_flags(load(args.resume / "config.json"), flags)
    config = preset(args.preset) if args.preset else load(args.config)
    return with_flags(config, flags)
