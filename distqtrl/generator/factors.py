"""Classical controls that make many weights of few numbers without a circuit: the change of w_M, 0 at the start.

Each takes the most parameters that are no more than it may have; raises UserError where even the fewest are more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distqtrl.errors import UserError

Layers = Sequence[tuple[int, int]]  # (number of weights, fan-in) of every policy layer
MODE = 4  # indices of one core of a tensor train


class LowRank(nn.Module):
    """B A in every layer: A (rank, inputs + 1), whose last column makes the bias, and B (outputs, rank) of zeros.

    As LoRA (arXiv 2106.09685), on a freshly drawn base in place of a trained one.
    """

    def __init__(self, layers: Layers, most: int) -> None:
        super().__init__()
        shapes = [(size // (i + 1), i) for size, i in layers]
        if any(o * (i + 1) != size for (o, i), (size, _) in zip(shapes, layers, strict=True)):
            raise UserError("generator.source low_rank needs whole layers, an adapter's factors are none: use another")
        per_rank = sum(o + i + 1 for o, i in shapes)
        rank = _enough(most // per_rank, "low_rank", per_rank, most)
        self.scales = [(3 * i) ** -0.5 for _, i in shapes]
        self.a = nn.ParameterList(torch.randn(rank, i + 1) / rank**0.5 for _, i in shapes)
        self.b = nn.ParameterList(torch.zeros(o, rank) for o, _ in shapes)

    def forward(self) -> Tensor:
        parts = []
        for scale, a, b in zip(self.scales, self.a, self.b, strict=True):
            both = (scale * b) @ a
            parts += [both[:, :-1].reshape(-1), both[:, -1]]
        return torch.cat(parts)


class TensorTrain(nn.Module):
    """All weights as one tensor of modes of 4, in cores of one rank; the last core is of zeros.

    Tensor trains: Oseledets 2011; of network weights: Novikov et al., arXiv 1509.06569.
    """

    def __init__(self, layers: Layers, most: int) -> None:
        super().__init__()
        self.sizes = [size for size, _ in layers]
        self.scales = [(3 * fan_in) ** -0.5 for _, fan_in in layers]
        modes = max(2, -(-(sum(self.sizes) - 1).bit_length() // 2))
        rank = 0
        while self._count(modes, rank + 1) <= most and rank < MODE ** (modes // 2):
            rank += 1
        rank = _enough(rank, "tensor_train", self._count(modes, 1), most)
        shapes = [(1, MODE, rank), *[(rank, MODE, rank)] * (modes - 2), (rank, MODE, 1)]
        self.cores = nn.ParameterList(torch.randn(shape) / shape[0] ** 0.5 for shape in shapes)
        nn.init.zeros_(self.cores[-1])

    @staticmethod
    def _count(modes: int, rank: int) -> int:
        return 2 * MODE * rank + (modes - 2) * MODE * rank**2

    def forward(self) -> Tensor:
        train = self.cores[0].reshape(MODE, -1)
        for core in list(self.cores)[1:]:
            train = (train @ core.reshape(len(core), -1)).reshape(-1, core.shape[2])
        parts = torch.split(train.reshape(-1)[: sum(self.sizes)], self.sizes)
        return torch.cat([scale * part for scale, part in zip(self.scales, parts, strict=True)])


def _enough(rank: int, source: str, least: int, most: int) -> int:
    if rank < 1:
        raise UserError(
            f"generator.source {source} needs {least} numbers or more, not {most}: set generator.numbers to {least}"
        )
    return rank
