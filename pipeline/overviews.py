"""Coarser copies of a scene for display: each level halves the one before, tile by tile.

A level's pixel is the mean of the valid ones among the 2 x 2 it covers, as GDAL's `average`
resampling. A tile writes its part of every level beside its shard, so there is no second pass.
"""

from __future__ import annotations

import numpy as np

from pipeline.grid import TileGrid, Window
from pipeline.values import Values

_SMALLEST_PART = (
    16  # pixels along a tile's side in a level; smaller objects cost more than they hold
)
_AT_ONCE = 1 << 16  # values: with what is made of them they stay in a core's cache
_SMALL_ENOUGH = 256  # pixels along the longer side at which no further level is needed


def overview_factors(grid: TileGrid) -> tuple[int, ...]:
    """The levels of a scene, as factors of its finer grid: 2, 4, ... as far as tiles divide."""
    factors: list[int] = []
    factor = 2
    while (
        max(grid.output_size) * 2 > _SMALL_ENOUGH * factor
        and grid.shard % factor == 0
        and grid.shard // factor >= _SMALLEST_PART
    ):
        factors.append(factor)
        factor *= 2
    return tuple(factors)


def overview_name(factor: int) -> str:
    """The group of a level below the scene."""
    return f"overviews/{factor}"


def halve(values: Values) -> Values:
    """`(bands, rows, cols)` to half as many rows and columns (rounded up), NaN-aware."""
    bands, rows, columns = values.shape
    if rows % 2 or columns % 2:
        return _valid_mean(values)
    halved = np.empty((bands, rows // 2, columns // 2), np.float32)
    some = max(1, _AT_ONCE // (rows * columns))
    with np.errstate(over="ignore", invalid="ignore"):  # as in a result that is not finite
        for first in range(0, bands, some):  # some bands at a time: they fit the cache
            _add_fours(values[first : first + some], halved[first : first + some])
        halved *= np.float32(0.25)
        spoilt = np.flatnonzero(np.isnan(halved.sum(axis=(1, 2))))
    if spoilt.size:
        halved[spoilt] = _valid_mean(values[spoilt])
    return halved


def _add_fours(values: Values, into: Values) -> None:
    """The sum of each 2 x 2; pairs of rows are added first, which lie together in memory."""
    rows = values[:, 0::2] + values[:, 1::2]
    np.add(rows[..., 0::2], rows[..., 1::2], out=into)


def _valid_mean(values: Values) -> Values:
    even = ((0, 0), (0, values.shape[1] % 2), (0, values.shape[2] % 2))
    valid = np.pad(~np.isnan(values), even)
    known = np.where(valid, np.pad(values, even), np.float32(0))
    bands, rows, columns = known.shape
    total, count = (np.empty((bands, rows // 2, columns // 2), np.float32) for _ in range(2))
    _add_fours(known, total)
    _add_fours(valid.astype(np.float32), count)
    with np.errstate(invalid="ignore"):
        total /= count  # 0 / 0 where none is valid: NaN
    return total


def coarser(window: Window, factor: int) -> Window:
    """A window of whole shards on a level's grid."""
    return Window(
        window.top // factor,
        -(-window.bottom // factor),
        window.left // factor,
        -(-window.right // factor),
    )
