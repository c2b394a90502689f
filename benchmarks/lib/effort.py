"""What a benchmark alone counts: steps and updates until a run is good enough, and the memory traffic of a circuit.

``sample_complexity`` is that of arXiv 2501.15893 (Meyer et al.) and its code.
"""

import numpy as np

from distqtrl.circuit.ansatz import Program
from distqtrl.circuit.plan import plan


def sample_complexity(performance_RT: np.ndarray, steps_T: np.ndarray, threshold: float, probability: float) -> float:
    """Environment steps until a run is better than threshold with this probability, Meyer et al.'s estimator.

    The sum of the widths steps_t - steps_(t-1), from 0, of all checkpoints t (increasing) at which the fraction of
    runs with performance > threshold is below probability: the spacing times their number on an even grid that
    starts at its spacing. A fraction that falls back below adds its widths; NaN is a run that is not there yet.
    inf when the fraction is below probability at every checkpoint (theirs: the last step).

    >>> sample_complexity(np.array([[0, 1, 1], [0, 0, 1]]), np.array([10, 20, 30]), threshold=0.5, probability=0.9)
    20.0
    """
    below_T = np.mean(performance_RT > threshold, axis=0) < probability
    return np.inf if below_T.all() else float(np.diff(steps_T, prepend=0)[below_T].sum())


def first_reached(values: np.ndarray, target: float) -> int | None:
    """Index of the first value >= target; None: there is none.

    >>> first_reached(np.array([1, 5, 3, 6]), 5), first_reached(np.array([1, np.nan]), 5)
    (1, None)
    """
    found = np.flatnonzero(values >= target)
    return int(found[0]) if found.size else None


def traffic(circuit: Program, precision: str) -> int:
    """Bytes read and written between memory and the kernels by one value and gradient of ours, counted by passes.

    Every pass reads and writes the state once going forward, psi and lambda once each going back.
    """
    p = plan(circuit)
    return len(p.pass_I) * 3 * 2 * np.dtype(precision).itemsize * (p.components << p.num_bits)
