"""Linear operators along one axis of an image whose matrices are banded.

Resampling reads a few neighbours per pixel, so nearly all of its matrix is zero. Blocks of rows of
the matrix, each cut to the columns that it uses, are still matrix products, and those are what a
processor does best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


def gather(
    taps: NDArray[np.int64], weights: Matrix, size: int, starts: bool, ends: bool
) -> tuple[Matrix, NDArray[np.bool_]]:
    """The matrix of weighted sums over the pixels of a window.

    Args:
        taps: `[outputs, k]`, the pixels that each output reads; the window's first is 0.
        weights: `[outputs, k]`.
        size: pixels of the window.
        starts, ends: the window's border is the scene's, and what lies beyond is mirrored.

    Returns:
        `[outputs, size]`, and for each output whether all that it reads is in the window.
    """
    if starts and ends:
        taps = np.mod(taps, 2 * size)
    if starts:
        taps = np.where(taps < 0, -1 - taps, taps)
    if ends:
        taps = np.where(taps >= size, 2 * size - 1 - taps, taps)
    there = (taps >= 0) & (taps < size)
    outputs = np.broadcast_to(np.arange(len(taps))[:, None], taps.shape)
    matrix = np.zeros((len(taps), size))
    np.add.at(matrix, (outputs[there], taps[there]), weights[there])
    return matrix, np.all(there, axis=1)


@dataclass(frozen=True)
class Banded:
    """A matrix in blocks.

    Attributes:
        outputs: rows of the matrix.
        blocks: outputs, inputs, and the part of the matrix between them, `[outputs, inputs]`.
    """

    outputs: int
    blocks: tuple[tuple[slice, slice, Tensor], ...]

    @classmethod
    def of(cls, matrix: Matrix, block: int, dtype: torch.dtype, device: torch.device) -> Banded:
        """Cut `[outputs, inputs]` into blocks of at most `block` outputs."""
        parts = []
        for first in range(0, len(matrix), block):
            rows = slice(first, min(first + block, len(matrix)))
            used = np.flatnonzero(matrix[rows].any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
            # Operators are cached, and inference tensors must not reach a later backward pass.
            with torch.inference_mode(False):
                part = torch.from_numpy(matrix[rows, columns].copy()).to(device, dtype)
            parts.append((rows, columns, part))
        return cls(len(matrix), tuple(parts))

    def rows(self, x: Tensor) -> Tensor:
        """`[bands, inputs, columns]` to `[bands, outputs, columns]`."""
        y = x.new_empty(x.shape[0], self.outputs, x.shape[2])
        for outputs, inputs, part in self.blocks:
            y[:, outputs] = part @ x[:, inputs]
        return y

    def columns(self, x: Tensor) -> Tensor:
        """`[bands, rows, inputs]` to `[bands, rows, outputs]`."""
        y = x.new_empty(*x.shape[:2], self.outputs)
        for outputs, inputs, part in self.blocks:
            y[..., outputs] = x[..., inputs] @ part.T
        return y

    def pattern(self) -> Banded:
        """The same with the weights' magnitudes: tells which outputs read an input at all."""
        return Banded(self.outputs, tuple((to, of, part.abs()) for to, of, part in self.blocks))


def along_both(down: Banded, right: Banded, x: Tensor) -> Tensor:
    """`[bands, rows, columns]` through the operator of its rows, then through that of its columns.

    Rows come first: cut along rows, an image stays whole lines in memory.
    """
    return right.columns(down.rows(x))


def where_known(down: Banded, right: Banded, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`along_both` of an image with holes.

    Returns:
        The result, finite, and where it means nothing because it reads what is not finite; None if
        that is nowhere.
    """
    y = along_both(down, right, x)
    # In a product of matrices one NaN reaches outputs that do not read it.
    spoilt = ~torch.isfinite(y.sum(dim=(1, 2)))
    if not spoilt.any():
        return y, None
    some = x[spoilt]
    holes = ~torch.isfinite(some)
    y[spoilt] = along_both(down, right, some.masked_fill_(holes, 0.0))
    unknown = torch.zeros_like(y, dtype=torch.bool)
    unknown[spoilt] = along_both(down.pattern(), right.pattern(), holes.to(x.dtype)) > 0
    unknown |= ~torch.isfinite(y)  # values so large that their sums are not
    return y.masked_fill_(unknown, 0.0), unknown
