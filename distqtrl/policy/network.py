"""The network that acts: an MLP whose weights are one flat vector w_M, made elsewhere.

w_M holds, layer by layer, the weight matrix row by row and then the bias (torch's state_dict order). Convolutions in
front of it hold what torch's do, and are matrices for whoever reads layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distqtrl.policy.convolution import Convolution, convolutions

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Architecture:
    """Widths and activation of the policy network; image: frames, rows, columns, colours of what convolutions read."""

    num_inputs: int
    hidden: tuple[int, ...]
    num_outputs: int
    activation: str
    image: tuple[int, ...] = ()
    convolutions: tuple[str, ...] = ()  # as policy.convolutions has them

    @cached_property
    def front(self) -> tuple[Convolution, ...]:
        """The convolutions; raises UserError for those that do not fit the image."""
        return convolutions(self.convolutions, self.image)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of every vector, input first."""
        return self.num_inputs, *(c.shape[0] for c in self.front), *self.hidden, self.num_outputs

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every layer."""
        return [(o, i) for i, o in pairwise(self.widths)]

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(number of weights, fan-in) of every layer.

        >>> sum(size for size, _ in Architecture(4, (128,), 2, "relu").layers)
        898
        """
        dense = self.shapes[len(self.front) :]
        return [*(c.layer for c in self.front), *((o * i + o, i) for o, i in dense)]

    @property
    def num_weights(self) -> int:
        """M, the number of weights and biases."""
        return sum(size for size, _ in self.layers)


def unpack(architecture: Architecture, w_M: Tensor) -> list[Layer]:
    """The layers' (weight, bias), views of w_M but for convolutions; raises ValueError when M does not fit."""
    if w_M.shape != (architecture.num_weights,):
        raise ValueError(f"w_M has shape {tuple(w_M.shape)}, {architecture} needs ({architecture.num_weights},)")
    front, dense = architecture.front, architecture.shapes[len(architecture.front) :]
    sizes = [*(c.layer[0] for c in front), *(size for o, i in dense for size in (o * i, o))]
    parts = list(torch.split(w_M, sizes))
    own = [c.expanded(parts.pop(0)) for c in front]
    return own + [(parts[2 * k].view(shape), parts[2 * k + 1]) for k, shape in enumerate(dense)]


def outputs(architecture: Architecture, layers: list[Layer], obs_BO: Tensor) -> Tensor:
    """The last layer's outputs (B, num_outputs): logits, or means of a Gaussian."""
    activation = ACTIVATIONS[architecture.activation]
    x = obs_BO
    for weight, bias in layers[:-1]:
        x = activation(functional.linear(x, weight, bias))
    return functional.linear(x, *layers[-1])


def acting(architecture: Architecture, w_M: Tensor) -> Callable[[np.ndarray], np.ndarray]:
    """obs_BO -> (B, num_outputs), in NumPy and the precision of w_M: ``outputs`` to rounding, at less cost per call."""
    layers = [(weight.T.contiguous().numpy(), bias.numpy()) for weight, bias in unpack(architecture, w_M.detach())]
    (last_weight, last_bias), hidden = layers[-1], layers[:-1]
    relu = architecture.activation == "relu"

    def act(obs_BO: np.ndarray) -> np.ndarray:
        x = obs_BO
        for weight, bias in hidden:
            x = x @ weight
            x += bias
            x = np.maximum(x, 0, out=x) if relu else np.tanh(x, out=x)
        out: np.ndarray = x @ last_weight
        out += last_bias
        return out

    return act
