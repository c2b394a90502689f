"""The mapping as one module: features, network, and the scale of the weights it yields.

    out_M = network(features) of the nodes that are used, in order, cut to M
    w_M   = out_M - mean(out_M)                                              ``raw``: arXiv 2407.06103
    w_M   = scale_l out_M - shift_l      on the slice of policy layer l      ``fan_in``: ours
    w_M   = fresh_M + gain scale_l (out_M - out_M at the start)              ``residual``: ours

scale_l and shift_l are fixed at the start so that every layer of a fresh policy has mean 0 and the deviation
1/sqrt(3 fan_in) of a freshly initialised torch.nn.Linear; afterwards they stay, and training moves out_M. ``residual``
starts at a freshly drawn policy, whatever the source's numbers are. An expansion's outputs have deviation 1 for
features of deviation 1, so its scale is 1/sqrt(3 fan_in).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distqtrl.config.stages import MappingModel
from distqtrl.errors import UserError, lookup
from distqtrl.mapping import features, gnn, graph, mlp
from distqtrl.mapping.expansion import Expansion

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "none": nn.Identity}


@dataclass(frozen=True)
class Shape:
    """What a network is made for: n qubits, M weights, features that are not always 0, and the mapping's settings."""

    num_qubits: int
    num_weights: int
    num_features: int
    settings: MappingModel

    @property
    def num_positions(self) -> int:
        """Numbers that tell a basis state: its bits, or its code."""
        return self.settings.codes or self.num_qubits

    @property
    def activation(self) -> nn.Module:
        """Between the layers."""
        return ACTIVATIONS[self.settings.activation]()


@dataclass(frozen=True)
class Kind:
    """A network from the features of basis states to weights."""

    network: Callable[[Shape], nn.Module]
    whole: bool  # it reads all 2**n basis states, not only those whose outputs are used
    floats: Callable[[int, int], int]  # of qubits and the widest layer: what it holds per basis state
    mixes: bool = False  # every basis state has a part in every weight: any number of them will do
    bits: bool = True  # the network reads the basis states' bits, too


def _gnn(shape: Shape) -> nn.Module:
    n, s = shape.num_qubits, shape.settings
    widths = (shape.num_positions + 1, *s.hidden)
    return gnn.GraphNetwork(n, widths, lambda width: nn.Linear(width, s.chunk), shape.activation)


def _gnn_expansion(shape: Shape) -> nn.Module:
    n, s = shape.num_qubits, shape.settings
    widths = (shape.num_positions + 1, *s.hidden)
    expansion = Expansion(n + (widths[-1] - 1).bit_length(), shape.num_weights, 2**n * widths[-1])
    return gnn.GraphNetwork(n, widths, lambda _: expansion, shape.activation)


def _mlp(shape: Shape) -> nn.Module:
    s = shape.settings
    return mlp.network(shape.num_positions, s.hidden, s.chunk, shape.activation)


def _expansion(shape: Shape) -> nn.Module:
    return Expansion(shape.num_qubits, shape.num_weights, shape.num_features)


# To add a mapping, write a module with its network in this folder, and enter it here.
KINDS: dict[str, Kind] = {
    "gnn": Kind(_gnn, whole=True, floats=lambda n, width: n * (4 + width)),  # edges and messages along them
    "mlp": Kind(_mlp, whole=False, floats=lambda n, width: 3 * width),
    "gnn_expansion": Kind(_gnn_expansion, whole=True, floats=lambda n, width: n * (4 + width), mixes=True),
    "expansion": Kind(_expansion, whole=True, floats=lambda n, width: 2, mixes=True, bits=False),
}


class Mapping(nn.Module):
    """The module p_S (float64) -> w_M.

    layers: (number of weights, fan-in) of every policy layer, in the order of w_M. num_qubits: those of a circuit that
    also serves larger policies; by default as many as this policy needs. num_numbers: of a source whose numbers, padded
    with zeros, are the features themselves.
    """

    bits: Tensor  # or codes
    scale_M: Tensor
    negative_shift_M: Tensor

    def __init__(
        self, config: MappingModel, layers: Sequence[tuple[int, int]], num_qubits: int = 0, num_numbers: int = 0
    ) -> None:
        super().__init__()
        self.config, self.layers = config, tuple(layers)
        self.num_weights = sum(size for size, _ in layers)
        kind = lookup("mapping.kind", config.kind, KINDS)
        self.num_qubits = n = num_qubits or graph.num_qubits(self.num_weights, config.chunk)
        self.num_nodes = 2**n if kind.mixes else graph.num_nodes(self.num_weights, config.chunk)
        self._feature = lookup("mapping.feature", config.feature, features.FEATURES)
        num_features = 2**n
        if num_numbers:
            self._feature, num_features = features.themselves, num_numbers
        elif config.feature == "walsh":
            num_features = int(features.within(n, config.walsh_weight).sum())
        self.network = kind.network(Shape(n, self.num_weights, num_features, config))
        self.network.requires_grad_(config.trained)
        self.num_inputs = 2**n if kind.whole else self.num_nodes
        self.unit, self.mixes = not kind.bits, kind.mixes  # unit: outputs have deviation 1
        bits = graph.bits(n)[: self.num_inputs] if kind.bits else torch.zeros(0)
        if config.codes and not kind.bits:
            raise UserError(
                f"mapping.codes = {config.codes} with mapping.kind {config.kind}: codes are read by a network, use "
                "mapping.kind gnn, mlp or gnn_expansion, or mapping.codes none"
            )
        if config.codes:
            self.bits = nn.Parameter(torch.randn(self.num_inputs, config.codes), requires_grad=config.trained)
        else:
            self.register_buffer("bits", bits, persistent=False)
        if config.output != "raw":
            self.register_buffer("scale_M", torch.ones(self.num_weights))
            self.register_buffer("negative_shift_M", torch.zeros(self.num_weights))

    def out(self, p_S: Tensor, *which: Tensor) -> Tensor:
        """out_M, before any scale; of an expansion also the outputs asked for alone."""
        if self.config.feature != "walsh":
            p_S = p_S[: self.num_inputs]
        x_S = self._feature(p_S, self.config, self.num_qubits)[: self.num_inputs]
        if self._feature is features.tanh:
            x_S = x_S - x_S.mean()
        x_S = x_S.to(self.bits.dtype)  # the one cast from float64
        inputs = x_S if self.unit else torch.cat([self.bits, x_S.unsqueeze(1)], dim=1)
        out_M: Tensor = self.network(inputs, *which).view(-1)[: self.num_weights]
        return out_M

    def rows(self, p_S: Tensor, index_N: Tensor) -> Tensor:
        """w_N: these weights; where they are few of many, an expansion does not make the others."""
        if not self.mixes or self.config.output == "raw":
            w_M: Tensor = self(p_S)
            return w_M[index_N]
        return torch.addcmul(self.negative_shift_M[index_N], self.scale_M[index_N], self.out(p_S, index_N))

    def forward(self, p_S: Tensor) -> Tensor:
        """w_M."""
        out_M = self.out(p_S)
        if self.config.output == "raw":
            return out_M - out_M.mean()
        return torch.addcmul(self.negative_shift_M, self.scale_M, out_M)

    @torch.no_grad()
    def calibrate(self, p_S: Tensor, fresh_M: Tensor) -> None:
        """Fix scale and shift so that w_M of this p_S starts like a fresh policy; ``raw`` has neither.

        fresh_M: the fresh policy of ``residual``. Raises UserError when the network gives a layer equal weights only
        (all its units are dead): no scale makes those a policy.
        """
        if self.config.output == "raw":
            return
        start, out_M = 0, self.out(p_S)
        for size, fan_in in self.layers:
            part = slice(start, start + size)
            layer = out_M[part]
            scale = 1 / ((3 * fan_in) ** 0.5 * (1.0 if self.unit else self._deviation(layer)))
            if self.config.output == "residual":
                scale *= self.config.gain
                self.negative_shift_M[part] = fresh_M[part] - scale * layer
            else:
                self.negative_shift_M[part] = -scale * layer.mean()
            self.scale_M[part] = scale
            start += size

    def _deviation(self, layer: Tensor) -> Tensor:
        """The deviation of the outputs that become a policy layer's weights."""
        deviation = layer.std()
        if not deviation > 0:
            raise UserError(
                f"the freshly drawn mapping network (mapping.hidden = {self.config.hidden}) gives all weights of "
                f"a policy layer one value: use another train.seed, wider layers or mapping.activation tanh"
            )
        return deviation
