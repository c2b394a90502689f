"""Running mean and deviation of observations, frozen within an update and merged over ranks between updates.

Merging follows Chan, Golub & LeVeque (1979); normalised observations are clamped to [-10, 10].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CLAMP = 10.0


@dataclass
class Normalizer:
    """count, mean_O and sum of squared deviations m2_O of what was seen; count 0 leaves observations as they are."""

    count: float
    mean_O: Array
    m2_O: Array

    @classmethod
    def fresh(cls, num_observations: int) -> "Normalizer":
        """One that has seen nothing, and leaves observations as they are."""
        return cls(0.0, np.zeros(num_observations), np.zeros(num_observations))

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], prefix: str = "", letter: str = "O") -> "Normalizer":
        """What ``tensors`` gave, among others whose names begin otherwise."""
        count, mean_O, m2_O = (tensors[f"{prefix}{name}"] for name in ("count", f"mean_{letter}", f"m2_{letter}"))
        return cls(float(count.item()), mean_O, m2_O)

    def tensors(self, letter: str = "O") -> dict[str, np.ndarray]:
        """Everything of it by name; letter: what the numbers that it normalises are called."""
        return {"count": np.array([self.count]), f"mean_{letter}": self.mean_O, f"m2_{letter}": self.m2_O}

    @property
    def scale_O(self) -> Array:
        """What deviations from the mean are multiplied by; only defined once something was seen."""
        return 1 / np.sqrt(self.m2_O / self.count + 1e-8)

    @property
    def affine(self) -> tuple[Array, Array, float]:
        """mean_O, scale_O and the clamp with which (obs - mean) * scale is what ``apply`` says."""
        if self.count == 0:
            return np.zeros_like(self.mean_O), np.ones_like(self.mean_O), np.inf
        return self.mean_O, self.scale_O, CLAMP

    def apply(self, obs: np.ndarray) -> np.ndarray:
        """Normalised observations, same shape, float32."""
        return self.applied()(obs)

    def applied(self) -> Callable[[np.ndarray], np.ndarray]:
        """``apply`` as it is now, at less cost per call."""
        if self.count == 0:
            return lambda obs: obs
        mean_O, scale_O = self.mean_O, self.scale_O

        def normalised(obs: np.ndarray) -> np.ndarray:
            x = (obs - mean_O) * scale_O
            np.minimum(np.maximum(x, -CLAMP, out=x), CLAMP, out=x)
            return x.astype(np.float32)

        return normalised

    @staticmethod
    def sums(obs_BO: np.ndarray) -> Array:
        """What ``merge`` needs of a batch: sums and sums of squares, (2 O,)."""
        obs_BO = obs_BO.astype(np.float64)
        return np.concatenate([obs_BO.sum(0), (obs_BO**2).sum(0)])

    def merge(self, count: float, sums: Array) -> None:
        """Take in a batch, or several whose ``sums`` were added up."""
        sum_O, squares_O = np.split(sums, 2)
        mean_O = sum_O / count
        m2_O = np.maximum(squares_O - count * mean_O**2, 0.0)
        total, delta_O = self.count + count, mean_O - self.mean_O
        self.m2_O = self.m2_O + m2_O + delta_O**2 * self.count * count / total
        self.mean_O = self.mean_O + delta_O * count / total
        self.count = total
