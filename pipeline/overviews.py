"""Coarser copies of a scene for display: each level halves the one before, tile by tile.

A level's pixel is the mean of the valid ones among the 2 x 2 it covers, as GDAL's `average`
resampling. A tile writes its part of every level beside its shard, so there is no second pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

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
            _mean(values[first : first + some], halved[first : first + some])
        spoilt = np.flatnonzero(np.isnan(halved.sum(axis=(1, 2))))
    if spoilt.size:
        halved[spoilt] = _valid_mean(values[spoilt])
    return halved


def _mean(values: Values, into: Values) -> None:
    """The mean of each 2 x 2, which are added as `avg_pool2d` adds them."""
    left, right = np.copy(values[..., 0::2]), np.copy(values[..., 1::2])
    np.add(left[:, 0::2], right[:, 0::2], out=into)
    into += left[:, 1::2]
    into += right[:, 1::2]
    into *= np.float32(0.25)


def _valid_mean(values: Values) -> Values:
    x = torch.from_numpy(values)
    valid = ~torch.isnan(x)
    mean = avg_pool2d(torch.where(valid, x, 0.0), 2, ceil_mode=True)
    share = avg_pool2d(valid.to(x.dtype), 2, ceil_mode=True)
    return np.asarray((mean / share).numpy())  # 0 / 0 where none is valid: NaN


def coarser(window: Window, factor: int) -> Window:
    """A window of whole shards on a level's grid."""
    return Window(
        window.top // factor,
        -(-window.bottom // factor),
        window.left // factor,
        -(-window.right // factor),
    )
