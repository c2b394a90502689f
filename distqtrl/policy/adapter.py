"""A frozen base policy plus an update of low rank (LoRA, arXiv 2106.09685), whose factors are made elsewhere.

    W = W_base + B A - B_0 A_0        A (rank, inputs), B (outputs, rank), and biases b = b_base + c - c_0

Factors with the index 0 are those at the start, so that training begins at the base policy whatever makes them:
free numbers, or a circuit and its mapping.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distqtrl.config.frozen import Adapter as Settings
from distqtrl.errors import UserError
from distqtrl.policy import behaviour, network, policy_file
from distqtrl.policy.distribution import Head
from distqtrl.policy.network import Architecture
from distqtrl.policy.policy_file import Policy


def layers(architecture: Architecture, rank: int) -> list[tuple[int, int]]:
    """(number of weights, fan-in) of what is to be made: per policy layer A, then B with the bias' change.

    >>> layers(Architecture(4, (16,), 2, "relu"), rank=2)
    [(8, 4), (48, 2), (32, 16), (6, 2)]
    """
    return [part for o, i in architecture.shapes for part in ((rank * i, i), (o * rank + o, rank))]


def base(settings: Settings, architecture: Architecture, head: Head) -> Policy | None:
    """The base policy, rounded to ``precision``, if there is one; raises UserError where it does not fit this run."""
    if settings.base is None:
        return None
    found = policy_file.load(Path(settings.base))
    if found.trained is not None:
        raise UserError(
            f"adapter.base = {settings.base} was trained on integers, which round activations, too: give a policy in "
            "floating point (adapter.precision rounds its weights)"
        )
    if found.architecture.convolutions:
        raise UserError(
            f"adapter.base = {settings.base} has convolutions ({' '.join(found.architecture.convolutions)}), which "
            "repeat their weights, and an update would change them one by one: give a policy without"
        )
    if (found.architecture, found.head) != (architecture, head):
        raise UserError(
            f"adapter.base = {settings.base} is a {found.architecture.widths} {found.architecture.activation} policy, "
            f"this run's is {architecture.widths} {architecture.activation}: set policy.hidden and policy.activation"
        )
    if settings.precision != "none":
        rounded = network.unpack(architecture, found.w_M)
        found.w_M = behaviour.packed(
            [(behaviour.rounded(settings.precision, weight, settings.pad), bias) for weight, bias in rounded]
        )
    return found


class Adapter(nn.Module):
    """Factors -> w_M. Buffers are the base's weights and the change that the factors at the start would make."""

    def __init__(self, architecture: Architecture, rank: int, base_M: Tensor, start_F: Tensor) -> None:
        super().__init__()
        self.architecture, self.rank = architecture, rank
        self.register_buffer("base_M", base_M.clone())
        self.register_buffer("start_M", self._change(start_F.detach()).to(base_M.dtype))

    def forward(self, factors_F: Tensor) -> Tensor:
        """w_M (M,)."""
        w_M: Tensor = self.base_M + (self._change(factors_F) - self.start_M)  # type: ignore[operator]
        return w_M

    def _change(self, factors_F: Tensor) -> Tensor:
        sizes = [size for size, _ in layers(self.architecture, self.rank)]
        parts: Sequence[Tensor] = torch.split(factors_F, sizes)
        made = []
        for k, (o, i) in enumerate(self.architecture.shapes):
            a, b = parts[2 * k].view(self.rank, i), parts[2 * k + 1]
            made.append((b[: o * self.rank].view(o, self.rank) @ a, b[o * self.rank :]))
        return behaviour.packed(made)
