"""A scene as a coarser sensor would have seen it, lazily: Wald's protocol (Wald et al. 1997).

Every window of the LR scene is computed from the HR pixels that it reads, so no scene is ever held
whole. An LR pixel over a gap is a gap; gaps around a valid one are filled from their neighbours
before they are averaged, in the same way for every window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.banded import Matrix
from model.degradation import Degradation, bicubic, gaussian
from pipeline.errors import SceneError, UsageError
from pipeline.grid import Window
from pipeline.nodata import fill_gaps
from pipeline.readers.lazy import lazy_array, picked
from pipeline.settings import Degrading
from pipeline.values import Values, read_window

_CHUNK = 64  # LR pixels


def degradation_of(kind: Degrading, scale: int, mtf: float | None = None) -> Degradation:
    """`bicubic`: MATLAB's imresize, as published; `mtf`: a Gaussian with that MTF at Nyquist.

    Raises:
        UsageError: the MTF is missing, out of range, or of no use.
    """
    if kind == "bicubic" and mtf is not None:
        raise UsageError("--mtf: bicubic has none of its own; add --degradation mtf")
    if kind == "bicubic":
        return bicubic(scale)
    if mtf is None:
        raise UsageError("--degradation mtf: give the sensor's MTF at Nyquist, e.g. --mtf 0.3")
    try:
        return gaussian(scale, mtf)
    except ValueError as error:
        raise UsageError(f"--mtf: {error}") from None


def crop(scene: xr.Dataset, window: Window | None, scale: int) -> xr.Dataset:
    """A part of a scene, from its top left corner on in whole LR pixels.

    Raises:
        SceneError: `unsupported`, the window does not lie in the scene or holds no LR pixel.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    part = window or Window(0, height, 0, width)
    if not (0 <= part.top < part.bottom <= height and 0 <= part.left < part.right <= width):
        where = f"rows {part.top} to {part.bottom}, columns {part.left} to {part.right}"
        reason = f"{where} do not lie in the scene of {height} x {width} pixels"
        raise SceneError("unsupported", reason)
    rows, columns = (size // scale * scale for size in part.shape)
    if not rows or not columns:
        reason = f"{part.shape[0]} x {part.shape[1]} pixels hold no LR pixel at x{scale}"
        raise SceneError("unsupported", reason)
    return scene.isel(y=slice(part.top, part.top + rows), x=slice(part.left, part.left + columns))


def degraded(high: xr.Dataset, degradation: Degradation) -> xr.Dataset:
    """The LR scene.

    Args:
        high: keeps the Scene contract; its sides are multiples of the degradation's scale.

    Returns:
        A lazy scene of the same bands, attributes and encoding, without georeferencing.
    """
    cube = _DegradedCube(high, degradation)
    return replaced(high, lazy_array(cube, (cube.shape[0], _CHUNK, _CHUNK)))


def replaced(scene: xr.Dataset, values: da.Array | Values) -> xr.Dataset:
    """Other values, of another size, for the same bands."""
    bare = scene.drop_dims(["y", "x"]).drop_vars("spatial_ref", errors="ignore")
    made = bare.assign(reflectance=(("band", "y", "x"), values)).chunk({"band": -1})
    made["reflectance"].encoding = dict(scene["reflectance"].encoding)
    return made


@dataclass(frozen=True)
class _Axis:
    """What an LR interval reads along one axis: LR pixels from `first` on, and the matrix."""

    first: int
    size: int
    matrix: Matrix

    @classmethod
    def of(cls, part: slice, length: int, degradation: Degradation) -> _Axis:
        first = max(0, part.start - degradation.support)
        last = min(length, part.stop + degradation.support)
        matrix, _ = degradation.matrix(last - first, first == 0, last == length)
        return cls(first, last - first, matrix[part.start - first : part.stop - first])


class _DegradedCube:
    """The LR cube (band, y, x) as dask wants it: a shape, a type, and windows."""

    def __init__(self, high: xr.Dataset, degradation: Degradation) -> None:
        self._high, self._degradation = high, degradation
        bands, rows, columns = high["reflectance"].shape
        self.shape = (bands, rows // degradation.scale, columns // degradation.scale)
        self.dtype, self.ndim = np.dtype(np.float32), 3

    def __getitem__(self, key: tuple[Any, ...]) -> Values:
        return picked(key, self.shape, self._window)

    def _window(self, bands: slice, rows: slice, columns: slice) -> Values:
        scale, reach = self._degradation.scale, self._degradation.support
        down, right = (
            _Axis.of(part, size, self._degradation)
            for part, size in zip((rows, columns), self.shape[1:], strict=True)
        )
        # A valid pixel reads as far as `reach`, and what is filled there comes from as far again:
        # so every window fills alike.
        core = Window(rows.start, rows.stop, columns.start, columns.stop)
        around = core.grown(2 * reach, self.shape[1:])
        seen = read_window(self._high, around.scaled(scale))[bands]
        gaps = _any_in_pixel(np.isnan(seen), scale)[:, *core.within(around).slices]
        filled = fill_gaps(seen, np.zeros(len(seen), np.float32), reach * scale)
        used = Window(down.first, down.first + down.size, right.first, right.first + right.size)
        part = filled[:, *used.within(around).scaled(scale).slices]
        values = (down.matrix @ part @ right.matrix.T).astype(np.float32)
        values[gaps] = np.nan
        return values


def _any_in_pixel(mask: NDArray[np.bool_], scale: int) -> NDArray[np.bool_]:
    """Of `(bands, scale*rows, scale*cols)`, whether anything is set under each LR pixel."""
    bands, rows, columns = mask.shape
    parts = mask.reshape(bands, rows // scale, scale, columns // scale, scale)
    return np.asarray(parts.any(axis=(2, 4)))
