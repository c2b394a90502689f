"""An exported folder: calibrate, quantize, write every target, prove, and only then put it where it was asked for."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from distqtrl.environment import permission
from distqtrl.errors import UserError
from distqtrl.export import episodes, manifest, readme, tools, verify
from distqtrl.export.check import DIFFERENT
from distqtrl.export.manifest import MANIFEST, PARTNER, PROGRAM, VECTORS
from distqtrl.export.measured import errors, formats, joules, returns
from distqtrl.export.options import BITS, PER, Options
from distqtrl.export.targets import TARGETS
from distqtrl.files import reading
from distqtrl.policy import lower, policy_file
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize import calibrate
from distqtrl.quantize import program as programs
from distqtrl.quantize.calibrate import QuantizedNetwork
from distqtrl.quantize.formats import Bits
from distqtrl.quantize.program import Program
from distqtrl.versions import versions

RECORDED = 1000  # test vectors in the folder
CALIBRATION_EPISODES = 20


def export(path: Path, folder: Path, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the folder and return its manifest; raises UserError and leaves nothing where something is wrong.

    What cannot be checked on this machine is written and recorded as such; nothing is written where a target differs.
    """
    if os.path.lexists(folder):  # also a link that leads nowhere
        raise UserError(f"{folder} exists: give -o a new folder, or remove it")
    policy, partners = policy_file.load(path), policy_file.partners(path)
    lower.check(policy.head)
    permission.check(policy.environment["id"], path, options.imports)
    episodes.check([policy, *partners])
    if policy.trained is not None:
        _refuse(path, options)
    obs_BO = _observations(policy, partners, options.calibration)
    quantized, settings = _quantized(policy, obs_BO, options)
    program = policy.program(quantized)
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.")
    with tools.orderly(options.limit_s), hidden as place:
        made = Path(place) / "export"
        made.mkdir()
        about: dict[str, Any] = {
            "format": manifest.FORMAT,
            "policy": {"file": str(path), "sha256": verify.digest(path)},
            "program": programs.digest(program),
            "environment": policy.environment,
            "agents": policy.agents,
            "targets": list(options.targets),
            **settings,
            "formats": formats(program),
            "errors": errors(policy, quantized, obs_BO),
            "returns": returns(policy, partners, program, options.episodes),
            "versions": versions(),
        }
        about |= _written(made, program, obs_BO, options)
        for number, partner in enumerate(partners):  # what the proof in the environment needs beside the program
            partner.save(made / f"{PARTNER}{number}.safetensors")
        about["files"] = {p.name: verify.digest(p) for p in sorted(made.iterdir())}
        _save(made, about)
        _prove(made, program, about, options, say)
        if options.joules:
            about["energy"] = joules(made, manifest.read(made)[1])
            say(readme.energy(about["energy"]))
        if any(check["status"] == DIFFERENT for check in about["checks"]):
            raise UserError(f"a target differs from the interpreter (above), {folder} was not written: report this bug")
        (made / "README.md").write_text(readme.page(about, program))
        about["files"]["README.md"] = verify.digest(made / "README.md")
        _save(made, about)
        made.rename(folder)
    return about


def _prove(made: Path, program: Program, about: dict[str, Any], options: Options, say: Callable[[str], None]) -> None:
    """Add the checks of what was just made to its manifest, and what its targets cost, which is counted meanwhile."""
    chosen = {name: target for name, target in TARGETS.items() if name in options.targets}
    with tools.pool() as pool:
        counted = [
            target.measured(pool, made, program, options, about[name])
            for name, target in chosen.items()
            if target.measured is not None
        ]
        about["checks"] = []
        # the environment of the policy file was permitted before
        for check in verify.checks(made, options.vectors, options.episodes, netlists=options.implement, imports=True):
            say(readme.line(check))
            about["checks"].append(asdict(check))
        for lines in counted:
            for line in lines(about["checks"]):
                say(line)


def _refuse(path: Path, options: Options) -> None:
    """Raise UserError for options that would quantize a policy again which was trained with quantization."""
    for name in ("bits", "per", "calibration"):
        if (value := getattr(options, name)) is not None:
            text = ",".join(f"{k}={v}" for k, v in asdict(value).items()) if isinstance(value, Bits) else value
            raise UserError(f"--{name} {text}: {path} was trained with its quantization, which is exported: remove it")


def _quantized(policy: Policy, obs_BO: np.ndarray, options: Options) -> tuple[QuantizedNetwork, dict[str, Any]]:
    """The policy as integers, and what the manifest says about how it became so."""
    if policy.trained is not None:
        settings = policy.trained.settings
        core = settings.core_bits[0] if len(set(settings.core_bits)) == 1 else list(settings.core_bits)
        used = {"core": core, "input": settings.input_bits, "output": settings.output_bits}
        return policy.quantized(), {"quantized": "while training", "bits": used, "per": settings.per}
    chosen, per = options.bits or BITS, options.per or PER
    quantized = calibrate.quantized(policy.floating(), obs_BO, chosen, per)
    return quantized, {"quantized": "after training", "bits": asdict(chosen), "per": per}


def _save(folder: Path, about: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(about, indent=1) + "\n")


MAGIC = b"\x93NUMPY"  # how a .npy file begins


def _observations(policy: Policy, partners: Sequence[Policy], file: Path | None) -> np.ndarray:
    """Observations to calibrate on: a file's, or what the policy sees when it plays."""
    width = policy.architecture.num_inputs
    if file is not None:
        try:
            reading.regular(file)
            with file.open("rb") as opened:
                if opened.read(len(MAGIC)) != MAGIC:
                    raise ValueError("it is not a .npy file")
            return calibrate.checked(np.load(file, allow_pickle=False), width, str(file))
        except (OSError, ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TokenError) as error:
            reason = "it is larger than memory" if isinstance(error, MemoryError) else error
            raise UserError(
                f"cannot read observations {file} ({reason}): give a .npy file of shape (N, {width})"
            ) from None
    seen = episodes.observations(policy, partners, CALIBRATION_EPISODES)
    return calibrate.checked(seen, width, "the policy's own episodes")


def _written(folder: Path, program: Program, obs_BO: np.ndarray, options: Options) -> dict[str, Any]:
    """Write the program, the test vectors and the files of every target; returns what the manifest says about them."""
    (folder / PROGRAM).write_text(programs.dumps(program))
    seen = program.convert(obs_BO[np.linspace(0, len(obs_BO) - 1, min(RECORDED, len(obs_BO))).astype(int)])
    np.savetxt(folder / VECTORS, np.hstack([seen, program.run(seen)]), "%d", ",")
    told = {name: target.write(folder, program, options) for name, target in TARGETS.items() if name in options.targets}
    return {name: facts for name, facts in told.items() if facts}
