"""An exported folder: calibrate, quantize, write every target, prove, and only then put it where it was asked for."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.environment import permission
from distqtrl.errors import UserError
from distqtrl.export import c, cuda, episodes, manifest, readme, tools, verify
from distqtrl.export.check import DIFFERENT, Check
from distqtrl.export.measured import errors, formats, returns
from distqtrl.export.options import BITS, PER, Options
from distqtrl.export.verilog import folded, unrolled
from distqtrl.export.verilog.checks import CORES
from distqtrl.export.verilog.figures import _count, _figures
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

    What cannot be checked here is written and recorded as such; what differs is not written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: give -o a new folder, or remove it")
    policy, partners = policy_file.load(path), policy_file.partners(path)
    lower.check(policy.head)
    permission.check(policy.environment["id"], path, options.imports)
    episodes.check([policy, *partners])
    if policy.trained is not None:
        _refuse(path, options)
    obs_BO = _observations(policy, partners, options.calibration)
    quantized, settings = _quantized(policy, obs_BO, options)
    whole = lower.program(quantized, policy.head)
    program = lower.pruned(whole)
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
            "errors": errors(quantized, whole, None if policy.trained else policy.floating(), obs_BO),
            "returns": returns(policy, partners, program, options.episodes),
            "versions": versions(),
        }
        about |= _written(made, program, obs_BO, options)
        for number, partner in enumerate(partners):  # what the proof in the environment needs beside the program
            partner.save(made / f"{verify.PARTNER}{number}.safetensors")
        about["files"] = {p.name: verify.digest(p) for p in sorted(made.iterdir())}
        _save(made, about)
        with tools.pool() as pool:  # Yosys and nextpnr, beside the checks
            todo = {}
            for name in CORES if "verilog" in options.targets else ():
                todo[name] = pool.submit(_figures, made, name, about["verilog"][name], program, options)
                if options.part and name == "folded":
                    todo[name].result()  # before anything else: there may be nothing to prove
            about["checks"] = []
            for check in _checks(made, options):
                say(readme.line(check))
                about["checks"].append(asdict(check))
            for name, future in todo.items():
                about["verilog"][name] |= future.result()
                _count(about, name, options)
                say(readme.core_line(name, about["verilog"][name]))
        if any(check["status"] == DIFFERENT for check in about["checks"]):
            raise UserError(f"a target differs from the interpreter (above), {folder} was not written: report this bug")
        (made / "README.md").write_text(readme.page(about, program))
        about["files"]["README.md"] = verify.digest(made / "README.md")
        _save(made, about)
        made.rename(folder)
    return about


def _checks(made: Path, options: Options) -> Iterator[Check]:
    """The proof of what was just made; the policy file's environment was permitted before."""
    return verify.checks(made, options.vectors, options.episodes, netlists=options.implement, imports=True)


def _refuse(path: Path, options: Options) -> None:
    """Raise UserError for what would quantize a policy again that was trained with quantization."""
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
    (folder / verify.MANIFEST).write_text(json.dumps(about, indent=1) + "\n")


def _observations(policy: Policy, partners: Sequence[Policy], file: Path | None) -> np.ndarray:
    """Observations to calibrate on: a file's, or what the policy sees when it plays."""
    width = policy.architecture.num_inputs
    if file is not None:
        try:
            return calibrate.checked(np.load(file, allow_pickle=False), width, str(file))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"cannot read observations {file} ({error}): give a .npy file of shape (N, {width})"
            ) from None
    seen = episodes.observations(policy, partners, CALIBRATION_EPISODES)
    return calibrate.checked(seen, width, "the policy's own episodes")


def _written(folder: Path, program: Program, obs_BO: np.ndarray, options: Options) -> dict[str, Any]:
    """Write every target's files; returns what the manifest says about them."""
    (folder / "program.json").write_text(programs.dumps(program))
    seen = program.convert(obs_BO[np.linspace(0, len(obs_BO) - 1, min(RECORDED, len(obs_BO))).astype(int)])
    np.savetxt(folder / "vectors.csv", np.hstack([seen, program.run(seen)]), "%d", ",")
    if {"c", "cuda"} & set(options.targets):
        c.write(program, folder)
    if "cuda" in options.targets:
        (folder / "policy.cu").write_text(cuda.SOURCE)
    if "onnx" in options.targets:
        try:
            from distqtrl.export import onnx
        except ImportError:
            raise UserError("target onnx: onnx is missing: install distqtrl[onnx], or leave the target out") from None
        (folder / "policy.onnx").write_bytes(onnx.model(program))
    if "verilog" not in options.targets:
        return {}
    folding = options.folding or folded.usual(program)
    (folder / "policy_unrolled.v").write_text(unrolled.verilog(program))
    (folder / "policy_folded.v").write_text(folded.verilog(program, folding))
    common = {"observation_bits": program.input_bits}
    return {
        "verilog": {
            "unrolled": {"observations_per_beat": len(program.input_fraction_O), **common},
            "folded": {"observations_per_beat": folding.columns, **common, **asdict(folding)},
        }
    }
