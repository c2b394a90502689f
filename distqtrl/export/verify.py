"""The proof that every target of an exported folder says what the interpreter says, bit by bit.

Nothing of a folder runs that is not as its manifest says: what a check needs is read once, hashed, and copied to a
place of its own.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.config.stages import Environment
from distqtrl.environment import permission
from distqtrl.errors import UserError
from distqtrl.export import c, episodes, manifest, tools
from distqtrl.export.check import (
    DIFFERENT,
    EQUAL,
    NOT_CHECKED,
    Check,
    Comparison,
    Question,
    checked,
    parts,
)
from distqtrl.export.manifest import MANIFEST, PARTNER, PROGRAM, VECTORS
from distqtrl.export.targets import TARGETS, proofs
from distqtrl.export.tools import Unchecked
from distqtrl.policy import policy_file
from distqtrl.quantize import program as programs
from distqtrl.quantize.program import Ints, Program, Scale

LOOP = "closed loop"
OK, DIFFERS, UNPROVEN = 0, 1, 3  # exit codes; 2 is bad input


def checks(
    folder: Path,
    num_vectors: int,
    num_episodes: int,
    targets: tuple[str, ...] = (),
    *,
    netlists: bool = False,
    imports: bool = False,
) -> Iterator[Check]:
    """Every check of a folder: its files, each target (of those named), and C in the environment.

    imports: the environment's id may name any module. Raises UserError for a target that the folder does not have.
    """
    about = manifest.manifest(folder / MANIFEST)
    for target in targets:
        if target not in about["targets"]:
            has = ", ".join(about["targets"]) or "none"
            raise UserError(f"--target {target}: {folder} was exported without it, its targets are: {has}")
    program, seen_BO, seen_BA = manifest.read(folder)
    yield _files(folder, about, program)
    if (changed := _unlike(folder, about, PROGRAM)) or programs.digest(program) != about["program"]:
        why = f"{changed or f'{PROGRAM} is not the program that was exported'}, and it says what is right"
        yield Check("interpreter", NOT_CHECKED, detail=why)
        return
    same = bool((program.run(seen_BO) == seen_BA).all())
    yield Check("interpreter", EQUAL if same else DIFFERENT, vectors=len(seen_BO), detail=f"{PROGRAM} on {VECTORS}")
    x_BO = vectors(program, seen_BO, num_vectors, seed=0)
    y_BA = np.concatenate([program.run(part) for part in parts(x_BO)])
    wanted = [name for name in TARGETS if name in about["targets"] and (not targets or name in targets)]

    def check(target: str, name: str, comparison: Comparison) -> Check:
        def question(place: Path) -> Question:
            return Question(
                place=place, program=program, x_BO=x_BO, y_BA=y_BA, seen_BO=seen_BO, facts=about.get(target, {})
            )

        return _placed(name, comparison, folder, about, question)

    made = [(target, *item) for target in wanted for item in TARGETS[target].checks.items()]
    if netlists:
        made += [(target, *item) for target in wanted for item in TARGETS[target].netlists.items()]
    with tools.pool() as pool:  # most of it waits for a tool
        for future in [pool.submit(check, *each) for each in made]:
            yield future.result()
    if "c" in wanted:
        yield _closed_loop(folder, about, program, num_episodes, imports=imports)


def exit_code(found: Sequence[Check], named: Sequence[str] = ()) -> int:
    """The exit code of the verify command.

    OK: everything that was asked for is equal. DIFFERS: something differs. UNPROVEN: a target that was named was not
    checked, or nothing was.
    """
    if any(check.status == DIFFERENT for check in found):
        return DIFFERS
    proven = {check.target for check in found if check.status == EQUAL}
    if any(not proven & set(names) for target in named for names in proofs(target).values()):
        return UNPROVEN
    counted = {name for target in TARGETS.values() for name in target.checks}
    return OK if any(x.target in counted and x.status == EQUAL for x in found) else UNPROVEN


def vectors(program: Program, seen_BO: Ints, num: int, seed: int) -> Ints:
    """Integer observations (num, O) to compare on.

    Every possible one, or one for every combination of input levels, where num is enough; the rest are recorded ones,
    ones near them, corners, and random ones.
    """
    rng, every_BO = np.random.default_rng(seed), _every(program, num, seed)
    low, high = int(program.inputs.low_N[0]), int(program.inputs.high_N[0])
    width, num = len(program.input_fraction_O), num - len(every_BO)
    quarter = num // 4
    near = seen_BO[rng.integers(len(seen_BO), size=quarter)]
    spread = np.maximum(np.ptp(seen_BO, axis=0), 8)
    near_BO = (near + rng.integers(-spread, spread + 1, near.shape)).clip(low, high)
    corners_BO = rng.choice(np.array([low, low + 1, -1, 0, 1, high - 1, high]), (quarter, width))
    anything_BO = rng.integers(low, high + 1, (num - 3 * quarter, width))
    seen_BO = seen_BO[np.arange(quarter) % len(seen_BO)]
    return np.concatenate([every_BO, seen_BO, near_BO, corners_BO, anything_BO])


def _every(program: Program, num: int, seed: int) -> Ints:
    """All observations, or one of every combination of levels that the first operation tells apart; none beyond num."""
    low, high = int(program.inputs.low_N[0]), int(program.inputs.high_N[0])
    width, first = len(program.input_fraction_O), program.ops[0]
    all_B = np.arange(low, high + 1)
    choices = [all_B] * width if len(all_B) ** width <= num else []
    if isinstance(first, Scale) and not choices:
        shuffled_B = np.random.default_rng(seed).permutation(all_B)
        for i in range(width):
            _, where = np.unique(first.of(i, shuffled_B), return_index=True)
            choices.append(shuffled_B[where])
            if math.prod(map(len, choices)) > num:
                break
    if not choices or math.prod(map(len, choices)) > num:
        return np.empty((0, width), np.int64)
    return np.stack(np.meshgrid(*choices, indexing="ij"), -1).reshape(-1, width)


def _placed(
    name: str, comparison: Comparison, folder: Path, about: dict[str, Any], question: Callable[[Path], Question]
) -> Check:
    """The verdict of a comparison, in a place that holds its files as the manifest says."""
    try:
        with tools.workplace() as place:
            for file in comparison.files:
                _take(folder, about, file, place)
            return checked(name, comparison, question(place))
    except Unchecked as error:
        return Check(name, NOT_CHECKED, detail=str(error))


def _take(folder: Path, about: dict[str, Any], file: str, place: Path) -> Path:
    """A copy in place of a file of the folder; raises Unchecked where it is not as exported."""
    try:
        data = (folder / file).read_bytes() if (folder / file).is_file() else b""
    except OSError as error:
        raise Unchecked(f"{file} cannot be read ({error.strerror}): fix its permissions") from None
    if hashlib.sha256(data).hexdigest() != about["files"].get(file):
        raise Unchecked(f"{file} is not as exported, so it was not run")
    (place / file).write_bytes(data)
    return place / file


def _files(folder: Path, about: dict[str, Any], program: Program) -> Check:
    """Whether the folder's files are those of the manifest, and the manifest names all that its format demands."""
    every = {PROGRAM, VECTORS, "README.md", *(file for target in TARGETS.values() for file in target.files)}
    here = {name for path in folder.iterdir() if (name := path.name) in every or name.startswith(PARTNER)}
    demanded = {PROGRAM, VECTORS, *(file for target in about["targets"] for file in TARGETS[target].files)}
    wrong = [words for name in about["files"] if (words := _unlike(folder, about, name))]
    wrong += [f"{name} is not in {MANIFEST}" for name in sorted((here | demanded) - set(about["files"]))]
    owned = {"README.md", *demanded, *(name for name in here if name.startswith(PARTNER))}
    wrong += [f"{name} belongs to no target of {MANIFEST}" for name in sorted(here - owned)]
    if not wrong and programs.digest(program) != about["program"]:
        wrong = [f"{PROGRAM} is not the program that was exported"]
    words = ", ".join(wrong) or f"{len(about['files'])} files as exported"
    return Check("files", DIFFERENT if wrong else EQUAL, detail=words)


def _unlike(folder: Path, about: dict[str, Any], name: str) -> str:
    """The words for a file that is not as the manifest says; empty where it is."""
    return "" if digest(folder / name) == about["files"].get(name) else f"{name} not as exported"


def digest(path: Path) -> str:
    """SHA-256 of a file; "missing" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def _closed_loop(folder: Path, about: dict[str, Any], program: Program, num: int, *, imports: bool) -> Check:
    """The C policy drives the environment, beside the policies of other agents; the interpreter looks on."""
    steps = wrong = 0

    def act(obs_BO: np.ndarray) -> np.ndarray:
        nonlocal steps, wrong
        actions = np.array([policy.act(row) for row in obs_BO])
        expected = program.act(obs_BO)
        steps, wrong = steps + len(obs_BO), wrong + int((actions.reshape(expected.shape) != expected).any())
        return actions.reshape(expected.shape).astype(expected.dtype)

    try:
        environment, agents = Environment(**about["environment"]), tuple(about.get("agents", ()))
        permission.check(environment.id, folder / MANIFEST, imports)
        with tools.workplace() as place:
            for file in TARGETS["c"].files:
                _take(folder, about, file, place)
            others = sorted(name for name in about["files"] if name.startswith(PARTNER))
            partners = [policy_file.load(_take(folder, about, name, place)) for name in others]
            policy = c.library(place)
            returns = episodes.returns(
                environment, agents=agents, partners=partners, act=act, num=num, purpose="evaluation"
            )
    except Exception as error:  # an environment can fail in any way
        if wrong:
            return Check(LOOP, DIFFERENT, vectors=steps, detail=f"{wrong:,} actions of C, until {type(error).__name__}")
        words = next(iter(str(error).splitlines()), "")
        known = isinstance(error, (Unchecked, UserError))
        return Check(LOOP, NOT_CHECKED, detail=words if known else f"{type(error).__name__}: {words}")
    detail = f"{num} episodes of {environment.id} driven by C, return {returns.mean():.2f}"
    figures = {"return": float(returns.mean())}
    return Check(LOOP, DIFFERENT if wrong else EQUAL, vectors=steps, detail=detail, figures=figures)
