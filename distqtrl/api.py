"""What a program of the user's calls (docs/python.md): the command line's work, with results in place of prints.

Bad input raises UserError, with the line that the command line would print. Nothing here is loaded before it is used.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqtrl.config import sources
from distqtrl.config.run import Config, save, validated
from distqtrl.config.values import finite, whole
from distqtrl.defaults import torch_defaults
from distqtrl.errors import UserError, lookup, shortened
from distqtrl.files import places
from distqtrl.files.places import Place

if TYPE_CHECKING:
    from distqtrl.export.check import Check
    from distqtrl.language.adapted import Adapted
    from distqtrl.policy.policy_file import Policy
    from distqtrl.quantize.formats import Bits


def preset(name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """A shipped preset, with single fields replaced: ``{"train.seed": 1, "policy.hidden": [16]}``.

    Raises UserError that names the nearest preset or key, or what is wrong with a value.
    """
    return sources.with_changes(sources.preset(name), changes or {})


def read(path: Place, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a TOML or JSON file, or of a run directory, with single fields replaced as in ``preset``."""
    return sources.with_changes(sources.load(places.path("path", path)), changes or {})


def train(config: Config, directory: Place | None = None, *, resume: bool = False, yes: bool = False) -> dict[str, Any]:
    """Train, and return what result.json holds, with ``run``, the directory; under mpirun, every rank calls this.

    directory: a new one, or one in which a training of this configuration was begun: then it goes on, to where it
    would have got without a break. If it is complete, its result is returned; another budget, target or evaluation
    extends it. None: a new one below ``train.directory``. resume: only go on with a run that is there. yes: circuits
    may be sent to a device that is not simulated, however many; without it that is refused, with their number.

    Signals (in the main thread) are acted upon at the end of an update, when the run has been saved: SIGINT raises
    KeyboardInterrupt; SIGTERM, SIGUSR1 and SIGHUP return a result whose ``status`` is "stopped", with ``signal`` and
    ``exit_code``. Raises UserError on every rank where ranks differ, are missing or cannot do what is asked.
    """
    from distqtrl.allreduce.agreement import agreed, check_equal
    from distqtrl.allreduce.program import together

    timeout_s = config.allreduce.timeout_s if isinstance(config, Config) else 1800.0
    try:
        with together("distqtrl.train", timeout_s) as comm:
            config, place = agreed(comm, lambda: _checked(config, directory, resume=resume, yes=yes))
            check_equal(comm, save(config).encode(), "configurations", "give every rank the same one, seed included")
            check_equal(comm, os.fsencode(f"{place} {resume}"), "directory or resume", "give every rank the same ones")
            result = _trained(config, place, resume, yes, comm)
            agreed(comm, lambda: None)  # when it returns, everything has been written, on every rank
    except UserError as error:
        if error.trace:
            error.add_note(error.trace)
        raise
    if result.get("signal") == "SIGINT":
        raise KeyboardInterrupt(f"saved after {result['update']} updates, resume with {result['run']}")
    return result


def _checked(config: Config, directory: Place | None, *, resume: bool, yes: bool) -> tuple[Config, Path | None]:
    """Configuration and directory; raises UserError for arguments that make no sense."""
    _refuse_words(resume=resume, yes=yes)
    if not isinstance(config, Config):
        raise UserError(f"train takes a configuration, not {shortened(config)}: make one with distqtrl.preset or read")
    place = None if directory is None else places.path("directory", directory)
    if resume and (place is None or not (place / "config.json").exists()):
        where = "no directory" if place is None else f"{place}, in which there is no run"
        raise UserError(f"resume = True with {where}: give the directory of a run, or leave resume out")
    return validated(config.model_dump(warnings=False), "config"), place  # model_copy checks nothing


def _trained(config: Config, directory: Path | None, resume: bool, yes: bool, comm: Any) -> dict[str, Any]:
    """The result, with the learning curve drawn."""
    from distqtrl.report.figures import undrawn
    from distqtrl.training.start import Request, start

    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", config.subject)
    name = f"{name}-seed{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    with torch_defaults():
        request = Request(config, directory, name, resume)
        outcome = start(request, comm, began=lambda beginning: None, confirm=lambda line: yes, say=_say)
    if comm.rank == 0 and (outcome.trained or not (outcome.directory / "learning_curve.png").exists()):
        problem = undrawn(outcome.directory)
        if problem:
            _say(f"distqtrl: {problem}")
    return {"run": str(outcome.directory), **outcome.result}


def rank() -> int:
    """This process's number among those that a launcher started (0 without one); known before, and without, MPI."""
    from distqtrl.allreduce.connect import announced

    return announced("rank", without=0)


def load(path: Place) -> "Policy | dict[str, Policy] | Adapted":
    """The policy of a file or of a run: ``policy.act(obs_BO)`` returns the greedy actions, (B,) or (B, A).

    Of a language model it is an update, whose questions ``distqtrl.language.adapted.answers`` answers.

    A run with several policies is a dict from every agent to the policy that plays it. Neither the environment nor
    anything quantum is loaded. Raises UserError where a file is missing or damaged.
    """
    from distqtrl.language import adapted
    from distqtrl.policy import policy_file

    place = places.path("path", path)
    if (update := adapted.written(place)) is not None:
        return adapted.load(update)
    if not place.is_dir():
        return policy_file.load(place)
    policies = policy_file.team(place)
    if len(policies) == 1:
        return policies[0]
    return {agent: policy for policy in policies for agent in policy.agents}


def export(
    source: "Place | Policy",
    folder: Place,
    *,
    targets: str | Iterable[str] = ("c",),
    bits: "Bits | Mapping[str, int] | None" = None,
    per: str | None = None,
    calibration: Place | None = None,
    parallel: tuple[int, int] | None = None,
    part: str | None = None,
    implement: bool = False,
    joules: bool = False,
    vectors: int = 1_000_000,
    episodes: int = 100,
    import_environment: bool = False,
    tool_limit: float | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a policy as integers for these targets (c, onnx, cuda, verilog) into a new folder, and return its manifest.

    source: a run directory, a policy file, or a policy. ``manifest["checks"]`` says of every target whether it is equal
    to the interpreter. The keywords are the flags of ``distqtrl export``, whose help explains them; ``say`` is called
    with every check's line. Raises UserError, and writes nothing, where something is wrong.
    """
    from distqtrl.export import folder as exporting
    from distqtrl.export.options import Options, folding
    from distqtrl.export.targets import named
    from distqtrl.policy import policy_file

    _refuse_words(implement=implement, joules=joules, import_environment=import_environment)
    options = Options(
        targets=named(_words("targets", targets)),
        bits=_bits(bits),
        per=per if per is None else lookup("per", per, {"channel": "channel", "tensor": "tensor"}),
        calibration=None if calibration is None else places.path("calibration", calibration),
        folding=None if parallel is None else folding(_product(parallel)),
        part=part,
        vectors=_positive("vectors", vectors),
        episodes=_positive("episodes", episodes),
        implement=implement,
        energy=None,
        joules=joules,
        imports=import_environment,
        limit_s=_seconds("tool_limit", tool_limit),
    )
    telling, out = say or (lambda text: None), places.path("folder", folder)
    if isinstance(source, policy_file.Policy):
        with tempfile.TemporaryDirectory(prefix="distqtrl-") as place:
            path = Path(place) / "policy.safetensors"
            source.save(path)
            return exporting.export(path, out, options, telling)
    return exporting.export(policy_file.only(places.path("source", source)), out, options, telling)


def verify(
    folder: Place,
    *,
    targets: str | Iterable[str] = (),
    vectors: int = 1_000_000,
    episodes: int = 100,
    netlists: bool = False,
    import_environment: bool = False,
    tool_limit: float | None = None,
) -> "list[Check]":
    """Check an exported folder again: one ``Check(target, status, vectors, detail, figures)`` after another.

    targets: these alone; else all that it has. A status is "equal", "built" (where nothing can run it), "DIFFERENT" or
    "not checked". The keywords are the flags of ``distqtrl verify``. Raises UserError for what is no exported folder.
    """
    from distqtrl.export import tools
    from distqtrl.export import verify as verifying
    from distqtrl.export.targets import named

    _refuse_words(netlists=netlists, import_environment=import_environment)
    text, place = _words("targets", targets), places.path("folder", folder)
    wanted = named(text) if text else ()
    numbers = _positive("vectors", vectors), _positive("episodes", episodes)
    with tools.orderly(_seconds("tool_limit", tool_limit)):
        return list(verifying.checks(place, *numbers, wanted, netlists=netlists, imports=import_environment))


def describe(config: Config | str) -> dict[str, Any]:
    """Qubits, parameter counts and compression of a configuration, or of a preset; as ``distqtrl describe --json``."""
    from distqtrl.report.describe import describe as facts

    made = preset(config) if isinstance(config, str) else config
    if not isinstance(made, Config):
        raise UserError(f"config = {shortened(made)}: give a configuration, or the name of a preset")
    return facts(made)


def _bits(given: "Bits | Mapping[str, int] | None") -> "Bits | None":
    from distqtrl.quantize.formats import Bits, bits

    if given is None or isinstance(given, Bits):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"bits = {shortened(given)}: give a table of numbers of bits, such as {{'core': 3}}")
    return bits(",".join(f"{name}={value}" for name, value in given.items()))


def _words(name: str, given: Any) -> str:
    """Names, or the text of them, as the command line takes them."""
    words = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{name} = {shortened(given)}: give names, such as ['c', 'verilog']")
    return ",".join(words)


def _product(parallel: Any) -> str:
    """(32, 4) as the command line takes it."""
    if isinstance(parallel, str) or not isinstance(parallel, Iterable):
        raise UserError(f"parallel = {shortened(parallel)}: give lanes and columns, such as (32, 4)")
    return "x".join(map(str, parallel))


def _positive(name: str, value: Any) -> int:
    number = whole(value)
    if number is None or number < 1:
        raise UserError(f"{name} = {shortened(value)}: give a whole number, 1 or more")
    return number


def _refuse_words(**given: Any) -> None:
    """Raise UserError for what is neither True nor False, such as "no"."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} = {shortened(value)}: give True or False")


def _seconds(name: str, value: Any) -> float | None:
    seconds = finite(value)
    if value is not None and not (seconds is not None and seconds > 0):
        raise UserError(f"{name} = {shortened(value)}: give seconds, more than 0, or None")
    return seconds


def _say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)
