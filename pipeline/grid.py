"""Tiles, halos and shards of a scene, and its georeferencing on the finer grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox


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
        return Window(
            max(0, top - margin),
            min(self.height, top + self.tile + margin),
            max(0, left - margin),
            min(self.width, left + self.tile + margin),
        )

    @property
    def output_size(self) -> tuple[int, int]:
        return self.height * self.scale, self.width * self.scale

    @property
    def shard(self) -> int:
        """HR pixels along a shard's side: exactly one tile, so no two writers share an object."""
        return self.tile * self.scale


def geobox_of(scene: xr.Dataset) -> GeoBox | None:
    """The scene's grid, or None where it has no affine georeferencing."""
    if "spatial_ref" not in scene.coords:
        return None
    attributes = scene["spatial_ref"].attrs
    transform = attributes.get("GeoTransform")
    if not transform:
        return None
    affine = Affine.from_gdal(*(float(value) for value in str(transform).split()))
    shape = (scene.sizes["y"], scene.sizes["x"])
    return GeoBox(shape, affine, attributes.get("crs_wkt") or None)


def scaled_coordinates(scene: xr.Dataset, scale: int) -> dict[str, xr.Variable]:
    """`x`, `y` pixel centres and `spatial_ref` of the grid that is `scale` times finer.

    Both grids cover the same area: the corner stays, the pixel shrinks, so the centre of an HR
    pixel is not the centre of an LR pixel. A grid that is rotated or has no georeferencing has
    centres counted in pixels, and (rotated) its truth in `spatial_ref`'s GeoTransform.
    """
    rows, columns = scene.sizes["y"] * scale, scene.sizes["x"] * scale
    box = geobox_of(scene)
    affine = None if box is None else box.zoom_out(1 / scale).affine
    return _coordinates(scene, rows, columns, affine)


def overview_coordinates(fine: xr.Dataset, factor: int) -> dict[str, xr.Variable]:
    """The same for a level whose pixels are `factor` times larger; its last may reach beyond."""
    rows, columns = (-(-fine.sizes[axis] // factor) for axis in ("y", "x"))
    box = geobox_of(fine)
    affine = None if box is None else box.affine * Affine.scale(factor)
    return _coordinates(fine, rows, columns, affine)


def _coordinates(
    scene: xr.Dataset, rows: int, columns: int, affine: Affine | None
) -> dict[str, xr.Variable]:
    if affine is None:
        return _pixel_centres(rows, columns)
    if affine.is_rectilinear and affine.b == 0:
        centres = {
            "x": _axis("x", affine.c + affine.a * (np.arange(columns) + 0.5), scene["x"].attrs),
            "y": _axis("y", affine.f + affine.e * (np.arange(rows) + 0.5), scene["y"].attrs),
        }
    else:
        centres = _pixel_centres(rows, columns)
    attributes: dict[str, Any] = dict(scene["spatial_ref"].attrs)
    attributes["GeoTransform"] = " ".join(repr(float(value)) for value in affine.to_gdal())
    return {**centres, "spatial_ref": xr.Variable((), np.int64(0), attributes)}


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
