"""MATLAB files: v5 to v7 through scipy, v7.3 (HDF5) through h5py.

v5 members are compressed whole, so the first window loads the array (`cache`); v7.3 is read
lazily. The cube is `reflectance` or `cube`, the only three-dimensional numeric variable, or the
one with clearly the most bands. Its bands are, in this order: the axis asked for; the axis as long
as a variable with wavelengths; the last axis in MATLAB's order. A matrix (bands, pixels) with
`lines`/`cols` (or `nRow`/`nCol`) beside it has pixels in column-major order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.io
import xarray as xr

from pipeline.errors import SceneError
from pipeline.readers.blocks import open_blocks
from pipeline.readers.boundary import boundary
from pipeline.readers.cache import MemberCube
from pipeline.readers.candidates import choose_cube, is_cube
from pipeline.readers.hdf import Hdf5Cube, is_plain, open_hdf5
from pipeline.readers.scene import SceneParts, assemble, check_block, chunk_sizes
from pipeline.readers.spectral_axis import choose_band_axis, companion, to_nanometres, units_of
from pipeline.storage import open_filesystem, redact, version_of

_CLASSES = {
    "double": "f8",
    "single": "f4",
    **{
        f"{sign}int{bits}": f"{sign[:1] or 'i'}{bits // 8}"
        for sign in ("u", "")
        for bits in (8, 16, 32, 64)
    },
}
_SIZES = (("nRow", "nCol"), ("lines", "cols"), ("rows", "cols"), ("lines", "samples"))
_MOST_PIXELS_IN_LIST = 100_000

Arrays = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


def read_matlab5(uri: str, band_axis: int | None = None) -> xr.Dataset:
    """Open a MATLAB v5 scene: reads the variables' headers."""
    filesystem, path = open_filesystem(uri)
    with boundary(uri, "cannot read the MATLAB file", "bad-header"):
        version = version_of(filesystem.info(path))
        with open_blocks(filesystem, path) as file:
            listed = scipy.io.whosmat(file)
    arrays = {
        name: (tuple(map(int, shape)), np.dtype(_CLASSES[kind]))
        for name, shape, kind in listed
        if kind in _CLASSES
    }
    notes: list[str] = []
    if not any(is_cube(*array) for array in arrays.values()):
        matrix = _matrix(uri, version, arrays, notes)
        if matrix is not None:
            return _assemble(uri, matrix, None, notes)
    name = choose_cube(uri, arrays, notes, by_bands=True)
    shape, dtype = arrays[name]
    waves = _wavelengths(uri, arrays)
    axis = choose_band_axis(shape, waves and len(waves[0]), band_axis, notes)
    axes = (axis, *(other for other in range(3) if other != axis))
    reader = MemberCube(uri, version, name, load, dtype, shape, axes)  # type: ignore[arg-type]
    return _assemble(uri, reader, waves, notes)


def _assemble(
    uri: str, reader: Any, waves: tuple[npt.NDArray[Any], str | None] | None, notes: list[str]
) -> xr.Dataset:
    values, units = waves or (None, None)
    wavelength, _ = to_nanometres(values, None, units, reader.shape[0], notes)
    chunks = chunk_sizes(reader.shape, side=256)
    return assemble(SceneParts(uri, "matlab", reader, chunks, wavelength=wavelength, notes=notes))


def _matrix(uri: str, version: str, arrays: Arrays, notes: list[str]) -> MemberCube | None:
    """A (bands, pixels) matrix whose rows and columns stand beside it, or None."""
    for row_name, col_name in _SIZES:
        if not all(
            math.prod(arrays[n][0]) == 1 if n in arrays else 0 for n in (row_name, col_name)
        ):
            continue
        rows, cols = (int(load(uri, name).item()) for name in (row_name, col_name))
        fitting = [
            name
            for name, (shape, _) in arrays.items()
            if len(shape) == 2 and rows > 0 and shape[0] > 1 and shape[1] == rows * cols > 1
        ]
        if len(fitting) > 1:
            raise SceneError("ambiguous", f"{redact(uri)}: several matrices of pixels: keep one")
        if fitting:
            shape, dtype = arrays[fitting[0]]
            notes.append(
                f"{fitting[0]!r} is (bands, pixels): unfolded to {rows}x{cols}, by columns"
            )
            cube = (shape[0], cols, rows)
            return MemberCube(uri, version, fitting[0], load, dtype, cube, (0, 2, 1))
    return None


def _wavelengths(uri: str, arrays: Arrays) -> tuple[npt.NDArray[Any], str | None] | None:
    name = companion({key: shape for key, (shape, _) in arrays.items()})
    if name is None or math.prod(arrays[name][0]) > _MOST_PIXELS_IN_LIST:
        return None
    return load(uri, name).ravel(), units_of(name)


def load(uri: str, member: str) -> npt.NDArray[Any]:
    """One variable of a v5 file as a C-ordered array."""
    filesystem, path = open_filesystem(uri)
    with boundary(uri, f"cannot load {member!r}"), filesystem.open(path, "rb") as file:
        return np.ascontiguousarray(scipy.io.loadmat(file, variable_names=[member])[member])


def read_matlab73(uri: str, band_axis: int | None = None) -> xr.Dataset:
    """Open a MATLAB v7.3 scene: reads HDF5 metadata only. `band_axis` counts MATLAB's axes."""
    notes: list[str] = []
    with boundary(uri, "cannot read the MATLAB v7.3 file", "bad-header"), open_hdf5(uri) as file:
        found = {name: file[name] for name in file if _numeric(file, name)}
        arrays = {name: (item.shape[::-1], item.dtype) for name, item in found.items()}
        name = choose_cube(uri, arrays, notes, by_bands=True)
        listed = companion({key: shape for key, (shape, _) in arrays.items()})
        waves = None
        if listed is not None and found[listed].size <= _MOST_PIXELS_IN_LIST:
            waves = np.asarray(found[listed]).ravel(), units_of(listed)
        check_block(uri, found[name].chunks or (), found[name].dtype)
    shape, dtype = arrays[name]
    axis = choose_band_axis(shape, waves and len(waves[0]), band_axis, notes)
    y, x = (other for other in range(3) if other != axis)
    reader = Hdf5Cube(uri, name, dtype, shape[::-1], (2 - axis, 2 - y, 2 - x))
    return _assemble(uri, reader, waves, notes)


def _numeric(file: Any, name: str) -> bool:
    return is_plain(file, name) and "MATLAB_empty" not in file[name].attrs
