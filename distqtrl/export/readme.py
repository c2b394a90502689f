"""The page of an exported folder, and the line that a check prints."""

from typing import Any

from distqtrl.export.check import EQUAL, Check
from distqtrl.export.targets import TARGETS, proofs
from distqtrl.quantize import program as programs
from distqtrl.quantize.program import Program

ALWAYS = (
    "`program.json`: the integer program; `vectors.csv`: recorded observations and their actions, as integers; "
    "`manifest.json`: formats, errors, hashes, checks."
)


def line(check: Check) -> str:
    """A check in words."""
    count = f" {check.vectors:,} vectors" if check.vectors else ""
    return f"{check.target:<17} {check.status}{count}{f': {check.detail}' if check.detail else ''}"


def page(about: dict[str, Any], program: Program) -> str:
    """The README of an exported folder."""
    r, f = about["returns"], about["formats"]
    targets = {name: target for name, target in TARGETS.items() if name in about["targets"]}
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
        *((energy(about["energy"]) + ".", "") if "energy" in about else ()),
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
        f"* {ALWAYS}",
        *(f"* {target.readme}" for target in targets.values()),
        "",
        "## Checks when it was exported",
        "",
        *(f"* {line(Check(**check))}" for check in about["checks"]),
    ]
    for name, target in targets.items():
        if target.page is not None:
            lines += ["", *target.page(about[name])]
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
    """The files of every target, each with the checks that can prove it."""
    checks = {check["target"]: check for check in about["checks"]}
    files = {file: names for target in about["targets"] for file, names in proofs(target).items()}
    return {file: [checks[name] for name in names if name in checks] for file, names in files.items()}


def energy(told: dict[str, Any]) -> str:
    """The energy of an action of the C code, in words."""
    if told["joules_per_action"] is None:
        return f"joules per action of the C code: {told['method']}"
    return (
        f"joules per action of the C code: {told['joules_per_action']:.3g}, over {told['actions']:,} actions in "
        f"{told['seconds']:.1f} s on one core ({told['method']})"
    )


def bits(named: dict[str, Any]) -> str:
    """The bits of every kind in words; those of core may differ from layer to layer."""
    return ", ".join(f"{k} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in named.items())


def difference(returns: dict[str, Any]) -> str:
    """The difference of the returns after and before, in words."""
    if returns["interval"] is None:
        return f"(difference {returns['difference']:.2f})"
    low, high = returns["interval"]
    return f"(difference {returns['difference']:.2f}, 95 % interval {low:.2f} to {high:.2f})"


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
