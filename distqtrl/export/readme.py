"""The page of an exported folder, and the lines that a check and a core print."""

from typing import Any

from distqtrl.export.check import EQUAL, Check
from distqtrl.export.targets import PROOFS
from distqtrl.quantize import program as programs
from distqtrl.quantize.program import Program


def line(check: Check) -> str:
    """A check in words."""
    count = f" {check.vectors:,} vectors" if check.vectors else ""
    return f"{check.target:<17} {check.status}{count}{f': {check.detail}' if check.detail else ''}"


def page(about: dict[str, Any], program: Program) -> str:
    """The folder's own page."""
    r, f = about["returns"], about["formats"]
    lines = [
        f"# A policy for {about['environment']['id']}, as integers",
        "",
        "Exported by distqtrl. `program.json` says which integers are right; what was compared with it, bit for bit,",
        "when this folder was made:",
        "",
        *(f"* {text}" for text in proven(about)),
        "",
        "`distqtrl verify .` compares again, with the tools of the machine that it runs on.",
        "",
        f"Quantized {about['quantized']}. Bits: {bits(about['bits'])}, per {about['per']}.",
        f"Return over {r['episodes']} episodes: {r['float']:.2f} before, {r['integer']:.2f} after {difference(r)}.",
        "",
        "## Formats",
        "",
        f"Observation i is a signed {f['observation']['bits']}-bit integer, floor(value * 2^f_i + 1/2), saturated;",
        f"f = {f['observation']['fraction_bits']}. What is not a number counts as the lowest value.",
        "",
        _action_words(program),
        "",
        "| operation | outputs | range | bits | widest intermediate |",
        "|---|--:|---|--:|--:|",
        *(
            f"| {o['op']} | {o['outputs']} | {o['low']} to {o['high']} | {o['bits']} | {o['widest_bits']} |"
            for o in f["operations"]
        ),
        "",
        "## Files",
        "",
        *(f"* {text}" for target, text in FILES.items() if target in about["targets"] or target == "all"),
        "",
        "## Checks when it was exported",
        "",
        *(f"* {line(Check(**check))}" for check in about["checks"]),
    ]
    if "verilog" in about:
        lines += ["", "## Cores", "", *core_table(about["verilog"])]
    return "\n".join(lines) + "\n"


def proven(about: dict[str, Any]) -> list[str]:
    """File by file, what the checks of an export say: equal on how many vectors, or not checked and why."""
    lines = []
    for file, found in _proofs(about).items():
        done = [f"{check['vectors']:,} vectors ({check['target']})" for check in found if check["status"] == EQUAL]
        why = "; ".join(f"{check['target']}: {check['detail']}" for check in found)
        lines.append(f"`{file}`: equal on {' and '.join(done)}" if done else f"`{file}`: **not checked** ({why})")
    return lines


def unproven(about: dict[str, Any]) -> list[str]:
    """The files that no check of an export found equal."""
    return [file for file, found in _proofs(about).items() if all(check["status"] != EQUAL for check in found)]


def _proofs(about: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every target's files, with the checks that can prove them."""
    checks = {check["target"]: check for check in about["checks"]}
    files = {file: names for target in about["targets"] for file, names in PROOFS[target].items()}
    return {file: [checks[name] for name in names if name in checks] for file, names in files.items()}


def bits(named: dict[str, Any]) -> str:
    """Every kind's bits in words; those of core may differ from layer to layer."""
    return ", ".join(f"{k} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in named.items())


def difference(returns: dict[str, Any]) -> str:
    """Of the return after and before, in words."""
    if returns["interval"] is None:
        return f"(difference {returns['difference']:.2f})"
    low, high = returns["interval"]
    return f"(difference {returns['difference']:.2f}, 95 % interval {low:.2f} to {high:.2f})"


def core_table(cores: dict[str, dict[str, Any]]) -> list[str]:
    """Every core's figures; resources are Yosys' for the 7 series, inverters counted as tables, the clock nextpnr's on
    an ECP5-85F."""
    words = ["core", "observations per beat", *ROWS]
    lines = [f"| {' | '.join(words)} |", "|---|" + "--:|" * (len(words) - 1)]
    for name, core in cores.items():
        flat = {**core, **core.get("resources", {})}
        cells = [_cell(flat[key]) if key in flat else "" for key in ("observations_per_beat", *ROWS.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = sorted({core["missing"] for core in cores.values() if "missing" in core})
    if any("resources" in core for core in cores.values()):
        lines += ["", "LUT: Yosys' tables for the 7 series, its inverters (INV) among them."]
    lines += ["", *(f"Not counted: {note}." for note in notes)]
    for core in cores.values():
        if "energy" in core:
            e = core["energy"]
            lines += [f"Energy: {e['static_watts']:g} W * time at 100 MHz + {e['joules_per_toggle']:g} J * toggles."]
            break
    return lines


ROWS = {
    "LUT": "lut", "FF": "ff", "BRAM36": "bram", "DSP": "dsp", "fits": "fits", "clocks": "clocks",
    "us at 100 MHz": "us_at_100_mhz", "ECP5 MHz": "mhz", "us at it": "us",
    "toggles per action": "toggles", "J per action": "joules",
}  # fmt: skip


def core_line(name: str, core: dict[str, Any]) -> str:
    """A core's figures in words."""
    flat = {**core, **core.get("resources", {})}
    words = [f"{_cell(flat[key])} {word}" for word, key in ROWS.items() if key in flat and key != "fits"]
    return f"{f'core {name}':<17} {core.get('missing') or ', '.join(words)}"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "no part known here"
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _action_words(program: Program) -> str:
    last = program.ops[-1]
    if isinstance(last, programs.Argmax):
        if not last.sizes:
            return "The action is the number of a choice."
        low_F, high_F = program.outputs.low_N.tolist(), program.outputs.high_N.tolist()
        numbers = ", ".join(f"{low} to {high}" for low, high in zip(low_F, high_F, strict=True))
        return f"An action is one number per factor, {len(last.sizes)} in all, of the choices {numbers}."
    return (
        f"Action i is a signed {program.outputs.bits}-bit integer that means value * 2^{-program.output_fraction}; "
        "it cannot leave the environment's bounds."
    )


FILES = {
    "all": "`program.json`: the integer program; `vectors.csv`: recorded observations and their actions, as "
    "integers; `manifest.json`: formats, errors, hashes, checks.",
    "c": "`policy.h`, `policy.c`: C99 without libc; `policy_act(observation, action)`. `policy.py`: the same from "
    "Python (`from policy import Policy; Policy().act(values)`).",
    "onnx": "`policy.onnx`: int32 `observation` (batch, O) to int32 `action` (batch, A), standard operators.",
    "cuda": "`policy.cu`: `policy_batch_cuda(observations, actions, count)`, a thread per action; includes `policy.c`.",
    "verilog": "`policy_unrolled.v`: an action per clock; `policy_folded.v`: fewer resources. Both: valid/ready on "
    "either side, observations packed with the first in the lowest bits, synchronous reset.",
}
