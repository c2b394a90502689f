"""The parameter-shift rule: the gradient of v.p as a weighted sum of circuits with one angle shifted.

An angle whose generator has one frequency (eigenvalues +-1/2, or 0 and 1) needs two circuits (Mitarai et al.,
arXiv 1803.00745); with eigenvalues 0 and +-1/2, as in a controlled rotation, it needs four (Wierichs et al.,
arXiv 2107.12390):

    f'(t) = [f(t + pi/2) - f(t - pi/2)] / 2
    f'(t) = c_1 [f(t + pi/2) - f(t - pi/2)] - c_2 [f(t + 3pi/2) - f(t - 3pi/2)],   c_1,2 = (sqrt 2 +- 1) / (4 sqrt 2)

The rules hold in expectation, so also for shots. Under noise they hold for gates that a device runs as one: see
``decomposition`` for those that it compiles.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distqtrl.circuit.ansatz import KINDS, Program

Array = npt.NDArray[np.float64]
BATCH = 2**24  # probabilities held at a time
C_1, C_2 = (np.sqrt(2) + 1) / (4 * np.sqrt(2)), (np.sqrt(2) - 1) / (4 * np.sqrt(2))
TERMS = {
    2: ((np.pi / 2, 0.5), (-np.pi / 2, -0.5)),
    4: ((np.pi / 2, C_1), (-np.pi / 2, -C_1), (3 * np.pi / 2, -C_2), (-3 * np.pi / 2, C_2)),
}


@dataclass(frozen=True)
class Ranks:
    """The ranks that train the same circuit, and may share one gradient's."""

    rank: int = 0  # this one's place among them
    numbers: Sequence[int] = (0,)  # theirs in the whole job
    total: Callable[[Array], Array] = lambda v_S: v_S  # the sum of a vector over them

    @property
    def number(self) -> int:
        """This rank's in the whole job: its settings and streams of random numbers are no other rank's."""
        return self.numbers[self.rank]


class Rule(NamedTuple):
    """K shifted circuits: the angle that is shifted, by how much, and the weight of the result in its gradient."""

    angle_K: npt.NDArray[np.int64]
    offset_K: Array
    weight_K: Array


def rule(program: Program) -> Rule:
    """All shifted circuits of one gradient, in the order of the angles.

    >>> from distqtrl.circuit.ansatz import Gate, program
    >>> len(rule(program(2, [Gate("u3", 0), Gate("u3", 1, 0)])).angle_K)  # 3 x 2, then 4 + 2 + 2
    14
    """
    rows = [
        (first + i, offset, weight)
        for gate, first in zip(program.gates, program.angle_G.tolist(), strict=True)
        for i, controlled in enumerate(KINDS[gate.kind].shifts)
        for offset, weight in TERMS[2 if gate.control is None else controlled]
    ]
    angle_K, offset_K, weight_K = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Rule(angle_K.astype(np.int64), offset_K, weight_K)


def shifted(theta: Array, angle_K: npt.NDArray[np.int64], offset_K: Array) -> Array:
    """theta_KP: copies of theta_P, or the sets of theta_KP, one angle of each moved."""
    theta_KP = np.array(np.broadcast_to(theta, (len(angle_K), theta.shape[-1])))
    theta_KP[np.arange(len(angle_K)), angle_K] += offset_K
    return theta_KP


def batches(num: int, numbers: int) -> Iterator[slice]:
    """Slices of num circuits, as many at a time as have room in memory for their probabilities, or angles."""
    size = max(1, BATCH // numbers)
    for first in range(0, num, size):
        yield slice(first, first + size)
