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
    x = torch.from_numpy(values)
    if not bool(torch.isnan(x).any()):
        return np.asarray(avg_pool2d(x, 2, ceil_mode=True).numpy())
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
