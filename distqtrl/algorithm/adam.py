"""Adam (Kingma & Ba, arXiv 1412.6980) by torch's fused step, with one learning rate per group of parameters.

Not ``torch.optim.Adam``: its first group of parameters imports torch's compiler, a third of what starting a rank costs.
"""

from collections.abc import Collection, Sequence
from itertools import count
from typing import cast

import torch
from torch import Tensor
from torch.optim.adam import adam

BETA2 = 0.999


class Adam:
    """The optimizer of groups of parameters, each with its learning rate; ``rates`` may be changed between steps.

    >>> p = torch.ones(2)
    >>> optimizer = Adam([([p], 0.1)], eps=1e-8)
    >>> p.grad = torch.tensor([3.0, -4.0])
    >>> optimizer.step([0])
    >>> p
    tensor([0.9000, 1.1000])
    """

    def __init__(self, groups: Sequence[tuple[list[Tensor], float]], eps: float, beta1: float = 0.9) -> None:
        self.rates = [rate for _, rate in groups]
        self.parameters = [p for parameters, _ in groups for p in parameters]
        numbers = count()
        self._groups = [[(next(numbers), p) for p in parameters] for parameters, _ in groups]
        self._eps, self._beta1 = eps, beta1
        # of those parameters that have moved, by their place among all
        self.state: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, places: Collection[int]) -> None:
        """Move those of the parameters, by their place among all, along their gradients."""
        for group, rate in zip(self._groups, self.rates, strict=True):
            moved = [(i, p) for i, p in group if i in places]
            for i, p in moved:
                if i not in self.state:
                    self.state[i] = _fresh(p)
            states = [self.state[i] for i, _ in moved]
            adam(
                [p for _, p in moved],
                [cast(Tensor, p.grad) for _, p in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=self._beta1,
                beta2=BETA2,
                lr=rate,
                weight_decay=0.0,
                eps=self._eps,
                maximize=False,
            )


def _fresh(p: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(p),
        "exp_avg_sq": torch.zeros_like(p),
    }
