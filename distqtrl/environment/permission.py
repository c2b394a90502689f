"""Which module an environment's id imports, and whether a file may ask for it: a policy file is data, not a program."""

import re

from distqtrl.environment.parallel import is_parallel
from distqtrl.errors import UserError

FLAG = "--import-environment"
# Suites that come with distqtrl or its extras, as ids: of any other function of these packages nobody has asked.
KNOWN = re.compile(
    r"(gymnasium|minigrid):[^:]+|mpe2/\w+_v\d+|pettingzoo[./]\w+/\w+_v\d+|distqtrl\.environment\.coin_game/parallel_env"
)


def module(name: str) -> str | None:
    """The module that an environment.id imports; none where it names an entry of Gymnasium's registry.

    >>> module("lab:Plain-v0"), module("lab.games/relay"), module("CartPole-v1")
    ('lab', 'lab.games', None)
    """
    if ":" in name:
        return name.partition(":")[0]
    return name.rpartition("/")[0].replace("/", ".") if is_parallel(name) else None


def asked(name: str) -> str:
    """What a command line needs for a file with this environment.id: the flag, after a blank, or nothing.

    >>> asked("lab:Plain-v0"), asked("CartPole-v1")
    (' --import-environment', '')
    """
    return f" {FLAG}" if module(name) is not None and not KNOWN.fullmatch(name) else ""


def asked_for_task(task: str) -> str:
    """The same for a file with this language.task: a program runs, a file of questions is read.

    >>> asked_for_task("lab/sums.py"), asked_for_task("lab/sums.jsonl")
    (' --import-environment', '')
    """
    return f" {FLAG}" if task.endswith(".py") else ""


def check_task(task: str, file: object, allowed: bool) -> None:
    """Raise UserError where a file's language.task is a program that nobody named."""
    if not allowed and asked_for_task(task):
        raise UserError(f"{file} says language.task = {task}, which is run: if you trust it, add {FLAG}")


def check(name: str, file: object, allowed: bool) -> None:
    """Raise UserError where a file's environment.id would import a module that nobody named."""
    if not allowed and asked(name):
        found = module(name)
        raise UserError(
            f"{file} says environment.id = '{name}', which imports and runs the module {found!r}: "
            f"if you trust it, add {FLAG}"
        )
