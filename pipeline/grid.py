"""Tiles, halos and shards of a scene, and its georeferencing on the finer grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from pipeline.errors import SceneError


@dataclass(frozen=True, order=True)
class Tile:
    """The unit of work: one core of LR pixels, one shard of HR pixels."""

    row: int
    column: int

    @property
    def key(self) -> str:
        return f"{self.row}.{self.column}"


@dataclass(frozen=True)
class Window:
    """A rectangle of LR pixels, end exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def pixels(self) -> int:
        rows, columns = self.shape
        return rows * columns

    def scaled(self, factor: int) -> Window:
        return Window(*(factor * edge for edge in (self.top, self.bottom, self.left, self.right)))

    def grown(self, margin: int, shape: Sequence[int]) -> Window:
        """This window with `margin` pixels around it, as far as an array of `shape` reaches."""
        height, width = shape
        return Window(
            max(0, self.top - margin),
            min(height, self.bottom + margin),
            max(0, self.left - margin),
            min(width, self.right + margin),
        )

    def within(self, outer: Window) -> Window:
        """This window in coordinates relative to `outer`."""
        return Window(
            self.top - outer.top,
            self.bottom - outer.top,
            self.left - outer.left,
            self.right - outer.left,
        )


@dataclass(frozen=True)
class TileGrid:
    """How a scene of `height` x `width` LR pixels is cut into cores of `tile` x `tile`."""

    height: int
    width: int
    tile: int
    scale: int

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile)

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile)

    def __len__(self) -> int:
        return self.rows * self.columns

    def __iter__(self) -> Iterator[Tile]:
        return (Tile(row, column) for row in range(self.rows) for column in range(self.columns))

    def core(self, tile: Tile) -> Window:
        return self.window(tile, 0)

    def window(self, tile: Tile, margin: int) -> Window:
        """The core with `margin` LR pixels around it, as far as the scene reaches."""
        top, left = tile.row * self.tile, tile.column * self.tile
        whole = Window(top, top + self.tile, left, left + self.tile)
        return whole.grown(margin, (self.height, self.width))

    @property
    def output_size(self) -> tuple[int, int]:
        return self.height * self.scale, self.width * self.scale

    @property
    def shard(self) -> int:
        """HR pixels along a shard's side: exactly one tile, so no two writers share an object."""
        return self.tile * self.scale


def geobox_of(scene: xr.Dataset) -> GeoBox | None:
    """The scene's grid, or None where it has no affine georeferencing.

    The grid's CRS is None where the scene states a transform and no CRS.

    Raises:
        SceneError: the transform is no grid, or the CRS cannot be understood.
    """
    attributes = scene["spatial_ref"].attrs if "spatial_ref" in scene.coords else {}
    if not attributes.get("GeoTransform"):
        return None
    affine = _affine(str(attributes["GeoTransform"]), scene)
    shape = (scene.sizes["y"], scene.sizes["x"])
    try:
        return GeoBox(shape, affine, attributes.get("crs_wkt") or None)
    except Exception as error:  # whatever the projection library makes of a hostile text
        raise SceneError(
            "bad-header", f"{_source(scene)}: the CRS cannot be understood: correct its WKT"
        ) from error


def _affine(text: str, scene: xr.Dataset) -> Affine:
    """GDAL's six numbers, which must be finite and span an area."""
    try:
        numbers = [float(word) for word in text.split()]
        affine = Affine.from_gdal(*numbers)
    except (ValueError, TypeError):
        numbers, affine = [math.nan], Affine.identity()
    if not all(map(math.isfinite, numbers)) or affine.determinant == 0:
        raise SceneError(
            "bad-header",
            f"{_source(scene)}: GeoTransform {text[:100]!r} is no grid: correct or remove it",
        )
    return affine


def _source(scene: xr.Dataset) -> str:
    return str(scene.attrs.get("source", "scene"))


def scaled_coordinates(scene: xr.Dataset, scale: int, overview: int = 1) -> dict[str, xr.Variable]:
    """`x`, `y` pixel centres and `spatial_ref` of the grid that is `scale` times finer.

    Both grids cover the same area: the corner stays, the pixel shrinks, so the centre of an HR
    pixel is not the centre of an LR pixel. Each centre is computed from the corner alone, so that
    no rounding adds up along an axis. A grid that is rotated or sheared or has no georeferencing
    has centres counted in pixels, and (rotated) its truth in `spatial_ref`'s GeoTransform. A CRS
    without a transform is carried as it is. Longitudes stay in the turn of the source: a grid from
    170 to 190 degrees does not jump at 180.

    Args:
        scene: with dimensions `y` and `x`, and what it has of `x`, `y` and `spatial_ref`.
        scale: upsampling factor.
        overview: how many times coarser than full resolution again: the same corner, and sizes
            rounded up, so that the last pixel may reach beyond the scene.

    Raises:
        SceneError: see `geobox_of`.
    """
    rows, columns = (-(-scene.sizes[axis] * scale // overview) for axis in ("y", "x"))
    box = geobox_of(scene)
    if box is None:
        return {**_pixel_centres(rows, columns), **_reference(scene, None)}
    affine = box.zoom_out(1 / scale).zoom_out(overview).affine
    # Exactly zero, not nearly: over a wide scene a small shear moves the far end by pixels.
    if affine.b == 0 == affine.d:
        centres = {
            "x": _axis("x", affine.c + affine.a * (np.arange(columns) + 0.5), scene["x"].attrs),
            "y": _axis("y", affine.f + affine.e * (np.arange(rows) + 0.5), scene["y"].attrs),
        }
    else:
        centres = _pixel_centres(rows, columns)
    return {**centres, **_reference(scene, affine)}


def _reference(scene: xr.Dataset, affine: Affine | None) -> dict[str, xr.Variable]:
    """`spatial_ref` with the transform `affine`; nothing where the scene says nothing."""
    attributes = dict(scene["spatial_ref"].attrs) if "spatial_ref" in scene.coords else {}
    if affine is not None:
        attributes["GeoTransform"] = " ".join(repr(float(value)) for value in affine.to_gdal())
    return {"spatial_ref": xr.Variable((), np.int64(0), attributes)} if attributes else {}


def _axis(name: str, values: np.ndarray[Any, Any], attributes: dict[str, Any]) -> xr.Variable:
    return xr.Variable((name,), values.astype(np.float64), dict(attributes))


def _pixel_centres(rows: int, columns: int) -> dict[str, xr.Variable]:
    names = {"x": ("column", columns), "y": ("row", rows)}
    return {
        axis: _axis(
            axis,
            np.arange(count) + 0.5,
            {"long_name": f"{name} centre in pixels", "units": "1"},
        )
        for axis, (name, count) in names.items()
    }
