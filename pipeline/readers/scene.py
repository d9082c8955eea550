"""What every reader shares: from windows of raw values to the Dataset of the scene contract.

Georeferencing follows the CF conventions 1.11 (grid mappings) and GDAL's six-number geotransform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import dask.array as da
import numpy as np
import numpy.typing as npt
import pyproj
import xarray as xr

from pipeline.readers.boundary import boundary, failure
from pipeline.storage import redact

FloatArray = npt.NDArray[np.float64]
GeoTransform = tuple[float, float, float, float, float, float]

_MAX_CHUNK_BYTES = 96 * 2**20
_MOST_BANDS = 10_000
_MOST_SIDE = 2**22
_MOST_CHUNKS = 2**18  # dask spends a microsecond on each for every window
_LARGEST_BLOCK = 2**30  # one is decoded whole
_SENSOR_KEYS = ("sensor", "sensor type", "sensor_type", "instrument", "platform", "mission")
_TIME_KEYS = (
    "datetime",
    "acquisition time",
    "acquisition_time",
    "start_time",
    "start_datetime",
    "time_coverage_start",
    "acquisitiondatetime",
)


class WindowReader(Protocol):
    """Raw values of a file as (band, y, x); picklable, and read by several threads at once."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        """The window of three positive-step slices, in `dtype` (masked already: float NaN)."""


@dataclass(frozen=True)
class Packing:
    """How stored values become reflectance: `value = raw * scale + offset`, `fill` becomes NaN.

    Each is one number, an array with one number per band, or None where the file says nothing.
    """

    scale: float | FloatArray | None = None
    offset: float | FloatArray | None = None
    fill: float | FloatArray | None = None

    def decode(self, raw: npt.NDArray[Any], band: slice) -> npt.NDArray[np.float32]:
        small = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
        work: type = np.float32 if small else np.float64
        values: npt.NDArray[Any] = raw.astype(work)
        if self.scale is not None:
            values *= _per_band(self.scale, band).astype(work)
        if self.offset is not None:
            values += _per_band(self.offset, band).astype(work)
        if self.fill is not None:
            # A float file may hold its fill only as precisely as its own type can.
            fill = _per_band(self.fill, band)
            values[raw == (fill.astype(raw.dtype) if raw.dtype.kind == "f" else fill)] = np.nan
        return values.astype(np.float32, copy=False)

    def encoding(self, dtype: np.dtype[Any]) -> dict[str, Any]:
        """What a writer needs to store the values again; float32 if no one packing fits all."""
        parts = {"scale_factor": self.scale, "add_offset": self.offset, "_FillValue": self.fill}
        if any(isinstance(part, np.ndarray) for part in parts.values()):
            return {"dtype": "float32"}
        found: dict[str, Any] = {"dtype": str(dtype)}
        found |= {name: float(part) for name, part in parts.items() if part is not None}
        if "_FillValue" in found and dtype.kind in "iu":
            found["_FillValue"] = int(found["_FillValue"])
        return found


def _per_band(value: float | FloatArray, band: slice) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    return array[band].reshape(-1, 1, 1) if array.ndim else array


def packing(
    scales: Sequence[float | None],
    offsets: Sequence[float | None],
    fills: Sequence[float | None],
    dtype: np.dtype[Any],
    notes: list[str],
) -> Packing:
    """A `Packing` from one entry per band (or one for all); what has no effect is left out."""
    fill = _merge([usable_fill(value, dtype, notes) for value in fills], math.nan)
    scale, offset = _merge(scales, 1.0), _merge(offsets, 0.0)
    if isinstance(scale, float) and (scale == 0 or not math.isfinite(scale)):
        notes.append(f"scale factor {scale} ignored")
        scale = None
    if isinstance(offset, float) and offset == 0:
        offset = None
    if isinstance(scale, float) and scale == 1 and not offset:
        scale = offset = None
    if any(isinstance(part, np.ndarray) for part in (scale, offset, fill)):
        notes.append("scale, offset or nodata differ by band")
    return Packing(scale, offset, fill)


def _merge(values: Sequence[float | None], default: float) -> float | FloatArray | None:
    if all(value is None for value in values):
        return None
    filled = np.array([default if value is None else value for value in values], np.float64)
    same = filled == filled[0] if not math.isnan(filled[0]) else np.isnan(filled)
    return float(filled[0]) if same.all() else filled


def usable_fill(value: float | None, dtype: np.dtype[Any], notes: list[str]) -> float | None:
    """The nodata value if the data type can hold it, else None and a note."""
    if value is None or dtype.kind == "f":
        return value
    limits = np.iinfo(dtype)
    if math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max:
        return value
    note = f"nodata {value:g} cannot occur in {dtype} and is ignored"
    if note not in notes:
        notes.append(note)
    return None


class LazyCube:
    """The decoded float32 cube (band, y, x) as dask wants it: a shape, a type, and windows."""

    def __init__(self, reader: WindowReader, packing: Packing, uri: str) -> None:
        self.reader, self.packing, self.uri = reader, packing, uri
        self.shape, self.dtype, self.ndim = reader.shape, np.dtype(np.float32), 3

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[np.float32]:
        parts = [split_index(index, size) for index, size in zip(key, self.shape, strict=True)]
        (band, _), (y, _), (x, _) = parts
        with boundary(self.uri, "cannot read a window of the scene"):
            raw = self.reader.read(band, y, x)
        values = self.packing.decode(raw, band)
        for axis in (2, 1, 0):
            if parts[axis][1] is not None:
                values = np.take(values, parts[axis][1], axis=axis)
        return values


def split_index(index: Any, size: int) -> tuple[slice, Any]:
    """A plain covering slice, and what then picks `index` out of it (None: all of it)."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        if step == 1:
            return slice(start, max(start, stop)), None
        index = np.arange(start, stop, step)
    picks = np.asarray(index)
    picks = np.where(picks < 0, picks + size, picks)
    if picks.size == 0:
        return slice(0, 0), picks
    low, high = int(picks.min()), int(picks.max()) + 1
    return slice(low, high), picks - low


def chunk_sizes(
    shape: tuple[int, int, int], block: tuple[int, int] = (1, 1), side: int = 128
) -> tuple[int, int, int]:
    """Dask chunks (band, y, x): all bands of about `side` pixels, in whole blocks of the file."""
    bands = shape[0]
    sizes = [
        min(size, math.ceil(side / part) * part)
        for size, part in zip(shape[1:], block, strict=True)
    ]
    if bands * sizes[0] * sizes[1] * 4 > _MAX_CHUNK_BYTES:
        sizes = [min(size, 64) for size in shape[1:]]
    return bands, sizes[0], sizes[1]


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: GDAL's geotransform and the CRS as WKT; either may be unknown."""

    transform: GeoTransform | None
    crs_wkt: str | None = None

    @property
    def axis_aligned(self) -> bool:
        return self.transform is not None and self.transform[2] == 0 == self.transform[4]


@dataclass
class SceneParts:
    """What a reader found out; `assemble` makes the Dataset of it."""

    uri: str
    format: str
    reader: WindowReader
    chunks: tuple[int, int, int]
    packing: Packing = field(default_factory=Packing)
    wavelength: FloatArray | None = None
    fwhm: FloatArray | None = None
    good_band: npt.NDArray[np.bool_] | None = None
    grid: Grid | None = None
    coords: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def assemble(parts: SceneParts) -> xr.Dataset:
    """The lazy Dataset of the scene contract from what one reader found.

    Raises:
        SceneError: `unsupported`, the scene claims more than could ever be worked on.
    """
    reader = parts.reader
    _check_size(parts)
    cube = LazyCube(reader, parts.packing, parts.uri)
    meta = np.empty((0, 0, 0), np.float32)
    lazy = da.from_array(  # type: ignore[no-untyped-call]
        cube, chunks=parts.chunks, name=False, asarray=True, meta=meta
    )
    reflectance = xr.Variable(
        ("band", "y", "x"), lazy, encoding=parts.packing.encoding(reader.dtype)
    )
    coords = _band_coords(parts, reader.shape[0])
    coords |= grid_coords(parts.grid, reader.shape[1:]) | parts.coords
    if "spatial_ref" in coords:
        reflectance.encoding["grid_mapping"] = "spatial_ref"
    attrs = {"source": redact(parts.uri), "format": parts.format} | parts.attrs
    if parts.notes:
        attrs["reader_notes"] = "; ".join(parts.notes)
    return xr.Dataset({"reflectance": reflectance, **parts.variables}, coords, attrs)


def _check_size(parts: SceneParts) -> None:
    """A few bytes of a header, or a sparse file, may claim any size."""
    bands, rows, cols = reader_shape = parts.reader.shape
    size = "x".join(map(str, reader_shape))
    if min(reader_shape) < 1:
        raise failure("no-cube", parts.uri, f"an image of {size} holds nothing")
    if bands > _MOST_BANDS or max(rows, cols) > _MOST_SIDE:
        reason = f"{size} (bands, rows, cols): at most {_MOST_BANDS} bands of {_MOST_SIDE} pixels"
        raise failure("unsupported", parts.uri, f"{reason} along a side are read")
    chunks = math.prod(
        -(-count // chunk) for count, chunk in zip(reader_shape, parts.chunks, strict=True)
    )
    if chunks > _MOST_CHUNKS:
        reason = f"{size} are {chunks} blocks, at most {_MOST_CHUNKS} are read: cut it into parts"
        raise failure("unsupported", parts.uri, reason)


def check_block(uri: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise `SceneError` if one block of a file, which is decoded whole, is unreasonably large."""
    size = math.prod(int(side) for side in shape) * dtype.itemsize
    if size > _LARGEST_BLOCK:
        reason = f"blocks of {size >> 20} MiB, at most {_LARGEST_BLOCK >> 20} are read"
        raise failure("unsupported", uri, f"{reason}: write it in smaller blocks")


def _band_coords(parts: SceneParts, bands: int) -> dict[str, Any]:
    good = parts.good_band if parts.good_band is not None else np.ones(bands, bool)
    coords: dict[str, Any] = {"good_band": ("band", good)}
    if parts.wavelength is not None:
        coords["wavelength"] = ("band", parts.wavelength, {"units": "nm"})
    if parts.fwhm is not None:
        coords["fwhm"] = ("band", parts.fwhm, {"units": "nm"})
    return coords


def grid_coords(grid: Grid | None, size: Sequence[int]) -> dict[str, Any]:
    """`x`, `y` and `spatial_ref` for a grid of `size` (rows, cols)."""
    rows, cols = size
    coords: dict[str, Any] = {}
    if grid is not None and (grid.transform or grid.crs_wkt):
        attrs = crs_attrs(grid.crs_wkt)
        if grid.transform:
            attrs["GeoTransform"] = " ".join(repr(float(number)) for number in grid.transform)
        coords["spatial_ref"] = ((), np.int64(0), attrs)
    if grid is None or grid.transform is None or not grid.axis_aligned:
        for name, count, word in (("x", cols, "column"), ("y", rows, "row")):
            attrs = {"long_name": f"{word} centre in pixels", "units": "1"}
            coords[name] = (name, np.arange(count) + 0.5, attrs)
        return coords
    x0, dx, _, y0, _, dy = grid.transform
    x_attrs, y_attrs = _axis_attrs(grid.crs_wkt)
    coords["x"] = ("x", x0 + (np.arange(cols) + 0.5) * dx, x_attrs)
    coords["y"] = ("y", y0 + (np.arange(rows) + 0.5) * dy, y_attrs)
    return coords


def crs_attrs(wkt: str | None) -> dict[str, Any]:
    """CF grid mapping attributes; also `spatial_ref`, under which GDAL looks for the WKT."""
    if not wkt:
        return {}
    attrs = dict(pyproj.CRS.from_wkt(wkt).to_cf())
    attrs["spatial_ref"] = attrs["crs_wkt"]
    return attrs


def _axis_attrs(wkt: str | None) -> tuple[dict[str, str], dict[str, str]]:
    if not wkt:
        return {"axis": "X"}, {"axis": "Y"}
    crs = pyproj.CRS.from_wkt(wkt)
    if crs.is_geographic:
        return (
            {"axis": "X", "standard_name": "longitude", "units": "degrees_east"},
            {"axis": "Y", "standard_name": "latitude", "units": "degrees_north"},
        )
    unit = crs.axis_info[0].unit_name if crs.axis_info else "metre"
    name, units = "projection_{}_coordinate", "m" if unit in ("metre", "meter") else unit
    return (
        {"axis": "X", "standard_name": name.format("x"), "units": units},
        {"axis": "Y", "standard_name": name.format("y"), "units": units},
    )


def known_attrs(metadata: Mapping[str, Any]) -> dict[str, str]:
    """`sensor` and `datetime` (ISO 8601) where free-form metadata states them."""
    lower = {str(key).lower(): value for key, value in metadata.items()}
    found: dict[str, str] = {}
    for key in _SENSOR_KEYS:
        text = " ".join(str(lower.get(key, "")).split())
        if text and text.lower() != "unknown":
            found["sensor"] = text
            break
    for key in _TIME_KEYS:
        moment = iso_time(lower.get(key))
        if moment:
            found["datetime"] = moment
            break
    return found


def iso_time(value: Any) -> str | None:
    """The time in ISO 8601 as stated, without adding a time zone; None if it is no time."""
    try:
        return datetime.fromisoformat(str(value).strip()).isoformat()
    except ValueError:
        return None
