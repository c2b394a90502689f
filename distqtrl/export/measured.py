"""What is measured of an export: formats, errors of quantization, returns, joules."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.config.stages import Environment
from distqtrl.export import c, episodes, tools
from distqtrl.export.tools import Unchecked
from distqtrl.policy import lower
from distqtrl.policy.policy_file import Policy
from distqtrl.quantize import calibrate
from distqtrl.quantize import program as programs
from distqtrl.quantize.calibrate import QuantizedNetwork
from distqtrl.quantize.program import Ints, Program
from distqtrl.record import energy


def formats(program: Program) -> dict[str, Any]:
    """The formats of what goes in and out, and the widths of everything between."""
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


def errors(policy: Policy, quantized: QuantizedNetwork, obs_BO: np.ndarray) -> list[dict[str, float]]:
    """The errors of every layer's quantization.

    In its grid's levels: the worst that rounding can do inside the grid's range, over every input that the program
    allows. In its own units: the deviation from the float network over the recorded observations; of a policy that was
    trained as integers there is nothing to deviate from.
    """
    program = lower.program(quantized, policy.head)  # not pruned: as wide as the network
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
    if policy.trained is None:
        for figures, deviation_BN in zip(out, _deviations(quantized, policy.floating(), obs_BO), strict=True):
            figures["recorded_max"] = float(np.abs(deviation_BN).max())
            figures["recorded_rms"] = float(np.sqrt((deviation_BN**2).mean()))
    return out


def _deviations(quantized: QuantizedNetwork, network: calibrate.Network, obs_BO: np.ndarray) -> Iterator[np.ndarray]:
    """For every layer, what its levels mean minus what the float network says."""
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
    """Returns of the same episodes before and after, and their mean difference with its 95 % normal interval.

    One episode has no interval.
    """
    environment = Environment(**policy.environment)
    both = [
        episodes.returns(environment, agents=policy.agents, partners=partners, act=act, num=num, purpose="evaluation")
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


def joules(folder: Path, seen_BO: Ints) -> dict[str, Any]:
    """The energy of an action of the folder's C code on one core of this machine, as ``energy.of_calls`` says it."""
    try:
        with tools.workplace() as place:
            for name in c.SOURCES:
                shutil.copyfile(folder / name, place / name)
            policy = c.library(place)
            return energy.of_calls(lambda: len(policy.batch(seen_BO)))
    except Unchecked as error:
        return {"joules_per_action": None, "method": f"{energy.NOWHERE}: {error}"}
