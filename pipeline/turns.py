"""The 8 flips and turns of an image, and what comes of a network that sees all of them.

A network that knew nothing of directions would give the same result whichever way the scene lies.
The mean over all ways is mostly the better estimate, the geometric self-ensemble of Timofte et al.
2016 (Seven ways to improve example-based single image super resolution, section 3.4); how far the
results spread tells where the network is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pipeline.grid import Window


@dataclass(frozen=True)
class Turn:
    """Rows and columns changed for each other, or not, and then either of them reversed."""

    transposed: bool = False
    down: bool = False
    across: bool = False

    def of(self, image: Tensor) -> Tensor:
        """`(..., rows, cols)` turned; itself where there is nothing to turn."""
        if self.transposed:
            image = image.transpose(-1, -2)
        return image.flip(self._reversed) if self._reversed else image

    def back(self, turned: Tensor) -> Tensor:
        """The inverse of `of`."""
        image = turned.flip(self._reversed) if self._reversed else turned
        return image.transpose(-1, -2) if self.transposed else image

    def of_window(self, window: Window, shape: Sequence[int]) -> Window:
        """Where a window of an image of that shape lies in the turned image."""
        down, across = (window.top, window.bottom), (window.left, window.right)
        rows, columns = shape
        if self.transposed:
            down, across, rows, columns = across, down, columns, rows
        if self.down:
            down = rows - down[1], rows - down[0]
        if self.across:
            across = columns - across[1], columns - across[0]
        return Window(*down, *across)

    @property
    def _reversed(self) -> tuple[int, ...]:
        return tuple(axis for axis, yes in ((-2, self.down), (-1, self.across)) if yes)


TURNS = tuple(Turn(*which) for which in product((False, True), repeat=3))


class Moments:
    """Mean and spread of some results, which come one after the other.

    Sums are kept of differences from the first result, so that they do not cancel.
    """

    def __init__(self, first: Tensor) -> None:
        self._first, self._count = first, 1
        self._sum, self._squares = torch.zeros_like(first), torch.zeros_like(first)

    def add(self, result: Tensor) -> None:
        """One more of the same shape."""
        apart = result - self._first
        self._sum += apart
        self._squares.addcmul_(apart, apart)
        self._count += 1

    @property
    def mean(self) -> Tensor:
        return torch.add(self._first, self._sum, alpha=1 / self._count)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation over the results, with their number as the divisor."""
        moved = self._sum / self._count
        variance = self._squares / self._count
        return variance.addcmul_(moved, moved, value=-1).clamp_(min=0).sqrt_()
