"""Weights of four bits on a CPU: products of a few rows with an NVFP4 matrix, and a rollout beside the library's own.

    python benchmarks/four_bits.py            2 minutes; writes benchmarks/results/four_bits/four_bits.*
    python benchmarks/four_bits.py --quick    small; writes nothing unless -o is given

Products: a matrix of 4096 x 4096 in NVFP4 multiplied by our C code without being decoded, and decoded for every
product, beside torch's own products with the same matrix in bfloat16 and float32. Rollouts: completions of 16 tokens,
in groups of 8, of a random decoder of 0.86 million weights in float32, by ``language.sampler`` and by ``generate`` of
transformers, which has no update of low rank to merge. CPU time of one thread, taken in turns; medians, and quartiles
of the ratio. Needs the extra llm.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib import setting

from distqtrl import seeding
from distqtrl.config.frozen import TARGETS
from distqtrl.language import arithmetic, checkpoint, kernel, pretrain, sampler
from distqtrl.language.model import Model
from distqtrl.language.packed import FrozenLinear
from distqtrl.quantize import blocks

ROWS = (1, 2, 4, 8, 16, 32)
COMPLETIONS = (8, 64, 256)
TOKENS, GROUP = 16, 8
WAYS = ("in C", "decoded", "bfloat16", "float32")


def main() -> None:
    args = setting.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    size, times = (256, 3) if args.quick else (4096, 41)
    results: dict[str, Any] = {
        **setting.facts("torch", "transformers"),
        "compiled": kernel.library() is not None,
        "size": size,
        **products(size, times),
        "rollouts": rollouts(COMPLETIONS[: 1 if args.quick else None], 2 if args.quick else 11),
    }
    setting.save(args, "four_bits/four_bits", results, table(results))


def in_turns(ways: dict[str, Callable[[], object]], times: int) -> dict[str, np.ndarray]:
    """CPU milliseconds of every way, once without being counted, then so many times one after the other."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(times + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if count:
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: np.array(values) for name, values in taken.items()}


def told(taken: dict[str, np.ndarray], ours: str, peer: str) -> dict[str, Any]:
    """Medians, and how much longer the peer takes: quartiles of the pairs' ratios."""
    quartiles = np.quantile(taken[peer] / taken[ours], [0.25, 0.5, 0.75]).tolist()
    return {"ms": {name: float(np.median(values)) for name, values in taken.items()}, "ratio": quartiles}


@torch.no_grad()
def products(size: int, times: int) -> dict[str, Any]:
    """Every number of rows, in every way; what they differ by at most, of the greatest number; bits of a weight."""
    weight = np.random.default_rng(0).standard_normal((size, size)) * 0.02
    layer = FrozenLinear(blocks.encode(weight, "nvfp4"), None, torch.float32)
    plain, half = layer.weight(), layer.weight().bfloat16()
    found, differs = [], 0.0
    for rows in ROWS:
        x = torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))
        few = x.bfloat16()
        ways = {
            "in C": lambda x=x: layer(x),
            "decoded": lambda x=x: torch.nn.functional.linear(x, layer.weight()),
            "bfloat16": lambda few=few: torch.nn.functional.linear(few, half),
            "float32": lambda x=x: torch.nn.functional.linear(x, plain),
        }
        exact = x.double() @ plain.double().T
        differs = max(differs, float((layer(x) - exact).abs().max() / exact.abs().max()))
        found.append({"rows": rows, **told(in_turns(ways, times), "in C", "bfloat16")})
    return {"bits": 8 * layer.num_bytes / size**2, "differs": differs, "products": found}


@torch.no_grad()
def rollouts(numbers: tuple[int, ...], times: int) -> list[dict[str, Any]]:
    """So many completions, ours and the library's."""
    with tempfile.TemporaryDirectory() as place:
        tokenizer = pretrain.characters(arithmetic.CHARACTERS)
        network = pretrain.decoder(pretrain.Settings(), len(tokenizer), ends=1, pad=0).eval()
        network.save_pretrained(place)
        tokenizer.save_pretrained(place)
        opened = replace(checkpoint.opened(Path(place)), ends=(-1,))  # none ends early
        model = Model(opened, "none", rank=8, targets=TARGETS)
        network.generation_config.eos_token_id = None
    factors_F = 0.01 * torch.randn(model.num_factors, generator=torch.Generator().manual_seed(0))
    model.start(factors_F)
    found = []
    for number in numbers:
        prompts = [[3 + i % 10, 4, 13, 5, 6, 14] for i in range(number // GROUP) for _ in range(GROUP)]
        asked = torch.tensor(prompts)

        def ours(prompts: list[list[int]] = prompts) -> int:
            streams = [seeding.stream(0, "action", i) for i in range(len(prompts))]
            made = sampler.complete(model, factors_F, prompts, streams, max_tokens=TOKENS, temperature=1.0)
            return int(made.length_N.sum())

        def theirs(asked: torch.Tensor = asked) -> torch.Tensor:
            mask = torch.ones_like(asked)
            settings = {"do_sample": True, "top_k": 0, "max_new_tokens": TOKENS, "pad_token_id": 0}
            return network.generate(asked, attention_mask=mask, **settings)

        taken = in_turns({"ours": ours, "generate": theirs}, times)
        found.append({"completions": number, "tokens": ours(), **told(taken, "ours", "generate")})
    return found


def table(results: dict[str, Any]) -> str:
    lines = [
        "# NVFP4 on a CPU: products and completions",
        "",
        f"CPU milliseconds of products with a matrix of {results['size']} x {results['size']} in NVFP4, "
        f"{results['bits']:.3f} bits a weight; the last column is how much longer bfloat16 takes than the C code, "
        f"whose sums are exact to {results['differs']:.0e} of the greatest.",
        "",
        f"| rows | {' | '.join(WAYS)} | times bfloat16 |",
        f"|--:|{'--:|' * len(WAYS)}--:|",
    ]
    for row in results["products"]:
        cells = " | ".join(f"{row['ms'][way]:.2f}" for way in WAYS)
        lines.append(f"| {row['rows']} | {cells} | {ratio(row)} |")
    lines += ["", f"CPU milliseconds of completions of {TOKENS} tokens.", ""]
    lines += ["| completions | ours | generate | times generate |", "|--:|--:|--:|--:|"]
    for row in results["rollouts"]:
        lines.append(f"| {row['completions']} | {row['ms']['ours']:.0f} | {row['ms']['generate']:.0f} | {ratio(row)} |")
    return "\n".join([*lines, "", setting.line(results)])


def ratio(row: dict[str, Any]) -> str:
    low, middle, high = row["ratio"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
