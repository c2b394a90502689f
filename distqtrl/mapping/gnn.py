"""Graph network over the basis states: message passing along the hypercube's edges (ours, no paper).

    h_i <- act(W_self h_i + W_near mean_{j ~ i} h_j + b)     one graph convolution (arXiv 1810.02244) per hidden width
    out_i = W h_i + b                                    c weights per node

Every basis state is a node, so those whose own output is dropped still pass on their probability.
Cost per layer O(n S H) in time and memory.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from distqtrl.mapping.graph import hypercube


class GraphConvolution(nn.Module):
    """h_SF -> out, (S, outputs): W_root h_i + W_rel times the sum of ``near_SF`` over the neighbours of i, + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin_rel, self.lin_root = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)
        self.lin_rel.reset_parameters()  # a second draw, which seeds of earlier versions had
        self.lin_root.reset_parameters()

    def forward(self, near_SF: Tensor, h_SF: Tensor, edges: Tensor) -> Tensor:
        sent = near_SF.index_select(0, edges[0])
        received = torch.zeros_like(near_SF).scatter_add_(0, edges[1].unsqueeze(1).expand_as(sent), sent)
        out: Tensor = self.lin_rel(received) + self.lin_root(h_SF)
        return out


class GraphNetwork(nn.Module):
    """features_SF -> what the readout makes of h_SH: out_Sc, or outputs that it is asked for (``which``).

    The readout is made for H, after the rest.
    """

    def __init__(
        self, n: int, widths: tuple[int, ...], readout: Callable[[int], nn.Module], activation: nn.Module
    ) -> None:
        super().__init__()
        # Every node has n neighbours: the mean is a sum of h / n, without counting them at every call.
        self.n, self.convolutions = n, nn.ModuleList(GraphConvolution(i, o) for i, o in pairwise(widths))
        self.activation = activation
        self.readout = readout(widths[-1])
        self.register_buffer("edges", hypercube(n), persistent=False)

    def forward(self, features_SF: Tensor, *which: Tensor) -> Tensor:
        h = features_SF
        for convolution in self.convolutions:
            h = self.activation(convolution(h / self.n, h, self.edges))
        out_Sc: Tensor = self.readout(h, *which)
        return out_Sc
