"""The mapping as one module: features, network, and the scale of the weights it yields.

    out_M = network(features) of the nodes that are used, in order, cut to M
    w_M   = out_M - mean(out_M)                                              ``raw``: arXiv 2407.06103
    w_M   = scale_l out_M - shift_l      on the slice of policy layer l      ``fan_in``: ours

scale_l and shift_l are fixed at the start so that every layer of a fresh policy has mean 0 and the deviation
1/sqrt(3 fan_in) of a freshly initialised torch.nn.Linear; afterwards they stay, and training moves out_M.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distqtrl.config.stages import MappingModel
from distqtrl.errors import UserError, lookup
from distqtrl.mapping import graph, mlp

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "none": nn.Identity}


@dataclass(frozen=True)
class Kind:
    """A network from the features of basis states to weights, node by node or along edges."""

    network: Callable[[int, tuple[int, ...], int, nn.Module], nn.Module]  # of qubits, hidden widths, chunk, activation
    whole: bool  # it reads all 2**n basis states, not only those whose outputs are used
    floats: Callable[[int, int], int]  # of qubits and the widest layer: what it holds per basis state


def _gnn(n: int, hidden: tuple[int, ...], chunk: int, activation: nn.Module) -> nn.Module:
    from distqtrl.mapping import gnn  # loads torch-geometric

    return gnn.GraphNetwork(n, hidden, chunk, activation)


# To add a mapping, write a module with its network in this folder, and enter it here.
KINDS: dict[str, Kind] = {
    "gnn": Kind(_gnn, whole=True, floats=lambda n, width: n * (4 + width)),  # edges and messages along them
    "mlp": Kind(mlp.network, whole=False, floats=lambda n, width: 3 * width),
}


class Mapping(nn.Module):
    """The module p_S (float64) -> w_M.

    layers: (number of weights, fan-in) of every policy layer, in the order of w_M. num_qubits: those of a circuit that
    also serves larger policies; by default as many as this policy needs.
    """

    bits: Tensor
    scale_M: Tensor
    negative_shift_M: Tensor

    def __init__(self, config: MappingModel, layers: Sequence[tuple[int, int]], num_qubits: int = 0) -> None:
        super().__init__()
        self.config, self.layers = config, tuple(layers)
        self.num_weights = sum(size for size, _ in layers)
        self.num_nodes = graph.num_nodes(self.num_weights, config.chunk)
        self.num_qubits = n = num_qubits or graph.num_qubits(self.num_weights, config.chunk)
        kind = lookup("mapping.kind", config.kind, KINDS)
        self.network = kind.network(n, config.hidden, config.chunk, ACTIVATIONS[config.activation]())
        self.num_inputs = 2**n if kind.whole else self.num_nodes
        self.register_buffer("bits", graph.bits(n)[: self.num_inputs], persistent=False)
        if config.output == "fan_in":
            self.register_buffer("scale_M", torch.ones(self.num_weights))
            self.register_buffer("negative_shift_M", torch.zeros(self.num_weights))

    def out(self, p_S: Tensor) -> Tensor:
        """out_M, before any scale."""
        c = self.config
        x = graph.scaled(p_S[: self.num_inputs], self.num_qubits, c.gamma, c.beta, c.alpha)
        features = torch.cat([self.bits, x.to(self.bits.dtype).unsqueeze(1)], dim=1)  # the one cast from float64
        out_M: Tensor = self.network(features).view(-1)[: self.num_weights]
        return out_M

    def forward(self, p_S: Tensor) -> Tensor:
        """w_M."""
        out_M = self.out(p_S)
        if self.config.output == "raw":
            return out_M - out_M.mean()
        return torch.addcmul(self.negative_shift_M, self.scale_M, out_M)

    @torch.no_grad()
    def calibrate(self, p_S: Tensor) -> None:
        """Fix scale and shift so that w_M of this p_S starts like a fresh policy; ``raw`` has neither.

        Raises UserError when the network gives a layer equal weights only (all its units are dead): no scale
        makes those a policy.
        """
        if self.config.output == "raw":
            return
        start, out_M = 0, self.out(p_S)
        for size, fan_in in self.layers:
            layer = out_M[start : start + size]
            if not layer.std() > 0:
                raise UserError(
                    f"the freshly drawn mapping network (mapping.hidden = {self.config.hidden}) gives all weights of "
                    f"a policy layer one value: use another train.seed, wider layers or mapping.activation tanh"
                )
            scale = 1 / ((3 * fan_in) ** 0.5 * layer.std())
            self.scale_M[start : start + size] = scale
            self.negative_shift_M[start : start + size] = -scale * layer.mean()
            start += size
