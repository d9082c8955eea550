"""What every reader shares: from windows of raw values to the Dataset of the scene contract."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.readers.boundary import boundary, failure
from pipeline.readers.georeference import Grid, grid_coords
from pipeline.readers.lazy import lazy_array, picked
from pipeline.readers.packing import FloatArray, Packing
from pipeline.storage import redact

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


class LazyCube:
    """The decoded float32 cube (band, y, x) as dask wants it: a shape, a type, and windows."""

    def __init__(self, reader: WindowReader, packing: Packing, uri: str) -> None:
        self.reader, self.packing, self.uri = reader, packing, uri
        self.shape, self.dtype, self.ndim = reader.shape, np.dtype(np.float32), 3

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[np.float32]:
        return picked(key, self.shape, self._window)

    def _window(self, band: slice, y: slice, x: slice) -> npt.NDArray[np.float32]:
        with boundary(self.uri, "cannot read a window of the scene"):
            raw = self.reader.read(band, y, x)
        return self.packing.decode(raw, band)


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
    reflectance = xr.Variable(
        ("band", "y", "x"),
        lazy_array(cube, parts.chunks),
        encoding=parts.packing.encoding(reader.dtype),
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
