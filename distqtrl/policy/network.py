"""The network that acts: an MLP whose weights are one flat vector w_M, made elsewhere.

w_M holds, layer by layer, the weight matrix row by row and then the bias (torch's state_dict order).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Architecture:
    """Widths and activation of the policy network."""

    num_inputs: int
    hidden: tuple[int, ...]
    num_outputs: int
    activation: str

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every layer."""
        return [(o, i) for i, o in pairwise((self.num_inputs, *self.hidden, self.num_outputs))]

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(number of weights, fan-in) of every layer.

        >>> sum(size for size, _ in Architecture(4, (128,), 2, "relu").layers)
        898
        """
        return [(o * i + o, i) for o, i in self.shapes]

    @property
    def num_weights(self) -> int:
        """M."""
        return sum(size for size, _ in self.layers)


def unpack(architecture: Architecture, w_M: Tensor) -> list[Layer]:
    """The layers' (weight, bias) as views of w_M; raises ValueError when M does not fit."""
    if w_M.shape != (architecture.num_weights,):
        raise ValueError(f"w_M has shape {tuple(w_M.shape)}, {architecture} needs ({architecture.num_weights},)")
    sizes = [size for o, i in architecture.shapes for size in (o * i, o)]
    parts = torch.split(w_M, sizes)
    return [(parts[2 * k].view(shape), parts[2 * k + 1]) for k, shape in enumerate(architecture.shapes)]


def outputs(architecture: Architecture, layers: list[Layer], obs_BO: Tensor) -> Tensor:
    """The last layer's outputs (B, num_outputs): logits, or means of a Gaussian."""
    activation = ACTIVATIONS[architecture.activation]
    x = obs_BO
    for weight, bias in layers[:-1]:
        x = activation(functional.linear(x, weight, bias))
    return functional.linear(x, *layers[-1])
