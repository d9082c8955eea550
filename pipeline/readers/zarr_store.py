"""Zarr v2 and v3 stores: a group in xarray's layout, a CF-like group, or one bare array.

The cube is `reflectance`, else the only three-dimensional numeric array. Axes are known by their
dimension names; without names the first axis holds the bands, as in every Zarr of rasters
(band, y, x), unless a list of wavelengths matches another axis or one is asked for.
"""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from pipeline.errors import SceneError
from pipeline.readers.boundary import boundary
from pipeline.readers.candidates import choose_cube, is_cube
from pipeline.readers.decoded import DecodedChunks
from pipeline.readers.georeference import Grid
from pipeline.readers.lazy import lazy_array
from pipeline.readers.packing import packing
from pipeline.readers.regular_grid import find_geotransform, parse_geotransform
from pipeline.readers.scene import SceneParts, assemble, check_block, chunk_sizes, known_attrs
from pipeline.readers.spectral_axis import good_bands, to_nanometres, units_of
from pipeline.storage import redact

_NAMES = {
    "band": ("band", "bands", "wavelength", "wavelengths", "lambda", "spectral", "channel", "wl"),
    "y": ("y", "row", "rows", "line", "lines", "northing", "lat", "latitude", "downtrack"),
    "x": (
        "x",
        "col",
        "cols",
        "column",
        "columns",
        "sample",
        "samples",
        "easting",
        "lon",
        "longitude",
        "crosstrack",
    ),
}
_WAVELENGTHS = ("wavelength", "wavelengths", "wavelength_nm", "lambda", "wl", "band", "bands")
_PLANE_CHUNK = 512
_WIDTHS = ("fwhm", "fwhm_nm", "bandwidth")
_FLAGS = ("good_band", "good_bands", "good_wavelengths", "bbl")


class ZarrCube:
    """Windows of one Zarr array; each process opens the store by itself."""

    def __init__(self, uri: str, name: str, array: Any, axes: tuple[int, int, int]) -> None:
        self.uri, self.name, self.axes = uri, name, axes
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        bands, rows, cols = (int(array.shape[axis]) for axis in axes)
        self.shape = (bands, rows, cols)
        self._chunks: DecodedChunks | None = _chunks_of(array)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        with self._lock:
            if self._chunks is None:
                node: Any = zarr.open(self.uri, mode="r")
                self._chunks = _chunks_of(node[self.name] if self.name else node)
        window = [slice(0, 0)] * 3
        for axis, part in zip(self.axes, (band, y, x), strict=True):
            window[axis] = part
        values = self._chunks.window(window)
        return np.asarray(values, self.dtype).transpose(self.axes)


def _chunks_of(array: Any) -> DecodedChunks:
    return DecodedChunks(
        lambda window: np.asarray(array[window]), array.shape, array.chunks, array.dtype.itemsize
    )


class _Plane:
    """A lazy 2-D array of the store (lat, lon), picklable like the cube."""

    def __init__(self, uri: str, name: str, array: Any) -> None:
        self.uri, self.name = uri, name
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, 2

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        with boundary(self.uri, f"cannot read {self.name!r}"):
            node: Any = zarr.open(self.uri, mode="r")
            return np.asarray(node[self.name][key])


def read_zarr(uri: str, band_axis: int | None = None) -> xr.Dataset:
    """Open a Zarr scene: reads metadata and the one-dimensional coordinates."""
    with boundary(uri, "cannot read the Zarr store", "bad-header"):
        node = zarr.open(uri, mode="r")
        arrays: dict[str, Any] = {"": node}
        if isinstance(node, zarr.Group):
            arrays = dict(node.arrays())
        return assemble(_describe(uri, dict(node.attrs), arrays, band_axis))


def _describe(
    uri: str, attrs: Mapping[str, Any], arrays: dict[str, Any], band_axis: int | None
) -> SceneParts:
    notes: list[str] = []
    name = _choose(uri, arrays, notes)
    cube = arrays[name]
    own = dict(cube.attrs)
    bands = None
    dims = _dims(cube)
    wave_name = _first(arrays, _WAVELENGTHS)
    if wave_name is not None:
        bands = int(arrays[wave_name].shape[0])
    axes = _axes(uri, dims, tuple(cube.shape), bands, band_axis, notes)
    reader = ZarrCube(uri, name, cube, axes)
    wavelength, fwhm, flags = _spectral(arrays, own, reader.shape[0], notes)
    grid, coords = _georeferencing(uri, arrays, own, dims, axes, reader.shape, notes)
    check_block(uri, cube.chunks, np.dtype(cube.dtype))
    block = [cube.chunks[axis] for axis in axes]
    chunks = chunk_sizes(reader.shape, (block[1], block[2]))
    if chunks[1] % block[1] or chunks[2] % block[2]:
        notes.append(f"chunks of {block[1]}x{block[2]} pixels are decoded again for every window")
    return SceneParts(
        uri=uri,
        format="zarr",
        reader=reader,
        chunks=chunks,
        packing=_packing(cube, own, notes),
        wavelength=wavelength,
        fwhm=fwhm,
        good_band=flags,
        grid=grid,
        coords=coords,
        attrs=known_attrs(dict(attrs) | own),
        notes=notes,
    )


def _choose(uri: str, arrays: dict[str, Any], notes: list[str]) -> str:
    kinds = {key: (tuple(array.shape), np.dtype(array.dtype)) for key, array in arrays.items()}
    if "reflectance" in kinds and not is_cube(*kinds["reflectance"]):
        raise SceneError("no-cube", f"{redact(uri)}: 'reflectance' is not three-dimensional")
    return choose_cube(uri, kinds, notes)


def _dims(array: Any) -> tuple[str | None, ...]:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(names) if names else (None,) * array.ndim


def _axes(
    uri: str,
    dims: Sequence[str | None],
    shape: tuple[int, ...],
    bands: int | None,
    asked: int | None,
    notes: list[str],
) -> tuple[int, int, int]:
    """The places of band, y and x; by name, or by the rule of this module's head."""
    lower = [str(name).lower() for name in dims]
    if any(name in ("t", "time", "date") for name in lower):
        raise SceneError("ambiguous", f"{redact(uri)}: a series over time: store one scene each")
    found = [
        [a for a, name in enumerate(lower) if name in _NAMES[key]] for key in ("band", "y", "x")
    ]
    if all(len(axes) == 1 for axes in found) and len({axes[0] for axes in found}) == 3:
        return found[0][0], found[1][0], found[2][0]
    if len(found[1]) == len(found[2]) == 1 and asked is None:
        asked = 3 - found[1][0] - found[2][0]
    elif any(name is not None for name in dims) and asked is None and len(found[0]) != 1:
        listed = ", ".join(map(str, dims))
        raise SceneError(
            "ambiguous", f"{redact(uri)}: dimensions ({listed}): rename them to band, y, x"
        )
    elif len(found[0]) == 1 and asked is None:
        asked = found[0][0]
    if asked is None:
        matching = [axis for axis, size in enumerate(shape) if size == bands]
        asked = matching[0] if len(matching) == 1 else 0
        order = ["rows", "cols"]
        order.insert(asked, "bands")
        notes.append(f"dimensions have no names: read as ({', '.join(order)})")
    y, x = (axis for axis in range(3) if axis != asked % 3)
    if len(found[1]) == 1 and found[1][0] == x:
        y, x = x, y
    return asked % 3, y, x


def _first(arrays: Mapping[str, Any], names: Sequence[str]) -> str | None:
    lower = {key.lower(): key for key, array in arrays.items() if array.ndim == 1}
    return next((lower[name] for name in names if name in lower), None)


def _spectral(
    arrays: Mapping[str, Any], own: Mapping[str, Any], bands: int, notes: list[str]
) -> tuple[Any, Any, Any]:
    """Coordinates on the bands from arrays, else from lists in the cube's attributes."""

    def values(names: Sequence[str]) -> tuple[Any, str | None]:
        key = _first(arrays, names)
        if key is not None and arrays[key].shape == (bands,) and arrays[key].dtype.kind in "biuf":
            units = arrays[key].attrs.get("units") or units_of(key)
            if key.lower() in ("band", "bands") and units is None:
                return None, None  # band numbers, not wavelengths
            return np.asarray(arrays[key][:]), units
        listed = next((own[name] for name in names if isinstance(own.get(name), list)), None)
        return listed, own.get("wavelength_units")

    centres, units = values(_WAVELENGTHS)
    flags = values(_FLAGS)[0]
    if flags is not None:
        flags = np.asarray(flags).astype(float)
    wavelength, fwhm = to_nanometres(centres, values(_WIDTHS)[0], units, bands, notes)
    return wavelength, fwhm, good_bands(flags, bands, notes)


def _packing(cube: Any, own: Mapping[str, Any], notes: list[str]) -> Any:
    dtype = np.dtype(cube.dtype)
    fill = _fill(own.get("_FillValue", own.get("missing_value")), dtype)
    if fill is None and cube.metadata.zarr_format == 2 and cube.fill_value is not None:
        # Version 2 has one fill value for both meanings. xarray means nodata by it; from others 0
        # is only what unwritten chunks hold.
        fill = float(cube.fill_value)
        fill = None if fill == 0 and "_ARRAY_DIMENSIONS" not in own else fill
    scale, offset = own.get("scale_factor"), own.get("add_offset")
    scale, offset = (None if part is None else float(part) for part in (scale, offset))
    return packing([scale], [offset], [fill], dtype, notes)


def _fill(value: Any, dtype: np.dtype[Any]) -> float | None:
    """xarray writes floating `_FillValue`s to version 3 as base64 of a little-endian double."""
    if isinstance(value, str) and dtype.kind == "f":
        try:
            data = base64.standard_b64decode(value)
            if len(data) == 8:
                return float(struct.unpack("<d", data)[0])
        except ValueError:
            pass
    return None if value is None else float(value)


def _georeferencing(
    uri: str,
    arrays: Mapping[str, Any],
    own: Mapping[str, Any],
    dims: Sequence[str | None],
    axes: tuple[int, int, int],
    shape: tuple[int, ...],
    notes: list[str],
) -> tuple[Grid | None, dict[str, Any]]:
    coords: dict[str, Any] = {}
    for name, aliases in (("lat", ("lat", "latitude")), ("lon", ("lon", "longitude"))):
        for alias in aliases:
            array = arrays.get(alias)
            if array is not None and tuple(array.shape) == tuple(shape[1:]):
                plane = _Plane(uri, alias, array)
                lazy = lazy_array(plane, (_PLANE_CHUNK, _PLANE_CHUNK))
                coords[name] = (("y", "x"), lazy, {"units": f"degrees_{'nen'[name == 'lon']}"})
    mapping = arrays.get(str(own.get("grid_mapping", "spatial_ref")).split(":")[0])
    if mapping is None:
        mapping = arrays.get("spatial_ref", arrays.get("crs"))
    facts = {} if mapping is None else dict(mapping.attrs)
    wkt = facts.get("crs_wkt") or facts.get("spatial_ref")
    transform = parse_geotransform(facts.get("GeoTransform"), notes)
    if transform is None:
        y, x = (arrays.get(str(dims[axis])) for axis in axes[1:])
        transform = find_geotransform(x, y, (shape[1], shape[2]), notes)
    grid = Grid(transform, wkt) if transform or wkt else None
    return grid, coords
