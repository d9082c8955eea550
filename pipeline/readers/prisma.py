"""PRISMA L2D (HDF-EOS5, ASI's PRISMA Products Specification, issue 2.3): UTM surface reflectance.

`VNIR_Cube` and `SWIR_Cube (rows, bands, cols)`, uint16: `value = min + count / 65535 * (max - min)`
with `L2ScaleVnirMin` and so on. Decisions of this reader:

- Bands are put in ascending order of wavelength; those never acquired (flag or centre 0) are left
  out. Where the spectrometers overlap, VNIR is kept: SWIR bands centred at or below the last VNIR
  centre are left out.
- A pixel whose VNIR counts are all 0 is padding outside the swath and becomes fill. A 0 elsewhere
  is a negative reflectance cut off; it is read as a count of 1, so that 0 can be the fill.
- `*_PIXEL_L2_ERR_MATRIX`: 1 (invalid in L1) in any kept band is `defective`, 3 (saturated after
  atmospheric correction) is `saturated`, 2 (negative) is no flag.
- The corners of the product are centres of pixels or outer corners: the size of the pixels (30 m)
  decides. Public readers of real files take them for centres.

From documents only: no real file was at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyproj
import xarray as xr

from pipeline.readers.boundary import boundary, failure
from pipeline.readers.georeference import Grid
from pipeline.readers.hdf import Hdf5Cube, attribute, check_storage, inside, is_plain, open_hdf5
from pipeline.readers.masked import MaskedCube
from pipeline.readers.packing import packing
from pipeline.readers.planes import flag_variable
from pipeline.readers.scene import SceneParts, assemble, chunk_sizes, known_attrs

_SWATH = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"
_TOP = 65535
_STEP = 30.0
_INVALID, _SATURATED = 1, 3


def is_prisma(file: Any) -> bool:
    """Whether an open HDF5 file is a PRISMA L2D product, by its content."""
    return is_plain(file, f"{_SWATH}/VNIR_Cube") and is_plain(file, f"{_SWATH}/SWIR_Cube")


def is_other_level(file: Any) -> bool:
    """Whether it is a PRISMA product of a level that is not read."""
    swaths = inside(file, "HDFEOS/SWATHS")
    return isinstance(swaths, h5py.Group) and any(str(name).startswith("PRS_") for name in swaths)


@dataclass(frozen=True)
class Arm:
    """One spectrometer: its kept bands as places in its cube, with centre, width and scale."""

    name: str
    picks: npt.NDArray[np.int64]
    wavelength: npt.NDArray[np.float64]
    fwhm: npt.NDArray[np.float64]
    low: float
    high: float


def read_prisma(uri: str) -> xr.Dataset:
    """Open a PRISMA L2D product lazily: reads attributes and the datasets' headers.

    Raises:
        SceneError: `bad-header` where an attribute is missing or the cubes contradict each other.
    """
    notes: list[str] = []
    with boundary(uri, "cannot read the PRISMA file", "bad-header"), open_hdf5(uri) as file:
        vnir, swir = (_arm(uri, file, name) for name in ("Vnir", "Swir"))
        swir = _after(swir, float(vnir.wavelength.max(initial=0)))
        arms = [arm for arm in (vnir, swir) if arm.picks.size]
        shapes = {name: file[f"{_SWATH}/{name}_Cube"].shape for name in ("VNIR", "SWIR")}
        rows, _, cols = shapes["VNIR"]
        if shapes["SWIR"][::2] != (rows, cols):
            raise failure("bad-header", uri, "VNIR and SWIR differ in size")
        block = (file[f"{_SWATH}/VNIR_Cube"].chunks or (1, 1, 1))[::2]
        reader = _cube(uri, file, arms, "Cube", PrismaCube)
        errors = _cube(uri, file, arms, "PIXEL_L2_ERR_MATRIX", ArmsCube)
        grid = _grid(uri, file, rows, cols, notes)
        start = attribute(file, "Product_StartTime")
    bands = reader.shape[0]
    chunks = chunk_sizes((bands, rows, cols), (int(block[0]), int(block[1])))
    scales = [(arm.high - arm.low) / _TOP for arm in arms for _ in arm.picks]
    offsets = [arm.low for arm in arms for _ in arm.picks]
    packed = packing(scales, offsets, [0.0], np.dtype(np.uint16), notes)
    if errors is not None:
        reader = MaskedCube(reader, errors, invalid, 0)
    parts = SceneParts(uri, "prisma", reader, chunks, packed)
    parts.wavelength = np.concatenate([arm.wavelength for arm in arms])
    parts.fwhm = np.concatenate([arm.fwhm for arm in arms])
    parts.grid, parts.notes = grid, notes
    parts.attrs = known_attrs({"sensor": "PRISMA", "start_time": start or ""})
    layers = [] if errors is None else [(errors, slice(0, bands), error_flags)]
    parts.variables = flag_variable(layers, chunks, uri)
    return assemble(parts)


def _arm(uri: str, file: Any, name: str) -> Arm:
    """The acquired bands of one spectrometer in ascending order."""
    lists = [f"List_Cw_{name}", f"List_Fwhm_{name}", f"List_Cw_{name}_Flags"]
    for key in (*lists, f"L2Scale{name}Min", f"L2Scale{name}Max"):
        if key not in file.attrs:
            raise failure("bad-header", uri, f"PRISMA without the attribute {key}")
    centres, widths, flags = (np.asarray(file.attrs[key], np.float64).ravel() for key in lists)
    dataset = file[f"{_SWATH}/{name.upper()}_Cube"]
    sizes = {centres.size, widths.size, flags.size}
    if dataset.ndim != 3 or dataset.dtype != np.uint16 or sizes != {dataset.shape[1]}:
        raise failure("bad-header", uri, f"{name.upper()}_Cube does not fit its list of bands")
    check_storage(uri, dataset)
    kept = np.flatnonzero((flags != 0) & np.isfinite(centres) & (centres > 0))
    kept = kept[np.argsort(centres[kept], kind="stable")]
    low, high = (float(file.attrs[f"L2Scale{name}{end}"]) for end in ("Min", "Max"))
    if not low < high:
        raise failure("bad-header", uri, f"L2Scale{name} runs from {low:g} to {high:g}")
    return Arm(name.upper(), kept, centres[kept], widths[kept], low, high)


def _after(arm: Arm, last: float) -> Arm:
    keep = arm.wavelength > last
    return Arm(arm.name, arm.picks[keep], arm.wavelength[keep], arm.fwhm[keep], arm.low, arm.high)


class ArmsCube:
    """The kept bands of both spectrometers as one cube (band, y, x) of one kind of dataset."""

    def __init__(self, cubes: Sequence[Hdf5Cube], picks: Sequence[npt.NDArray[np.int64]]) -> None:
        self.cubes, self.picks = tuple(cubes), tuple(picks)
        self.dtype = self.cubes[0].dtype
        self.shape = (sum(map(len, picks)), *self.cubes[0].shape[1:])

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        pieces, first = [], 0
        for cube, picks in zip(self.cubes, self.picks, strict=True):
            wanted = picks[max(0, band.start - first) : max(0, band.stop - first)]
            first += len(picks)
            if wanted.size:
                low, high = int(wanted.min()), int(wanted.max()) + 1
                pieces.append(cube.read(slice(low, high), y, x)[wanted - low])
        empty = np.empty((0, y.stop - y.start, x.stop - x.start), self.dtype)
        return np.concatenate(pieces) if pieces else empty


class PrismaCube(ArmsCube):
    """Counts with 0 for padding only."""

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        values = super().read(band, y, x)
        first = self.cubes[0].read(slice(0, self.cubes[0].shape[0]), y, x)
        padding = (first == 0).all(axis=0)
        return np.where(padding, 0, np.maximum(values, 1)).astype(self.dtype)


def _cube(uri: str, file: Any, arms: list[Arm], kind: str, make: type[ArmsCube]) -> Any:
    """The datasets `VNIR_<kind>` and `SWIR_<kind>` as one cube, None where they do not fit."""
    cubes = []
    for arm in arms:
        name, shape = f"{_SWATH}/{arm.name}_{kind}", file[f"{_SWATH}/{arm.name}_Cube"].shape
        if not is_plain(file, name) or file[name].shape != shape:
            return None
        cubes.append(Hdf5Cube(uri, name, file[name].dtype, shape, (1, 0, 2)))
    if not cubes:
        raise failure("no-cube", uri, "no band was acquired")
    return make(cubes, [arm.picks for arm in arms])


def invalid(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values of the image the processor could not make."""
    return np.asarray(values == _INVALID)


def error_flags(values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """The flags of the error matrices, over all kept bands."""
    return {
        "defective_band": invalid(values).any(axis=0),
        "saturated": (values == _SATURATED).any(axis=0),
    }


def _grid(uri: str, file: Any, rows: int, cols: int, notes: list[str]) -> Grid | None:
    names = [
        "Product_ULcorner_easting",
        "Product_ULcorner_northing",
        "Product_LRcorner_easting",
        "Product_LRcorner_northing",
        "Epsg_Code",
    ]
    values = [attribute(file, name) for name in names]
    if any(value is None for value in values):
        notes.append("no corner coordinates: not georeferenced")
        return None
    west, north, east, south, code = (float(value) for value in values)
    x, dx = _axis(west, east, cols)
    y, dy = _axis(-north, -south, rows)
    if not (dx > 0 and dy > 0 and np.isfinite([x, y, dx, dy]).all()):
        raise failure("bad-header", uri, "the corners of the product enclose no area")
    if max(abs(dx - _STEP), abs(dy - _STEP)) > 1e-3:
        notes.append(f"corners give pixels of {dx:g} x {dy:g} m, not 30 m: taken as centres")
    try:
        wkt = str(pyproj.CRS.from_epsg(int(code)).to_wkt())
    except pyproj.exceptions.CRSError:
        notes.append(f"EPSG code {code:g} is unknown and ignored")
        return Grid((x, dx, 0.0, -y, 0.0, -dy), None)
    return Grid((x, dx, 0.0, -y, 0.0, -dy), wkt)


def _axis(first: float, last: float, count: int) -> tuple[float, float]:
    """(outer edge, step) of `count` pixels between two corners, centres unless 30 m says else."""
    outer = (last - first) / count
    if abs(outer - _STEP) <= 1e-3:
        return first, outer
    step = (last - first) / max(1, count - 1)
    return first - step / 2, step
