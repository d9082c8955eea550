"""EMIT L2A reflectance (netCDF4, LP DAAC's EMITL2ARFL): sensor geometry, never warped.

`reflectance (downtrack, crosstrack, bands)`, the groups `sensor_band_parameters` and `location`.
The product's map grid is a look-up table; the scene stays on the pixels the sensor measured, with
`lat` and `lon` per pixel. Where these are absent they are taken from the table: a pixel lies at the
mean of the centres of the map cells that show it, and at NaN where none does.

`EMIT_L2A_MASK_*.nc` beside the file gives the flags, chosen by the names in `mask_bands` (their
order differs between versions): "Cloud flag" and "SpecTf-Cloud Flag" are `cloud`, "Cirrus flag" and
"Water flag" are themselves, "Spacecraft Flag" is `defective` (the station is seen, not the ground).
The dilated and aggregate flags say nothing of their own and are not used.

From documents only: LP DAAC's product page and tutorials; no real netCDF file was at hand.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.errors import SceneError
from pipeline.readers.boundary import boundary, failure, is_file
from pipeline.readers.hdf import (
    Hdf5Cube,
    Hdf5Plane,
    attribute,
    check_storage,
    is_plain,
    open_hdf5,
    texts,
    vector,
)
from pipeline.readers.packing import packing
from pipeline.readers.planes import flag_variable, swath_coords
from pipeline.readers.scene import SceneParts, assemble, chunk_sizes, known_attrs
from pipeline.readers.spectral_axis import good_bands, to_nanometres
from pipeline.storage import open_filesystem, unstrip, version_of

_CUBE = "reflectance"
_BANDS = "sensor_band_parameters"
_REFLECTANCE = re.compile(r"(?i)^EMIT_L2A_RFL_(\d{3})_(.+\.nc)$")
_OTHER = re.compile(r"(?i)^EMIT_L\d\w_(?!RFL_)[A-Z0-9]+_.*\.nc$")
_VERSIONS = ("001", "002", "003")
_MOST_CELLS = 2**24  # a granule has 2e6 pixels and 5e6 map cells
_FLAGS = {
    "cloud flag": "cloud",
    "spectf-cloud flag": "cloud",
    "cirrus flag": "cirrus",
    "water flag": "water",
    "spacecraft flag": "defective",
}


def is_emit(file: Any) -> bool:
    """Whether an open HDF5 file is an EMIT reflectance, by its content."""
    return is_plain(file, _CUBE) and is_plain(file, f"{_BANDS}/wavelengths")


def is_companion(path: str) -> bool:
    """Whether a file of an EMIT granule is no scene: masks, uncertainty, geometry."""
    return _OTHER.match(posixpath.basename(path)) is not None


def mask_names(path: str) -> list[str]:
    """Where the masks of a reflectance file may be: its version first, then the others."""
    folder, name = posixpath.split(path)
    found = _REFLECTANCE.match(name)
    if found is None:
        return []
    versions = sorted(_VERSIONS, key=lambda version: version != found.group(1))
    names = [f"EMIT_L2A_MASK_{version}_{found.group(2)}" for version in versions]
    return [posixpath.join(folder, name) for name in names]


def read_emit(uri: str) -> xr.Dataset:
    """Open an EMIT L2A reflectance lazily; `reflectance`, `lat`, `lon`, `quality_flags`."""
    notes: list[str] = []
    with boundary(uri, "cannot read the EMIT file", "bad-header"), open_hdf5(uri) as file:
        cube = file[_CUBE]
        if cube.ndim != 3 or min(cube.shape) == 0:
            raise failure("bad-header", uri, "reflectance has not three axes")
        check_storage(uri, cube)
        lines, samples, bands = cube.shape
        wavelength, fwhm = to_nanometres(
            vector(file, f"{_BANDS}/wavelengths"),
            vector(file, f"{_BANDS}/fwhm"),
            attribute(file[f"{_BANDS}/wavelengths"], "units") or "nm",
            bands,
            notes,
        )
        good = good_bands(vector(file, f"{_BANDS}/good_wavelengths"), bands, notes)
        fill = attribute(cube, "_FillValue")
        attrs = known_attrs({"sensor": "EMIT"} | _times(file))
        chunks = chunk_sizes((bands, lines, samples), (cube.chunks or (1, 1))[:2])
        reader = Hdf5Cube(uri, _CUBE, cube.dtype, cube.shape, (2, 0, 1))
        coords = _location(uri, file, (lines, samples), chunks, notes)
        packed = packing([None], [None], [None if fill is None else float(fill)], cube.dtype, notes)
    parts = SceneParts(uri, "emit", reader, chunks, packed, wavelength, fwhm, good)
    parts.coords, parts.attrs, parts.notes = coords, attrs, notes
    parts.variables = _mask(uri, (lines, samples), chunks, notes)
    return assemble(parts)


def _times(file: Any) -> dict[str, str]:
    start = attribute(file, "time_coverage_start")
    return {} if start is None else {"time_coverage_start": str(start)}


def _location(
    uri: str, file: Any, shape: tuple[int, int], chunks: tuple[int, int, int], notes: list[str]
) -> dict[str, Any]:
    names = ("location/lat", "location/lon")
    if all(is_plain(file, name) and file[name].shape == shape for name in names):
        lat, lon = (Hdf5Plane(uri, name, file[name]) for name in names)
        return swath_coords(lat, lon, chunks, uri)
    tables = ("location/glt_x", "location/glt_y")
    transform = np.asarray(file.attrs.get("geotransform", ())).ravel()
    usable = all(is_plain(file, name) and file[name].ndim == 2 for name in tables)
    if not usable or file[tables[0]].shape != file[tables[1]].shape or transform.size != 6:
        notes.append("no latitude and longitude")
        return {}
    if max(file[tables[0]].size, shape[0] * shape[1]) > _MOST_CELLS:
        notes.append("the geometry look-up table is too large to be one: no latitude and longitude")
        return {}
    notes.append("lat and lon are means over the geometry look-up table")
    filesystem, path = open_filesystem(uri)
    version = version_of(filesystem.info(path))
    numbers = tuple(float(number) for number in transform)
    shown = TablePlane(uri, version, shape, numbers, 1), TablePlane(uri, version, shape, numbers, 0)
    return swath_coords(shown[0], shown[1], chunks, uri)


class TablePlane:
    """Longitude (axis 0) or latitude (axis 1) of each pixel from the geometry look-up table."""

    dtype = np.dtype(np.float64)

    def __init__(
        self,
        uri: str,
        version: str,
        shape: tuple[int, int],
        transform: tuple[float, ...],
        axis: int,
    ) -> None:
        self.uri, self.version, self.shape = uri, version, shape
        self.transform, self.axis = transform, axis

    def read(self, y: slice, x: slice) -> npt.NDArray[np.float64]:
        return _from_table(self.uri, self.version, self.shape, self.transform)[self.axis][y, x]


@lru_cache(maxsize=2)
def _from_table(
    uri: str, version: str, shape: tuple[int, int], transform: tuple[float, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(longitude, latitude) of all pixels; `version` keeps a changed file out of the cache."""
    with open_hdf5(uri) as file:
        column = np.asarray(file["location/glt_x"][:], np.int64)
        line = np.asarray(file["location/glt_y"][:], np.int64)
    x0, xx, xy, y0, yx, yy = transform
    inside = (column >= 1) & (column <= shape[1]) & (line >= 1) & (line <= shape[0])
    cells = np.argwhere(inside) + 0.5
    pixel = (line[inside] - 1) * shape[1] + column[inside] - 1
    size = shape[0] * shape[1]
    count = np.bincount(pixel, minlength=size).astype(np.float64)
    count[count == 0] = np.nan
    east = x0 + cells[:, 1] * xx + cells[:, 0] * xy
    north = y0 + cells[:, 1] * yx + cells[:, 0] * yy
    means = (np.bincount(pixel, values, minlength=size) / count for values in (east, north))
    lon, lat = (mean.reshape(shape) for mean in means)
    return lon, lat


class MaskRule:
    """The flags of the mask file: which of its bands stands for which."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
        found: dict[str, npt.NDArray[np.bool_]] = {}
        for layer, label in zip(values, self.names, strict=True):
            name = _FLAGS.get(label)
            if name is not None:
                found[name] = found.get(name, False) | np.asarray(layer > 0)
        return found


def _mask(
    uri: str, shape: tuple[int, int], chunks: tuple[int, int, int], notes: list[str]
) -> dict[str, Any]:
    filesystem, path = open_filesystem(uri)
    with boundary(uri, "cannot look beside the file"):
        name = next((name for name in mask_names(path) if is_file(filesystem, name)), None)
    if name is None:
        return {}
    address = unstrip(filesystem, name)
    try:
        with boundary(address, "cannot read the mask", "bad-header"), open_hdf5(address) as file:
            names = texts(file, f"{_BANDS}/mask_bands")
            labels = tuple(" ".join(name.split()).lower() for name in names)
            if not is_plain(file, "mask") or file["mask"].shape != (*shape, len(labels)):
                raise failure("bad-header", address, "the mask is not on the scene's pixels")
            cube = Hdf5Cube(address, "mask", file["mask"].dtype, file["mask"].shape, (2, 0, 1))
    except SceneError as error:
        notes.append(f"{posixpath.basename(name)} is not used ({error.code})")
        return {}
    return flag_variable([(cube, slice(0, len(labels)), MaskRule(labels))], chunks, uri)
