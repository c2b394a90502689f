"""The gradient noise scale, from gradients that training makes anyway.

    B_noise = tr(Sigma) / |G|^2
    S(N) = (1 + r) / (1 + r / N)     how many times fewer updates N ranks need, r = B_noise / (batch of one rank)

Sigma is the covariance of the gradient of one unit of the batch (an environment step; a whole episode where REINFORCE
plays episodes), G the gradient's mean: McCandlish et al., arXiv 1812.06162, appendix A. Parts of a batch of b units
that hold b_r of them and have the mean gradients g_r have the whole's gradient g = sum_r (b_r / b) g_r, and

    E sum_r b_r |g_r|^2 = b |G|^2 + R tr(Sigma),        E b |g|^2 = b |G|^2 + tr(Sigma)

for R parts of any sizes, so that both terms have unbiased estimates as soon as there are two parts. Ranks are parts. A
rank that is alone has no other part than its next gradient: those of two updates in a row count as parts, as if the
parameters had not moved in between. Where G turned meanwhile, that counts as noise: the scale errs upwards. Two
gradients of one rollout would err downwards, as steps of one episode are no independent samples.

What is measured is the gradient of what the generator trains, before it is clipped: two scalar products an update.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DECAY = 0.95  # of both terms' averages, per update
FACTS = ("noise_scale", "noise_scale_smoothed", "batch_share")  # what metrics call them
NONE = (float("nan"), float("nan"))
LEAST = 2  # estimates in an average that is told of


def terms(parts: float, squares: float, square: float, batch: float) -> tuple[float, float]:
    """|G|^2 and tr(Sigma), without bias; the former may be negative.

    parts: R; squares: the sum of b_r |g_r|^2; square: |g|^2; batch: b.

    >>> terms(2, squares=2 * 9.0 + 2 * 1.0, square=4.0, batch=4.0)  # two numbers, 3 and 1, each the mean of two
    (3.0, 4.0)
    """
    trace = (squares - batch * square) / (parts - 1)
    return square - trace / batch, trace


def speedup(ratio: float, ranks: int) -> float:
    """How many times fewer updates so many ranks need; ratio: the noise scale over one rank's batch.

    >>> [round(speedup(28.0, ranks), 2) for ranks in (1, 2, 8)]
    [1.0, 1.93, 6.44]
    """
    return (1 + ratio) / (1 + ratio / ranks)


class NoiseScale:
    """One policy's estimates. ``count`` updates are in ``smoothed``, whose terms are averaged separately.

    previous: the last gradient, where there is one rank alone.
    """

    def __init__(self) -> None:
        self.count, self.smoothed = 0, (0.0, 0.0)
        self.previous: Array | None = None
        self._found: list[tuple[float, float]] = []
        self._batch = 0.0

    @staticmethod
    def part(gradient_N: Array, local_batch: float, global_batch: float) -> Array:
        """What a rank adds to the sum: itself, and b_r |g_r|^2; gradient_N: its addend (b_r / b) g_r."""
        if not local_batch:
            return np.zeros(2)
        return np.array([1.0, global_batch**2 / local_batch * float(gradient_N @ gradient_N)])

    def add(self, gradient_N: Array, parts: Array, batch: float) -> None:
        """Take in the gradient of the whole batch; parts: the sum of every rank's ``part``."""
        number, squares = parts.tolist()
        if number > 1:
            self._found.append(terms(number, squares, float(gradient_N @ gradient_N), batch))
        elif number:
            self._add_after_another(gradient_N, batch)
        self._batch = batch

    def _add_after_another(self, gradient_N: Array, batch: float) -> None:
        """The gradient and the one before as two parts of a batch twice as large."""
        before_N, self.previous = self.previous, gradient_N.copy()
        if before_N is not None:
            squares = float(gradient_N @ gradient_N) + float(before_N @ before_N)
            square = (squares + 2 * float(gradient_N @ before_N)) / 4
            self._found.append(terms(2, batch * squares, square, 2 * batch))

    def take(self) -> Array:
        """Batch, |G|^2 and tr(Sigma) of what was added since the last call, and their averages; nan: there is none.

        Averages begin at zero, both alike, so that their ratio is right from the start.
        """
        now = NONE
        if self._found:
            square, trace = (sum(column) / len(self._found) for column in zip(*self._found, strict=True))
            now, (a, b) = (square, trace), self.smoothed
            self.smoothed = DECAY * a + (1 - DECAY) * square, DECAY * b + (1 - DECAY) * trace
            self.count, self._found = self.count + 1, []
        return np.array([self._batch, *now, *(self.smoothed if self.count >= LEAST else NONE)])

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs."""
        state = {"count": np.array([self.count]), "smoothed": np.array(self.smoothed)}
        return state if self.previous is None else state | {"previous_N": self.previous}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take over what ``state`` gave."""
        square, trace = state["smoothed"].tolist()
        self.count, self.smoothed, self.previous = int(state["count"][0]), (square, trace), state.get("previous_N")


def facts(rows_K: Array) -> dict[str, float | None]:
    """Metrics of policies that step together, of what each one's ``take`` gave: one gradient, whose terms add up.

    ``batch_share`` is the batch over the smoothed noise scale: well below 1, more ranks help. None: there is no
    estimate, or the one of |G|^2 is not positive, as happens where the noise is much larger than the batch.
    """
    batches, *whole = rows_K.sum(axis=0).tolist()
    now, smoothed = _ratio(*whole[:2]), _ratio(*whole[2:])
    share = batches / len(rows_K) / smoothed if smoothed else None
    return dict(zip(FACTS, (now, smoothed, share), strict=True))


def _ratio(square: float, trace: float) -> float | None:
    return trace / square if square > 0 else None
