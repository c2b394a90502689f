"""The table of an export's targets. To add one, write a module with its ``write`` and its comparisons, and enter it.

The exporter, the proof, the manifest, the folder's README and the command line read this table and nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqtrl.errors import UserError, nearest
from distqtrl.export import c, cuda, onnx
from distqtrl.export.check import Comparison
from distqtrl.export.options import Options
from distqtrl.export.verilog import checks, cores, figures
from distqtrl.files.schema import Record
from distqtrl.quantize.program import Program

Facts = Mapping[str, Any]
Counted = Callable[[Sequence[Facts]], Iterator[str]]


@dataclass(frozen=True)
class Target:
    """One form of the integer program, and how it is compared with the interpreter: bit by bit, without tolerance."""

    write: Callable[[Path, Program, Options], Facts]  # writes its files into a folder; what the manifest says of them
    files: tuple[str, ...]  # that ``write`` makes
    readme: str  # what the README of the folder says about them
    checks: Mapping[str, Comparison]  # by name
    netlists: Mapping[str, Comparison] = field(default_factory=dict)  # further checks, made with --implement only
    parts: tuple[str, ...] = ()  # the keys of what ``write`` returns, where it returns anything
    part: type[Record] = Record  # and what is demanded of each of their values when a manifest is read
    # started before the checks; the function that it returns is given them, adds figures to the facts, and yields lines
    measured: Callable[[Executor, Path, Program, Options, Mapping[str, Any]], Counted] | None = None
    page: Callable[[Facts], list[str]] | None = None  # a section of the README


TARGETS: dict[str, Target] = {
    "c": Target(
        write=c.write,
        files=(*c.SOURCES, "policy.py"),
        readme="`policy.h`, `policy.c`: C99 without libc; `policy_act(observation, action)`. `policy.py`: the same "
        "from Python (`from policy import Policy; Policy().act(values)`).",
        checks={
            "c": Comparison(c.SOURCES, c.compared, proves=("policy.c",)),
            "c cortex-m": Comparison(c.SOURCES, c.linked),
        },
    ),
    "onnx": Target(
        write=onnx.write,
        files=("policy.onnx",),
        readme="`policy.onnx`: int32 `observation` (batch, O) to int32 `action` (batch, A), standard operators.",
        checks={"onnx": Comparison(("policy.onnx",), onnx.compared, proves=("policy.onnx",))},
    ),
    "cuda": Target(
        write=cuda.write,
        files=(*c.SOURCES, "policy.py", "policy.cu"),
        readme="`policy.cu`: `policy_batch_cuda(observations, actions, count)`, a thread per action; includes "
        "`policy.c`.",
        checks={
            "cuda": Comparison((*c.SOURCES, "policy.cu"), cuda.compared, proves=("policy.cu",)),
            "torch": Comparison((), cuda.compared_in_torch),
        },
    ),
    "verilog": Target(
        write=cores.write,
        files=cores.FILES,
        readme="`policy_unrolled.v`: an action per clock; `policy_folded.v`: fewer resources. Both: valid/ready on "
        "either side, observations packed with the first in the lowest bits, synchronous reset.",
        checks=checks.CHECKS,
        netlists=checks.NETLISTS,
        parts=cores.CORES,
        part=cores.Core,
        measured=figures.measured,
        page=figures.page,
    ),
}


def named(text: str) -> tuple[str, ...]:
    """The targets of a list such as c,onnx; raises UserError for one that is not in the table."""
    words = tuple(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in TARGETS:
            raise UserError(f"--target {word!r}: {nearest(word, TARGETS)}")
    return words


def proofs(target: str) -> dict[str, list[str]]:
    """Every file that a target can prove, and the names of its checks that do: one of them has to be equal.

    >>> proofs("verilog")["policy_folded.v"]
    ['verilog folded', 'icarus folded']
    """
    found: dict[str, list[str]] = {}
    for name, comparison in TARGETS[target].checks.items():
        for file in comparison.proves:
            found.setdefault(file, []).append(name)
    return found
