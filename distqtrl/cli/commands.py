"""The table of commands: a new command is a module that offers these names, and one entry here."""

from argparse import ArgumentParser, Namespace
from typing import Protocol

from distqtrl.allreduce.communicator import Communicator
from distqtrl.cli import (
    completion,
    describe,
    doctor,
    evaluate,
    export,
    pretrain,
    report,
    search_bits,
    site_check,
    slurm,
    train,
    verify,
)
from distqtrl.cli.arguments import Flags


class Command(Protocol):
    """What the module of a command offers. Heavy libraries are imported inside ``run``: --help loads no torch.

    SHARED: all ranks of a job connect and run it together; any other command is run by the first process alone.
    """

    TEXT: str
    SHARED: bool

    def add(self, command: ArgumentParser) -> None:
        """Add the command's flags."""

    def run(self, args: Namespace, flags: Flags, comm: Communicator) -> int:
        """Do what was asked for; returns the exit code. ``flags`` are the given fields of the configuration."""


COMMANDS: dict[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "describe": describe,
    "export": export,
    "verify": verify,
    "report": report,
    "doctor": doctor,
    "site-check": site_check,
    "slurm": slurm,
    "search-bits": search_bits,
    "pretrain": pretrain,
    "completion": completion,
}
