"""Latitude and longitude of a swath's pixels on the finer grid.

A swath has no transform: each LR pixel states where its centre lies. The centre of HR pixel j lies
at LR index (j + 0.5) / scale - 0.5, between two LR centres, or up to half an LR pixel outside the
outermost.

Positions are interpolated as unit vectors in space, where neither the antimeridian nor a pole is
special, along rows and then along columns, with the cubic convolution of Keys (1981, IEEE Trans.
ASSP 29, a = -1/2). It runs through the LR centres, is smooth, and is exact for quadratics; a
straight line between centres would misplace HR pixels by an eighth of the bend per pixel, and at
the edge of a wide scan the pixels' growth bends that much. A neighbour that is absent, beyond the
scene's edge or without a position, is continued from the other side: as a quadratic where two
neighbours are there, as a line where one is, and not at all where none is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.grid import Tile, TileGrid, Window

MARGIN = 2  # LR pixels that are needed around a core, as far as the scene reaches

# CF conventions 1.11, sections 4.1 and 4.2
POSITIONS = {
    "lat": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
}

FloatArray = npt.NDArray[np.float64]

_TAPS = 2 * MARGIN + 1


@dataclass(frozen=True)
class Positions:
    """Where the LR pixels of a window lie.

    Attributes:
        latitude, longitude: (rows, cols) in degrees.
        core: the tile's core in those arrays.
    """

    latitude: FloatArray
    longitude: FloatArray
    core: Window


def is_swath(scene: xr.Dataset) -> bool:
    """Whether every pixel states its own position."""
    return all(name in scene.coords and scene.coords[name].dims == ("y", "x") for name in POSITIONS)


def read_positions(scene: xr.Dataset, grid: TileGrid, tile: Tile) -> Positions | None:
    """The positions that `upsample_positions` needs for a tile; None if the scene is no swath."""
    if not is_swath(scene):
        return None
    window = grid.window(tile, MARGIN)
    rows, columns = window.slices
    latitude, longitude = (
        np.asarray(scene[name][rows, columns].values, dtype=np.float64) for name in POSITIONS
    )
    return Positions(latitude, longitude, grid.core(tile).within(window))


def upsample_positions(
    latitude: npt.NDArray[np.floating],
    longitude: npt.NDArray[np.floating],
    core: Window,
    scale: int,
    west: float = -180.0,
) -> tuple[FloatArray, FloatArray]:
    """Positions of the HR pixels of `core`.

    An HR pixel has no position (NaN) where its LR pixel has none, or where that LR pixel has no
    neighbour with a position in its row or none in its column: the direction is then unknown. So
    gaps keep their outline, but an LR pixel that stands alone is lost, and so is a scene of one
    row or one column. A position is absent where it is not finite, or is not on Earth (the fill
    values of files that declare none).

    The result for a core is the same, to the last bit, whatever the scene is cut into, if the
    arrays reach `MARGIN` beyond the core wherever the scene does.

    Args:
        latitude, longitude: (rows, cols) of LR pixel centres, degrees, the core and its margin.
        core: within those arrays, LR pixels, end exclusive.
        scale: upsampling factor.
        west: where a turn starts: longitudes of the result are in [west, west + 360).

    Returns:
        latitude and longitude (scale * rows, scale * cols) of the core, degrees, float64.

    Raises:
        ValueError: the arrays differ in shape, or the core is not within them.
    """
    rows, columns = latitude.shape
    if longitude.shape != latitude.shape or core.bottom > rows or core.right > columns:
        raise ValueError(f"core {core} of positions {latitude.shape} and {longitude.shape}")
    vectors = unit_vectors(latitude, longitude)
    across = _refine(vectors, core.left, core.right, scale)
    along = _refine(across.transpose(0, 2, 1), core.top, core.bottom, scale)
    return degrees(np.ascontiguousarray(along.transpose(0, 2, 1)), west)


def unit_vectors(
    latitude: npt.NDArray[np.floating], longitude: npt.NDArray[np.floating]
) -> FloatArray:
    """(3, ...) unit vectors of positions in degrees; NaN where a position is absent."""
    lat, lon = np.array(latitude, np.float64), np.array(longitude, np.float64)
    with np.errstate(invalid="ignore"):
        absent = ~((np.abs(lat) <= 90) & (np.abs(lon) <= 360))
    lat[absent] = lon[absent] = np.nan
    lat, lon = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def degrees(vectors: FloatArray, west: float) -> tuple[FloatArray, FloatArray]:
    """Latitude and longitude of (3, rows, cols) vectors of any length."""
    x, y, z = vectors
    lon = np.rad2deg(np.arctan2(y, x))
    lon = np.where(lon < west, lon + 360, lon)
    return np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.where(lon >= west + 360, lon - 360, lon)


def _refine(vectors: FloatArray, start: int, stop: int, scale: int) -> FloatArray:
    """(3, rows, cols) refined along the columns `start` to `stop`: (3, rows, scale * columns)."""
    padded = np.pad(vectors, ((0, 0), (0, 0), (MARGIN, MARGIN)), constant_values=np.nan)
    count = stop - start
    taps = [padded[..., start + tap : start + tap + count] for tap in range(_TAPS)]
    present = [~np.isnan(tap[0]) for tap in taps]
    pattern = _pattern(present)
    refined = np.zeros((*taps[0].shape, scale))
    for number, (tap, there) in enumerate(zip(taps, present, strict=True)):
        weights = _weights(scale)[:, :, number][pattern]  # rows, cols, phases
        refined += np.where(there, tap, 0.0)[..., None] * weights
    refined[:, ~present[MARGIN]] = np.nan
    return refined.reshape(*vectors.shape[:2], count * scale)


def _pattern(present: list[npt.NDArray[np.bool_]]) -> npt.NDArray[np.intp]:
    """Which of the four neighbours are there, as a number of four bits."""
    neighbours = present[:MARGIN] + present[MARGIN + 1 :]
    return sum(
        (there.astype(np.intp) << bit for bit, there in enumerate(neighbours)),
        start=np.zeros(present[0].shape, np.intp),
    )


@lru_cache(maxsize=16)
def _weights(scale: int) -> FloatArray:
    """(16 patterns, `scale` phases, 5 taps): how the taps mix; NaN where they cannot."""
    offsets = (np.arange(scale) + 0.5) / scale - 0.5
    return np.stack([_keys(offsets) @ _continued(pattern) for pattern in range(16)])


def _keys(offsets: FloatArray) -> FloatArray:
    """(offsets, 5): Keys' kernel at the distance of each tap from each offset."""
    distance = np.abs(offsets[:, None] - (np.arange(_TAPS) - MARGIN))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _continued(pattern: int) -> FloatArray:
    """(5, 5): each tap as a mix of those that are there.

    Taps are numbered from -2 to 2 around the pixel's own. Behind an absent neighbour nothing is
    used, so that no pixel is drawn to what lies beyond a gap.
    """
    there = dict(zip((-2, -1, 1, 2), (bool(pattern >> bit & 1) for bit in range(4)), strict=True))
    if not there[-1] and not there[1]:
        return np.full((_TAPS, _TAPS), np.nan)
    mix = {tap: np.eye(_TAPS)[tap + MARGIN] for tap in range(-MARGIN, MARGIN + 1)}
    for side in (-1, 1):
        if not there[side]:
            mix[side] = 2 * mix[0] - mix[-side]
            if there[-2 * side]:
                mix[side] = 3 * mix[0] - 3 * mix[-side] + mix[-2 * side]
    for side in (-1, 1):
        if not (there[side] and there[2 * side]):
            mix[2 * side] = 3 * mix[side] - 3 * mix[0] + mix[-side]
    return np.stack([mix[tap] for tap in range(-MARGIN, MARGIN + 1)])
