"""Where on Earth a scene lies: its outline as GeoJSON, for catalogues.

RFC 7946: longitude and latitude of WGS 84, outer rings counterclockwise, what crosses the
antimeridian cut in two there (3.1.9), and such a bounding box with its west greater than its east
(5.2). Cutting, and closing a ring around a pole, is the work of the `antimeridian` package.
"""

from __future__ import annotations

from typing import Any

import antimeridian
import numpy as np
import numpy.typing as npt
import pyproj
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from pipeline.grid import geobox_of
from pipeline.swath import degrees, unit_vectors

FloatArray = npt.NDArray[np.float64]
Geometry = dict[str, Any]

_SEGMENTS = 32  # of an edge; between their ends the outline is straight in degrees
_DECIMALS = 8  # of a degree: a millimetre
_WGS84 = "OGC:CRS84"


def footprint(scene: xr.Dataset) -> Geometry | None:
    """The scene's outer edge, in degrees.

    A grid's outline is its true edge, in 32 straight pieces a side. A swath's is its outermost
    pixel centres, half a pixel further out; where pixels at the border have no position, it is
    the outermost pixel centres that have one, in at most 65 of the rows.

    Returns:
        A GeoJSON Polygon, or MultiPolygon where the scene crosses the antimeridian. None where the
        scene has no place on Earth: neither grid with CRS nor `lat` and `lon`, a CRS of another
        body or of no body, positions that span no area or an outline that crosses itself.

    Raises:
        SceneError: the grid contradicts itself, or positions cannot be read.
    """
    box = geobox_of(scene)
    ring = None if box is None else _grid_ring(box)
    if ring is None and {"lat", "lon"} <= set(scene.coords) and scene["lat"].ndim == 2:
        ring = _swath_ring(scene["lat"], scene["lon"])
    return None if ring is None else _geometry(ring)


def bounding_box(geometry: Geometry) -> list[float]:
    """[west, south, east, north] in degrees; west is greater than east across the antimeridian."""
    shape = shapely.geometry.shape(geometry)
    bounds = [part.bounds for part in getattr(shape, "geoms", [shape])]
    split = {part[0] for part in bounds} & {-180.0} and {part[2] for part in bounds} & {180.0}
    if split and not any(part[0] == -180 and part[2] == 180 for part in bounds):
        turned = [(w + 360, s, e + 360, n) if e <= 0 else (w, s, e, n) for w, s, e, n in bounds]
    else:
        turned = bounds
    west, south, east, north = zip(*turned, strict=True)
    return [min(west), min(south), max(east) - 360 * (max(east) > 180), max(north)]


def _grid_ring(box: GeoBox) -> FloatArray | None:
    """(2, n) longitude and latitude along the edge; None where there is no way to WGS 84."""
    if box.crs is None:
        return None
    rows, columns = box.shape
    corners = np.array([(0, 0), (0, rows), (columns, rows), (columns, 0), (0, 0)], np.float64)
    steps = np.arange(4 * _SEGMENTS) / _SEGMENTS
    column, row = (np.interp(steps, np.arange(5), axis) for axis in corners.T)
    try:
        transformer = pyproj.Transformer.from_crs(box.crs.proj, _WGS84, always_xy=True)
        ring = np.stack(transformer.transform(*(box.affine @ (column, row))))
    except ProjError:
        return None
    return ring if np.isfinite(ring).all() and (np.abs(ring[1]) <= 90).all() else None


def _swath_ring(lat: xr.DataArray, lon: xr.DataArray) -> FloatArray | None:
    """(2, n) longitude and latitude along the edge of a swath; None where nothing is spanned."""
    if min(lat.shape) < 2:
        return None
    left, right = (_edge(lat, lon, "x", pair) for pair in ([0, 1], [-1, -2]))
    top, bottom = (_edge(lat, lon, "y", pair) for pair in ([0, 1], [-1, -2]))
    sides = [left, bottom, right[:, ::-1], top[:, ::-1]]
    border = np.concatenate([side[:, :-1] for side in sides], axis=1)
    if not np.isfinite(border).all():
        return _inner_ring(lat, lon)
    latitude, longitude = degrees(border, -180.0)
    return np.stack([longitude, latitude])


def _edge(lat: xr.DataArray, lon: xr.DataArray, across: str, pair: list[int]) -> FloatArray:
    """(3, n) vectors along one edge from corner to corner: the two outermost lines, continued."""
    order = (across, "y" if across == "x" else "x")
    lines = (part.isel({across: pair}).transpose(*order).values for part in (lat, lon))
    vectors = unit_vectors(*lines)
    line = 1.5 * vectors[:, 0] - 0.5 * vectors[:, 1]
    ends = 1.5 * line[:, [0, -1]] - 0.5 * line[:, [1, -2]]
    picked = line[:, _spread(line.shape[1], _SEGMENTS)]
    return np.concatenate([ends[:, :1], picked, ends[:, 1:]], axis=1)


def _inner_ring(lat: xr.DataArray, lon: xr.DataArray) -> FloatArray | None:
    """Down the first pixels of the rows that have a position, and up the last."""
    picked = {"y": _spread(lat.sizes["y"], 2 * _SEGMENTS)}
    latitude, longitude = (part.isel(picked).transpose("y", "x").values for part in (lat, lon))
    there = np.isfinite(unit_vectors(latitude, longitude)[0])
    rows = np.flatnonzero(there.any(axis=1))
    first, last = there.argmax(axis=1), there.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
    if rows.size < 2 or (first[rows] == last[rows]).all():
        return None
    down, columns = (
        np.concatenate([rows, rows[::-1]]),
        np.concatenate([first[rows], last[rows[::-1]]]),
    )
    return np.stack([longitude[down, columns], latitude[down, columns]]).astype(np.float64)


def _spread(size: int, parts: int) -> npt.NDArray[np.intp]:
    """Up to `parts` + 1 indices from the first to the last."""
    return np.unique(np.linspace(0, size - 1, parts + 1).round().astype(np.intp))


def _geometry(ring: FloatArray) -> Geometry | None:
    """The polygon that a ring (2, n) encloses, the way around that is shorter."""
    vectors = unit_vectors(ring[1], ring[0])
    turning = np.cross(vectors, np.roll(vectors, -1, axis=1), axis=0).sum(axis=1)
    if turning @ vectors.sum(axis=1) < 0:
        ring = ring[:, ::-1]
    try:
        fixed = antimeridian.fix_polygon(shapely.Polygon(ring.T), fix_winding=True)
    except (ValueError, AssertionError, shapely.errors.ShapelyError):  # it crosses itself, or less
        return None
    return {"type": fixed.geom_type, "coordinates": _rounded(shapely.geometry.mapping(fixed))}


def _rounded(mapping: Geometry) -> list[Any]:
    def lists(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, _DECIMALS)
        return [lists(part) for part in value]

    return list(lists(mapping["coordinates"]))
