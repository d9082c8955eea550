"""What of a scene is evaluated: all of it, or a sample of blocks where it is too large."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from pipeline.grid import TileGrid, Window

MOST_VALUES = 40_000_000  # HR pixels x bands of a scene that is evaluated whole, or of a block
SAMPLE_SIDE = 4  # blocks along each axis of a larger one
MOST_CELLS = 4  # parts along each axis of a scene that is its own sample
_SMALLEST_CELL = 32  # HR pixels
_SMALLEST_TILE = 8  # LR pixels


@dataclass(frozen=True)
class Region:
    """A scene, or a part of one, that is taken for the truth.

    Attributes:
        uri: what `pipeline.open_scene` opens.
        name: for tables; one per evaluation.
        window: in the scene's own pixels; None: the whole scene.
    """

    uri: str
    name: str
    window: Window | None = None


@dataclass(frozen=True)
class Blocks:
    """Parts of an LR scene that are scored.

    Attributes:
        windows: in LR pixels.
        sample: in words what they are of the scene; empty where they are all of it.
    """

    windows: tuple[Window, ...]
    sample: str = ""


def blocks_of(height: int, width: int, bands: int, scale: int, tile: int) -> Blocks:
    """The whole scene as one block, or whole tiles spread evenly over it.

    Args:
        height, width: LR pixels of the scene.
        bands: of the scene.
        scale: of the network.
        tile: LR pixels along a tile's side.
    """
    if height * width * scale**2 * bands <= MOST_VALUES:
        return Blocks((Window(0, height, 0, width),))
    held = max(_SMALLEST_TILE, isqrt(MOST_VALUES // bands) // scale)  # a block is held whole too
    grid = TileGrid(height, width, min(tile, held, height, width), scale)
    rows, columns = (_spread(size // grid.tile) for size in (height, width))
    windows = tuple(
        Window(row * grid.tile, (row + 1) * grid.tile, column * grid.tile, (column + 1) * grid.tile)
        for row in rows
        for column in columns
    )
    share = sum(window.pixels for window in windows) / (height * width)
    side = grid.tile * scale
    words = f"{len(windows)} blocks of {side} x {side} pixels spread evenly, {share:.1%} of it"
    return Blocks(windows, words)


def _spread(count: int) -> list[int]:
    """At most `SAMPLE_SIDE` of so many places, each in the middle of its share."""
    chosen = min(SAMPLE_SIDE, count)
    return [int((index + 0.5) * count / chosen) for index in range(chosen)]


def cells_of(rows: int, columns: int) -> list[tuple[slice, slice]]:
    """HR parts of an image, for the spread within it; one where it is small."""
    return [(down, across) for down in _parts(rows) for across in _parts(columns)]


def _parts(size: int) -> Sequence[slice]:
    count = max(1, min(MOST_CELLS, size // _SMALLEST_CELL))
    edges = [round(index * size / count) for index in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]
