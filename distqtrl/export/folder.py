"""An exported folder: calibrate, quantize, write every target, prove, and only then put it where it was asked for."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl import record
from distqtrl.config import Environment, UserError, nearest
from distqtrl.environment import permission
from distqtrl.export import c, cuda, episodes, folded, manifest, readme, synthesis, tools, unrolled, verify
from distqtrl.export.folded import Folding
from distqtrl.export.targets import CORES, DIFFERENT, TARGETS, Check
from distqtrl.policy import lower, policy_file
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize import calibrate
from distqtrl.quantize import program as programs
from distqtrl.quantize.calibrate import QuantizedNetwork
from distqtrl.quantize.formats import Bits, bits
from distqtrl.quantize.program import Program

RECORDED = 1000  # test vectors in the folder
CALIBRATION_EPISODES = 20
BITS, PER = Bits(core=4), calibrate.CHANNEL  # of a policy that is quantized after training, unless it is said


@dataclass(frozen=True)
class Options:
    """How to export: targets; bits, scales' sharing and recorded observations (none: BITS, PER, the policy records its
    own) of a policy that was not trained with quantization; folding, part; vectors and episodes of the proof; whether
    to simulate netlists, place and route; static watts and joules per toggle; whether
    the policy file may name any module for its environment; seconds that a tool may take (none: its own limit)."""

    targets: tuple[str, ...]
    bits: Bits | None
    per: str | None
    calibration: Path | None
    folding: Folding | None
    part: str | None
    vectors: int
    episodes: int
    implement: bool
    energy: tuple[float, float] | None
    imports: bool = False
    limit_s: float | None = None


def options(args: Any) -> Options:
    """The options of a command line (``distqtrl export --help``); raises UserError."""
    folding = None
    if args.parallel is not None:
        match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", args.parallel)
        if match is None or int(match[1]) % int(match[2]):
            raise UserError(
                f"--parallel {args.parallel}: write LANESxCOLUMNS, lanes a multiple of columns, such as 32x4"
            )
        folding = Folding(int(match[1]), int(match[2]))
    if args.part is not None and args.part not in synthesis.PARTS:
        raise UserError(f"--part {args.part}: known parts are {', '.join(synthesis.PARTS)}")
    if args.energy and not args.implement:
        raise UserError(f"--energy {args.energy}: toggles are counted with --implement only: give both")
    return Options(
        targets(args.target), None if args.bits is None else bits(args.bits), args.per, args.calibration, folding,
        args.part, args.vectors, args.episodes, args.implement, coefficients(args.energy) if args.energy else None,
        args.import_environment, args.tool_limit,
    )  # fmt: skip


def coefficients(text: str) -> tuple[float, float]:
    """Static watts and joules per toggle of a text such as 0.06,2e-13; raises UserError."""
    try:
        watts, joules = map(float, text.split(","))
    except ValueError:
        watts = joules = -1.0
    if not (0 <= watts < np.inf and 0 <= joules < np.inf):
        raise UserError(f"--energy {text}: write WATTS,JOULES: static power and energy per toggle, such as 0.06,2e-13")
    return watts, joules


def targets(text: str) -> tuple[str, ...]:
    """The targets of a list; raises UserError."""
    words = tuple(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in TARGETS:
            raise UserError(f"--target {word!r}: {nearest(word, TARGETS)}")
    return words


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
            "versions": record.versions(),
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


def formats(program: Program) -> dict[str, Any]:
    """What goes in and out, and how wide everything between is."""
    return {
        "observation": {"bits": program.input_bits, "fraction_bits": list(program.input_fraction_O)},
        "action": {"bits": program.outputs.bits, "fraction_bits": program.output_fraction},
        "operations": [
            {
                "op": type(op).__name__.lower(),
                "outputs": len(y.low_N),
                "low": int(y.low_N.min()),
                "high": int(y.high_N.max()),
                "bits": y.bits,
                "widest_bits": max(r.bits for r in (y, *programs.within(op, x))),
            }
            for op, x, y in program.steps()
        ],
    }


def errors(
    quantized: QuantizedNetwork, program: Program, network: calibrate.Network | None, obs_BO: np.ndarray
) -> list[dict[str, float]]:
    """Per layer, in its grid's levels: the worst that rounding can do inside the grid's range, over every input that
    the program allows; and in its own units: the deviation from the float network (none: the policy was trained as
    integers, there is nothing to deviate from) over the recorded observations."""
    scales = [(op, x) for op, x, _ in program.steps() if isinstance(op, programs.Scale)][1 : len(quantized.layers) + 1]
    out = []
    for layer, (scale, sums) in zip(quantized.layers, scales, strict=True):
        grid = layer.reads or layer.writes
        apart = [
            np.abs((end_N * scale.multiplier_N + scale.offset_N) / 2.0**scale.shift - 0.5
                   - (end_N * layer.step_N + layer.bias_N - grid.low_N) / grid.divisor_N)
            for end_N in (sums.low_N, sums.high_N)
        ]  # fmt: skip
        out.append({"worst_levels": round(0.5 + float(np.max(apart)), 6)})
    if network is not None:
        for figures, deviation_BN in zip(out, _deviations(quantized, network, obs_BO), strict=True):
            figures["recorded_max"] = float(np.abs(deviation_BN).max())
            figures["recorded_rms"] = float(np.sqrt((deviation_BN**2).mean()))
    return out


def _deviations(quantized: QuantizedNetwork, network: calibrate.Network, obs_BO: np.ndarray) -> Iterator[np.ndarray]:
    """What every layer's levels mean minus what the float network says."""
    x_BK, q_BK = network.clamped(obs_BO), quantized.inputs.levels(obs_BO)
    for number, ((weight_NK, bias_N), layer) in enumerate(
        zip(calibrate.folded(network), quantized.layers, strict=True)
    ):
        x_BK, q_BK = x_BK @ weight_NK.T + bias_N, layer.levels(q_BK)
        if number < len(quantized.layers) - 1:
            x_BK = np.maximum(x_BK, 0) if network.activation == "relu" else np.tanh(x_BK)
        elif network.outputs == calibrate.CLIPPED:
            x_BK = x_BK.clip(-1, 1)
        yield layer.writes.values(q_BK) - x_BK


def returns(policy: Policy, partners: Sequence[Policy], program: Program, num: int) -> dict[str, Any]:
    """Of the same episodes before and after, and the mean difference with its 95 % normal interval (of one: none)."""
    environment = Environment(**policy.environment)
    both = [
        episodes.returns(environment, policy.agents, partners, act, num, "evaluation")
        for act in (policy.act, program.act)
    ]
    difference = both[1] - both[0]
    mean = float(difference.mean())
    half = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5 if num > 1 else None
    return {
        "episodes": num,
        "float": float(both[0].mean()),
        "integer": float(both[1].mean()),
        "difference": mean,
        "interval": None if half is None else [mean - half, mean + half],
    }


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


def _figures(folder: Path, name: str, core: dict[str, Any], program: Program, options: Options) -> dict[str, Any]:
    """What Yosys counts and, if asked, the clock that nextpnr reaches; raises UserError where the part is too small."""
    text, top = (folder / f"policy_{name}.v").read_text(), f"policy_{name}"
    try:
        used = synthesis.resources(text, top)
        if options.part and name == "folded" and (over := synthesis.lacking(used, synthesis.PARTS[options.part])):
            raise UserError(_too_large(program, Folding(core["lanes"], core["columns"]), options.part, over))
        out: dict[str, Any] = {"resources": asdict(used)}
        out["fits"] = [part for part, room in synthesis.PARTS.items() if not synthesis.lacking(used, room)]
        if options.implement:
            lanes, outputs = core["observations_per_beat"], program.outputs
            out["mhz"] = synthesis.clock_mhz(text, top, lanes * program.inputs.bits, len(outputs.low_N) * outputs.bits)
    except tools.Unchecked as error:
        return {"missing": str(error)}
    return out


def _count(about: dict[str, Any], name: str, options: Options) -> None:
    """Clocks, time and toggles of a core, from the checks; energy from the user's coefficients."""
    core = about["verilog"][name]
    for check in about["checks"]:
        if check["target"] in (f"verilog {name}", f"netlist {name}"):
            core |= check["figures"]
    if "clocks" in core:
        core["us_at_100_mhz"] = core["clocks"] / 100
        if "mhz" in core:
            core["us"] = core["clocks"] / core["mhz"]
        if options.energy and "toggles" in core:
            watts, joules = options.energy
            core["joules"] = watts * core["us_at_100_mhz"] * 1e-6 + joules * core["toggles"]
            core["energy"] = {"static_watts": watts, "joules_per_toggle": joules}


def _too_large(program: Program, folding: Folding, part: str, over: dict[str, float]) -> str:
    """What is lacking, and the folding that would fit."""
    words = ", ".join(f"{value:g} {name.upper()}" for name, value in over.items())
    smaller = folding
    while smaller.lanes > smaller.columns or smaller.columns > 2:
        columns = min(smaller.columns, max(2, smaller.lanes // 4))
        smaller = Folding(max(smaller.lanes // 2, columns), columns)
        used = synthesis.resources(folded.verilog(program, smaller), "policy_folded")
        if not synthesis.lacking(used, synthesis.PARTS[part]):
            return f"the folded core lacks {words} in {part}: --parallel {smaller.lanes}x{smaller.columns} would fit"
    return f"the folded core lacks {words} in {part}, and no --parallel fits: use fewer bits or a larger part"
