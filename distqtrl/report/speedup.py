"""The speed-up that a run's noise scale predicts for other numbers of ranks (``algorithm.noise_scale``)."""

from collections.abc import Sequence

import numpy as np

from distqtrl.algorithm.noise_scale import speedup
from distqtrl.errors import UserError
from distqtrl.report.runs import Run
from distqtrl.training import algorithms


def noise_ratio(run: Run, updates: int | None = None) -> float:
    """A run's noise scale over the batch of one rank: the median over its (first so many) updates that have one.

    Raises UserError where none has. Where the batch is as large on any number of ranks, it counts as one rank's.
    """
    share = run.columns["batch_share"][:updates]
    share = share[np.isfinite(share)]
    if not len(share):
        raise UserError(
            f"{run.directory} has no estimate of its noise scale (batch_share in metrics.jsonl): train longer than "
            "two updates, or on more ranks, with this version"
        )
    ranks = 1 if algorithms.chosen(run.config).fixed_batch else max(run.ranks, 1)
    return float(np.median(ranks / share))


def predicted(run: Run, ranks: Sequence[int]) -> dict[int, float]:
    """How many times fewer updates so many ranks will need than one, each at its best learning rate."""
    ratio = noise_ratio(run)
    return {n: speedup(ratio, n) for n in ranks}
