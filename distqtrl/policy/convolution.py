"""A convolution as a layer of any network: a matrix in which few weights stand in many places.

What a filter does at one place is a row of the matrix (a Toeplitz matrix, cut out). Everything that reads layers
(acting, derivatives by hand, quantizers, exports) sees that row, and no convolution; only this many numbers are
generated or trained.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distqtrl.errors import UserError

WORD = r"([1-9]\d{0,3})x([1-9]\d{0,2})(?:/([1-9]\d{0,2}))?"
MOST = 1 << 27  # entries of all matrices: a small file may ask for large ones
Image = tuple[int, int, int, int]  # frames one behind the other, each of rows, columns and colours


@dataclass(frozen=True)
class Convolution:
    """Filters of size x size places and all channels, every ``stride`` places, without padding.

    It reads images as they are flattened, frames outermost and colours innermost; it writes rows, columns, filters.
    """

    image: Image
    filters: int
    size: int
    stride: int

    @property
    def channels(self) -> int:
        """What a filter reads at one place: every colour of every frame."""
        return self.image[0] * self.image[3]

    @property
    def written(self) -> Image:
        """The image that it makes."""
        rows, columns = ((side - self.size) // self.stride + 1 for side in self.image[1:3])
        return 1, rows, columns, self.filters

    @property
    def layer(self) -> tuple[int, int]:
        """(number of weights, fan-in), biases among the weights."""
        fan_in = self.size * self.size * self.channels
        return self.filters * fan_in + self.filters, fan_in

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the matrix."""
        return int(np.prod(self.written)), int(np.prod(self.image))

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of its weights stands in every entry of the matrix (N, K) and of the bias (N,); the zero is one more.

        Weights are counted as torch's Conv2d has them: filter, channel, row, column, then the biases.
        """
        count, _ = self.layer
        frames, rows, columns, colours = self.image
        _, high, wide, filters = self.written
        index_NK = np.full((high, wide, filters, frames, rows, columns, colours), count, dtype=np.int64)
        weights = np.arange(count - filters).reshape(filters, frames, colours, self.size, self.size)
        for y in range(high):
            for x in range(wide):
                top, left = y * self.stride, x * self.stride
                where = np.s_[y, x, :, :, top : top + self.size, left : left + self.size]
                index_NK[where] = weights.transpose(0, 1, 3, 4, 2)
        bias_N = np.tile(np.arange(count - filters, count), high * wide)
        return index_NK.reshape(self.shape), bias_N

    def expanded(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix (N, K) and bias (N,) of the weights, which are one vector."""
        index_NK, bias_N = (torch.from_numpy(index) for index in self.places)
        return torch.cat([weights, weights.new_zeros(1)])[index_NK], weights[bias_N]

    def summed(self, matrix_NK: np.ndarray, bias_N: np.ndarray) -> np.ndarray:
        """The derivative by the weights, one vector, given those by matrix and bias."""
        index_NK, places_N = self.places
        count, _ = self.layer
        by = np.bincount(index_NK.ravel(), matrix_NK.ravel(), count + 1)[:count]
        by += np.bincount(places_N, bias_N, count)
        return by.astype(matrix_NK.dtype)


def convolutions(words: Sequence[str], image: Sequence[int]) -> tuple[Convolution, ...]:
    """Those of policy.convolutions, each FILTERSxSIZE or FILTERSxSIZE/STRIDE, on an image; () is none.

    >>> [c.written for c in convolutions(["8x3", "16x3/2"], (1, 7, 7, 3))]
    [(1, 5, 5, 8), (1, 2, 2, 16)]

    Raises UserError where there is no image, for a filter that is larger than what it reads, and for large matrices.
    """
    made: list[Convolution] = []
    if words and len(image) != 4:
        raise UserError(
            "policy.convolutions needs observations that are one image of rows, columns and maybe colours: set "
            "environment.observation to such a part, or leave policy.convolutions empty"
        )
    for word in words:
        found = re.fullmatch(WORD, word)
        if found is None:
            raise UserError(
                f"policy.convolutions: {word} is not FILTERSxSIZE or FILTERSxSIZE/STRIDE, such as 16x3 or 32x8/4"
            )
        frames, rows, columns, colours = image
        filters, size, stride = (int(number or 1) for number in found.groups())
        if size > min(rows, columns):
            raise UserError(
                f"policy.convolutions: {word} reads {size} x {size} places, its image has {rows} x {columns}: use a "
                "smaller filter or leave it out"
            )
        made.append(one := Convolution((frames, rows, columns, colours), filters, size, stride))
        if (entries := sum(math.prod(each.shape) for each in made)) > MOST:
            n, k = one.shape
            raise UserError(
                f"policy.convolutions: {word} is a matrix of {n:,} x {k:,} here, with those before it {entries:,} "
                f"entries, at most {MOST:,}: set environment.image, use a larger stride or fewer filters"
            )
        image = one.written
    return tuple(made)
