"""A frozen linear layer that may keep its weights as codes of four bits, and the update of low rank beside it.

    y = (W + (B - B_0) A) x        A (rank, I), B (O, rank); W from codes, decoded for every product

Decoded weights, ``quantize.blocks``' bit for bit, are never kept: the gradient by x decodes them again.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distqtrl.language import kernel
from distqtrl.quantize import blocks
from distqtrl.quantize.blocks import Encoded

BYTES = np.arange(256, dtype=np.uint8)
NONE = (None, None)  # factors


class Packed(nn.Module):
    """Weights (O, I) as codes and block scales on a device, without gradient."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None

    def __init__(self, encoded: Encoded) -> None:
        super().__init__()
        self.format, self.shape = encoded.format, encoded.shape
        self.register_buffer("codes", torch.from_numpy(encoded.codes))
        self.register_buffer("scales", torch.from_numpy(encoded.scales_NY))
        scale = encoded.tensor_scale
        self.register_buffer("tensor_scale", None if scale is None else torch.tensor([scale], dtype=torch.float32))

    @property
    def num_bytes(self) -> int:
        """What the weights take in memory."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def forward(self) -> Tensor:
        """The weights (O, I) in float32, as ``blocks.decode`` says."""
        pairs, scales = _tables(self.format, self.codes.device)
        if self.tensor_scale is not None:
            scales = scales / self.tensor_scale if self.format == "nvfp4" else self.tensor_scale * scales
        weights_OI = kernel.decoded(self.codes, self.scales, pairs, scales)
        if weights_OI is None:
            elements = functional.embedding(self.codes.int(), pairs).view(*self.scales.shape, -1)
            weights_OI = elements.mul_(scales[self.scales.int()][..., None]).view(self.shape)
        return weights_OI

    def product(self, x: Tensor) -> Tensor | None:
        """x W^T without decoded weights, where there is a kernel for it."""
        if self.format != "nvfp4" or self.tensor_scale is None:
            return None
        return kernel.product(x, self.codes, self.scales, self.tensor_scale)

    def encoded(self) -> Encoded:
        """Codes and scales as they were given."""
        scale = None if self.tensor_scale is None else np.float32(self.tensor_scale.item())
        return Encoded(self.format, self.shape, self.codes.cpu().numpy(), self.scales.cpu().numpy(), scale)


@cache
def _tables(format: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two elements of every byte (256, 2), and what every byte of a block's scale means (256,)."""
    pairs = blocks.E2M1.values(np.stack([BYTES & 15, BYTES >> 4], axis=-1))
    scales = blocks.E4M3.values(BYTES) if format.startswith("nvfp4") else blocks.e8m0_values(BYTES)
    return torch.from_numpy(pairs).to(device), torch.from_numpy(scales).to(device)


class FrozenLinear(nn.Module):
    """x (..., I) -> (..., O) with weights that have no gradient, packed or as they are.

    factors: A and B - B_0, set before a forward pass and taken away after it. held: a weight in place of W and
    factors, which acting policies use.
    """

    packed: Packed | None
    dense: Tensor
    bias: Tensor | None

    def __init__(self, weight: Encoded | Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, (self.outputs, self.inputs) = dtype, weight.shape
        self.packed = Packed(weight) if isinstance(weight, Encoded) else None
        if not isinstance(weight, Encoded):
            self.register_buffer("dense", weight.detach().to(dtype))
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.factors: tuple[Tensor, Tensor] | None = None
        self.held: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs, inputs."""
        return self.outputs, self.inputs

    @property
    def num_bytes(self) -> int:
        """What the weights take in memory."""
        if self.packed is None:
            return self.dense.numel() * self.dense.element_size()
        return self.packed.num_bytes

    def weight(self) -> Tensor:
        """W (O, I)."""
        if self.packed is None:
            return self.dense
        weight_OI: Tensor = self.packed()
        return weight_OI.to(self.dtype)

    def merged(self) -> Tensor:
        """W + (B - B_0) A."""
        return _merged(self.weight(), *(self.factors or NONE))

    def forward(self, x: Tensor) -> Tensor:
        if self.held is not None:
            return functional.linear(x, self.held, self.bias)
        y: Tensor = _Product.apply(x, *(self.factors or NONE), self)
        return y


def _merged(weight_OI: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    return weight_OI if a is None or b is None else torch.addmm(weight_OI, b, a)


class _Product(torch.autograd.Function):
    """x (W + B A)^T + bias, which remembers x, A and B, and no weight: the sum is made again for the gradient by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor | None, b: Tensor | None, layer: FrozenLinear) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        if layer.packed is not None and not any(ctx.needs_input_grad):
            y = layer.packed.product(x)
            if y is not None:
                y = y if a is None or b is None else y + functional.linear(functional.linear(x, a), b)
                return y if layer.bias is None else y + layer.bias
        return functional.linear(x, _merged(layer.weight(), a, b), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        by_x = gradients[0] @ _merged(ctx.layer.weight(), a, b) if ctx.needs_input_grad[0] else None
        if a is None:
            return by_x, None, None, None
        x_NI, by_y_NO = x.flatten(0, -2), gradients[0].flatten(0, -2)
        return by_x, (by_y_NO @ b).T @ x_NI, by_y_NO.T @ (x_NI @ a.T), None
