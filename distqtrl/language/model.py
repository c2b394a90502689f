"""A decoder whose weights stay as they are, and factors of low rank that are made elsewhere: free numbers or a circuit.

    W = W_base + (B - B_0) A        for every linear layer that is named a target

B_0 are the factors at the start, so that training begins at the base and the update never exceeds the rank. The
library's modules do the rest: linear layers of the decoder are replaced, everything else stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distqtrl.errors import UserError
from distqtrl.language.checkpoint import Checkpoint
from distqtrl.language.packed import FrozenLinear
from distqtrl.quantize import blocks
from distqtrl.quantize.blocks import BLOCK_FORMATS, Encoded

HELD = 1 << 27  # weights of linear layers up to which an acting policy keeps them decoded, changes included
HEAD_NORMS = ("q_norm", "k_norm")  # of Qwen3's attention heads: noise is for what layers read


@dataclass(frozen=True)
class Noise:
    """Scales of RMSNorms with noise in them, by the norm's name; reached: how many differ from the base's."""

    deviation: float
    scales: dict[str, Tensor]
    reached: int


class Model:
    """A frozen decoder with factors of low rank: ``num_factors`` numbers in ``layers``, A then B of every target.

    precision: a format of ``quantize.blocks`` for all linear layers of the decoder, or none; those with blocks stay
    packed. targets: ends of the names of linear layers. Raises UserError where no layer has such a name, a layer does
    not divide into blocks, or the checkpoint is in another format already.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str,
        rank: int,
        targets: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.checkpoint, self.rank, self.targets, self.dtype = checkpoint, rank, targets, dtype
        if checkpoint.quantized and precision not in ("none", "nvfp4"):
            raise UserError(
                f"adapter.precision = {precision}: {checkpoint.directory} is quantized already, in nvfp4: choose nvfp4 "
                "or none, or give the checkpoint it was made from"
            )
        self.network, encoded = checkpoint.network(dtype)
        self.linear = self._frozen(encoded, precision)
        self.adapted = [name for name in self.linear if name.endswith(targets)]
        self._check_targets()
        self.network.to(device).requires_grad_(False)
        self.norms = [
            name
            for name, module in self.network.named_modules()
            if type(module).__name__.endswith("RMSNorm") and not name.endswith(HEAD_NORMS)
        ]
        self._start: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        found: torch.device = self.network.device
        return found

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(number of factors, fan-in) of what is to be made: per target A, then B."""
        shapes = (self.linear[name].shape for name in self.adapted)
        return [part for o, i in shapes for part in ((self.rank * i, i), (o * self.rank, self.rank))]

    @property
    def num_factors(self) -> int:
        """F."""
        return sum(size for size, _ in self.layers)

    def start(self, start_F: Tensor) -> None:
        """Fix B_0, with which every layer is the base's."""
        self._start = [b.detach().clone() for _, b in self._split(start_F.to(self.device, self.dtype))]

    def factors(self, factors_F: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """A (rank, I) and B - B_0 (O, rank) of every target, by its name; differentiable."""
        if not self._start:
            raise ValueError("factors before those at the start are known")
        split = self._split(factors_F.to(self.device, self.dtype))
        return {name: (a, b - b0) for name, (a, b), b0 in zip(self.adapted, split, self._start, strict=True)}

    def logits(
        self,
        tokens_NT: Tensor,
        mask_NT: Tensor | None,
        factors_F: Tensor | None,
        norm_noise: Noise | None = None,
        cache: Any = None,
        last: int = 0,
    ) -> Tensor:
        """What is said of the next token (N, T, V), differentiable in factors_F; without factors, the base's.

        mask_NT is False where a row is padding on the left; with a cache it covers what that holds, too. None: there is
        no padding. last: of so many positions only, 0 for all.
        """
        with self.acting(factors_F, norm_noise):
            return self.forward(tokens_NT, mask_NT, cache=cache, last=last)

    def forward(self, tokens_NT: Tensor, mask_NT: Tensor | None, cache: Any = None, last: int = 0) -> Tensor:
        """What the policy that is ``acting`` says of the next token, (N, T, V); arguments are those of ``logits``."""
        if mask_NT is not None and bool(mask_NT.all()):
            mask_NT = None
        padded: dict[str, Any] = {}
        if mask_NT is not None:
            positions_NT = (mask_NT.long().cumsum(1) - 1).clamp(min=0)[:, -tokens_NT.shape[1] :]
            padded = {"attention_mask": mask_NT.long(), "position_ids": positions_NT}
        found = self.network(
            input_ids=tokens_NT, cache=cache, use_cache=cache is not None, logits_to_keep=last, **padded
        )
        logits_NTV: Tensor = found.logits
        return logits_NTV

    @contextmanager
    def acting(
        self, factors_F: Tensor | None, noise: Noise | None = None, held: bool = False, precision: str = "none"
    ) -> Iterator[None]:
        """Set factors and noise for the forward passes inside, and take them away again.

        held: no gradient is asked for, so a small model keeps W + (B - B_0) A of every layer for as long. precision:
        a format that these sums are rounded to.
        """
        factors = {} if factors_F is None else self.factors(factors_F)
        norms = {} if noise is None else {self.network.get_submodule(name): w for name, w in noise.scales.items()}
        scales = {norm: norm.weight for norm in norms}
        try:
            for name, pair in factors.items():
                self.linear[name].factors = pair
            for norm, weight in norms.items():
                norm.weight = nn.Parameter(weight, requires_grad=False)
            if held and (precision != "none" or self.num_weights <= HELD):
                with torch.no_grad():
                    for name, layer in self.linear.items():
                        layer.held = _rounded(precision, layer.merged(), name)
            yield
        finally:
            for layer in self.linear.values():
                layer.factors = layer.held = None
            for norm, weight in scales.items():
                norm.weight = weight

    def noisy(self, deviation: float, rng: np.random.Generator) -> Noise:
        """Noise for the acting policy: w + N(0, deviation**2) in the scale w of both norms of a block, and the last.

        As many numbers are drawn at deviation 0. Raises UserError where noise is due and no RMSNorm, or not every one,
        gets any: the released QeRL code looks for a class that its engine does not use, and none does.
        """
        scales, reached = {}, 0
        for name in self.norms:
            weight = self.network.get_submodule(name).weight
            drawn = torch.from_numpy(rng.standard_normal(len(weight))).to(weight.device) * deviation
            scales[name] = (weight + drawn).to(weight.dtype)
            reached += not torch.equal(scales[name], weight)
        if deviation and reached < max(len(self.norms), 1):
            raise UserError(
                f"rollout.noise (deviation {deviation:g}) reached {reached} of {len(self.norms)} RMSNorms: noise "
                "without RMSNorm, or below its scale's rounding, does nothing: rollout.noise none, or raise noise_end"
            )
        return Noise(deviation, scales, reached)

    @property
    def num_weights(self) -> int:
        """How many the decoder's linear layers have."""
        return sum(o * i for o, i in (layer.shape for layer in self.linear.values()))

    @property
    def bits_per_weight(self) -> float:
        """Measured, of the decoder's linear layers: what their weights take in memory."""
        num_bytes = sum(layer.num_bytes for layer in self.linear.values())
        return 8 * num_bytes / self.num_weights

    def _frozen(self, encoded: dict[str, Encoded], precision: str) -> dict[str, FrozenLinear]:
        """Replace the linear layers of the decoder's blocks; the head and the embedding stay."""
        prefix = "model.layers."
        found = {
            name: module
            for name, module in self.network.named_modules()
            if name.startswith(prefix) and isinstance(module, nn.Linear)
        }
        made = {}
        for name, module in found.items():
            weight = encoded[name] if name in encoded else _kept(precision, module.weight.detach(), name)
            made[name] = FrozenLinear(weight, module.bias, self.dtype)
            self.network.set_submodule(name, made[name])
        if lost := sorted(encoded.keys() - made.keys()):
            raise UserError(
                f"language.base = {self.checkpoint.directory}: {lost[0]} is packed, and only the linear layers of its "
                "blocks may be: pack it again, with that among those to ignore"
            )
        return made

    def _check_targets(self) -> None:
        for target in self.targets:
            if not any(name.endswith(target) for name in self.linear):
                there = sorted({name.rpartition(".")[2] for name in self.linear})
                raise UserError(
                    f"language.targets: no linear layer of {self.checkpoint.directory} ends in {target!r}: "
                    f"there are {', '.join(there)}"
                )
        if not self.adapted:
            raise UserError("language.targets names no layer: name at least one, such as q_proj")

    def _split(self, factors_F: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and B of every target."""
        parts = iter(torch.split(factors_F, [size for size, _ in self.layers]))
        shapes = [self.linear[name].shape for name in self.adapted]
        return [(next(parts).view(self.rank, i), next(parts).view(o, self.rank)) for o, i in shapes]


def _kept(precision: str, weight_OI: Tensor, name: str) -> Encoded | Tensor:
    """The weights in the format that they are kept in."""
    if precision not in BLOCK_FORMATS:
        return _rounded(precision, weight_OI, name)
    inputs, block = weight_OI.shape[1], BLOCK_FORMATS[precision].block
    if inputs % block:
        raise UserError(
            f"adapter.precision = {precision}: {name} has {inputs} inputs, no multiple of the block's {block}: choose "
            "a format without blocks, such as int4, or a base of other widths"
        )
    return blocks.encode(weight_OI.float().cpu().numpy(), precision)


def _rounded(precision: str, weight_OI: Tensor, name: str) -> Tensor:
    if precision == "none":
        return weight_OI
    try:
        rounded = blocks.rounded(precision, weight_OI.float().cpu().numpy())
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return torch.from_numpy(rounded).to(weight_OI.device, weight_OI.dtype)
