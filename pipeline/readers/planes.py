"""Two-dimensional layers beside the cube: quality flags, latitude and longitude, read lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.readers import flags
from pipeline.readers.boundary import boundary
from pipeline.readers.lazy import lazy_array, picked
from pipeline.readers.scene import WindowReader


class PlaneReader(Protocol):
    """Values of one layer (y, x); picklable, and read by several threads at once."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def read(self, y: slice, x: slice) -> npt.NDArray[Any]:
        """The window of two plain slices, in `dtype`."""


class BandPlane:
    """One band of a cube as a layer of float64; `fill` becomes NaN."""

    dtype = np.dtype(np.float64)

    def __init__(self, cube: WindowReader, band: int, fill: float | None) -> None:
        self.cube, self.band, self.shape = cube, band, cube.shape[1:]
        self.fill = float("nan") if fill is None else fill

    def read(self, y: slice, x: slice) -> npt.NDArray[np.float64]:
        values = self.cube.read(slice(self.band, self.band + 1), y, x)[0]
        return np.where(values == self.fill, np.nan, values.astype(np.float64))


class LazyPlane:
    """A layer as dask wants it: a shape, a type, and windows."""

    ndim = 2

    def __init__(self, reader: PlaneReader, uri: str) -> None:
        self.reader, self.uri = reader, uri
        self.shape, self.dtype = reader.shape, reader.dtype

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        with boundary(self.uri, "cannot read a layer of the scene"):
            return picked(key, self.shape, self.reader.read)


def lazy_plane(reader: PlaneReader, chunks: Sequence[int], uri: str) -> da.Array:
    """A dask array (y, x) in the cube's own chunks."""
    return lazy_array(LazyPlane(reader, uri), chunks[-2:])


class Rule(Protocol):
    """Which flags a layer's raw values (band, y, x) stand for: name -> boolean (y, x)."""

    def __call__(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]: ...


class FlagPlane:
    """Flags of several layers of one product, merged into bits of `flags.FLAGS`.

    `layers` are (reader of raw values, bands to read, rule); a rule is a module's function, so
    that the whole is picklable.
    """

    dtype = np.dtype(np.uint16)

    def __init__(self, layers: Sequence[tuple[WindowReader, slice, Rule]]) -> None:
        self.layers = tuple(layers)
        self.shape = self.layers[0][0].shape[1:]

    def read(self, y: slice, x: slice) -> npt.NDArray[np.uint16]:
        found = np.zeros((y.stop - y.start, x.stop - x.start), np.uint16)
        for reader, bands, rule in self.layers:
            for name, where in rule(reader.read(bands, y, x)).items():
                found[where] |= np.uint16(flags.FLAGS[name])
        return found


def flag_variable(
    layers: Sequence[tuple[WindowReader, slice, Rule]], chunks: Sequence[int], uri: str
) -> dict[str, xr.Variable]:
    """`quality_flags (y, x)` uint16, or nothing where the product has no layer."""
    if not layers:
        return {}
    lazy = lazy_plane(FlagPlane(layers), chunks, uri)
    return {flags.VARIABLE: xr.Variable(("y", "x"), lazy, flags.flag_attributes())}


def swath_coords(
    lat: PlaneReader, lon: PlaneReader, chunks: Sequence[int], uri: str
) -> dict[str, Any]:
    """`lat` and `lon (y, x)`, float64 degrees, with CF attributes (CF 1.11, section 5.2)."""
    found: dict[str, Any] = {}
    for name, word, unit, reader in (
        ("lat", "latitude", "degrees_north", lat),
        ("lon", "longitude", "degrees_east", lon),
    ):
        attrs = {"standard_name": word, "units": unit}
        found[name] = (("y", "x"), lazy_plane(reader, chunks, uri), attrs)
    return found
