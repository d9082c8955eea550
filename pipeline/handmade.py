"""A Dataset from a user's hands, made to keep the Scene contract as a reader would.

What `open_scene` returns passes unchanged. Parts of it that a user has cut out, and Datasets of
other origin, get what the job relies on: nanometres, booleans, a transform that is that of their
own `x` and `y`, values without packing, arrays that are read window by window.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from pyproj.exceptions import CRSError

from pipeline.arrays import VARIABLE
from pipeline.errors import UsageError
from pipeline.readers.flags import VARIABLE as SOURCE_FLAGS
from pipeline.readers.georeference import GeoTransform, Grid, grid_coords
from pipeline.readers.packing import Packing, packing
from pipeline.readers.regular_grid import (
    counts_pixels,
    find_geotransform,
    first_and_step,
    parse_geotransform,
)
from pipeline.readers.spectral_axis import good_bands, to_nanometres
from pipeline.swath import POSITIONS

DIMS = ("band", "y", "x")
_ON_BAND = ("wavelength", "fwhm", "good_band")
_PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value")
_SAME = 0.01  # LR pixels by which coordinates may miss the transform, rounded as they may be
_NOTES = "reader_notes"


def check_cube(dataset: xr.Dataset) -> None:
    """Refuse what holds no cube; looks at names, sizes and types alone.

    Raises:
        UsageError: one line that says what is missing.
    """
    if not isinstance(dataset, xr.Dataset):
        kind = type(dataset).__name__
        raise UsageError(f"a scene is a Dataset, not {kind}: .to_dataset(name={VARIABLE!r})")
    if VARIABLE not in dataset or set(dataset[VARIABLE].dims) != set(DIMS):
        found = ", ".join(f"{name} {value.dims}" for name, value in dataset.data_vars.items())
        raise UsageError(
            f"a scene has a variable {VARIABLE} with the dimensions band, y, x; here is "
            f"{found or 'none'}"
        )
    if min(dataset.sizes[name] for name in DIMS) == 0:
        raise UsageError("the scene is empty")
    if (kind := dataset[VARIABLE].dtype).kind not in "fiu":
        raise UsageError(f"{VARIABLE} is {kind}, not numbers")


def as_scene(dataset: xr.Dataset, chunk: int) -> xr.Dataset:
    """The Dataset with all that the job relies on; what had to be guessed is in `reader_notes`.

    Args:
        dataset: that `check_cube` passes.
        chunk: pixels along a side of what is read at once, where it lies in memory.

    Raises:
        UsageError: what it states cannot be used; the line says what to change.
    """
    notes: list[str] = []
    scene = dataset.transpose(*DIMS, ...)
    scene = scene.set_coords([name for name in (*_ON_BAND, *POSITIONS) if name in scene])
    scene = _placed(_on_bands(scene, notes), notes)
    scene = _unpacked(_in_windows(scene, chunk), notes)
    known = str(scene.attrs.get(_NOTES, ""))
    told = [known] * bool(known) + [note for note in notes if note not in known]
    return scene.assign_attrs({_NOTES: "; ".join(told)}) if told else scene


def _on_bands(scene: xr.Dataset, notes: list[str]) -> xr.Dataset:
    bands = scene.sizes["band"]
    given = {name: scene[name] for name in _ON_BAND if name in scene.coords}
    for name, each in given.items():
        if each.dims != ("band",):
            raise UsageError(f"{name} lies on ({', '.join(map(str, each.dims))}), not on band")
    stated: list[Any] = [given[name].values if name in given else None for name in _ON_BAND]
    units = given["wavelength"].attrs.get("units") if "wavelength" in given else None
    centres, widths = to_nanometres(stated[0], stated[1], units, bands, notes)
    if centres is None and "wavelength" in given:
        raise UsageError(f"wavelength: {notes[-1] if notes else 'no numbers'}; nm are needed")
    flags = None if stated[2] is None else good_bands(stated[2].astype(float), bands, notes)
    if widths is None:
        scene = scene.drop_vars("fwhm", errors="ignore")
    found: dict[str, Any] = {
        name: ("band", values, {**given[name].attrs, "units": "nm"})
        for name, values in (("wavelength", centres), ("fwhm", widths))
        if values is not None
    }
    found["good_band"] = ("band", np.ones(bands, bool) if flags is None else flags)
    return scene.assign_coords(found)


def _placed(scene: xr.Dataset, notes: list[str]) -> xr.Dataset:
    """With `spatial_ref`, `x` and `y` that agree; `x` and `y` decide, as a cut changes them."""
    values = scene[VARIABLE]
    named = (values.encoding.get("grid_mapping"), values.attrs.get("grid_mapping"))
    names = (*(str(name).split(":")[0] for name in named if name), "spatial_ref", "crs")
    mapping = next((name for name in names if name in scene.variables), None)
    facts = {} if mapping is None else scene[mapping].attrs
    stated = parse_geotransform(facts.get("GeoTransform"), notes)
    size = (scene.sizes["y"], scene.sizes["x"])
    if stated is None:
        transform = find_geotransform(scene.coords.get("x"), scene.coords.get("y"), size, notes)
    else:
        transform = _of_part(stated, scene, notes)
    wkt = facts.get("crs_wkt") or facts.get("spatial_ref")
    try:
        fresh = grid_coords(Grid(transform, wkt), size)
    except CRSError:
        raise UsageError(f"{mapping}: the CRS cannot be understood: correct its WKT") from None
    if transform == stated and (mapping is None or "spatial_ref" in scene.coords):
        return scene
    return scene.drop_vars([mapping] if mapping else []).assign_coords(fresh)


def _of_part(transform: GeoTransform, scene: xr.Dataset, notes: list[str]) -> GeoTransform | None:
    """The transform of the pixels that are left of a grid; None where they are no grid."""
    x0, dx, shear_x, y0, shear_y, dy = transform
    if not all(map(math.isfinite, transform)) or dx * dy == shear_x * shear_y:
        return transform  # the job says what is wrong
    sheared = bool(shear_x or shear_y)
    columns = _pixel_line(scene, "x", None if sheared else (x0, dx))
    rows = _pixel_line(scene, "y", None if sheared else (y0, dy))
    if columns is None or rows is None:
        notes.append("x or y is not evenly spaced: the scene has no grid")
        return None
    (right, across), (down, along) = columns, rows
    if (right, across, down, along) == (0, 1, 0, 1):
        return transform
    return (
        x0 + right * dx + down * shear_x,
        dx * across,
        shear_x * along,
        y0 + right * shear_y + down * dy,
        shear_y * across,
        dy * along,
    )


def _pixel_line(
    scene: xr.Dataset, name: str, axis: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Where an axis begins and how long its pixels are, in pixels of the grid as stated.

    Args:
        scene: with the axis `name`.
        name: x or y.
        axis: origin and step of the grid along it; None where it is sheared.

    Returns:
        (0, 1) also where the coordinate tells nothing; None where it is uneven.
    """
    if name not in scene.coords or scene[name].dtype.kind not in "iuf":
        return 0, 1
    centres = np.asarray(scene[name].values, np.float64)
    if scene[name].attrs.get("units") != "1":
        line = first_and_step(centres) if len(centres) > 1 else None
        if axis is None or (line is not None and counts_pixels(*line)):
            return 0, 1
        centres = (centres - axis[0]) / axis[1]
    line = (float(centres[0]), 1.0) if len(centres) == 1 else first_and_step(centres)
    if line is None:
        return None
    begin, step = line[0] - line[1] / 2, line[1]
    near = abs(begin) <= _SAME and abs(step - 1) * len(centres) <= _SAME
    return (0, 1) if near else (begin, step)


def _in_windows(scene: xr.Dataset, chunk: int) -> xr.Dataset:
    """With dask arrays, which the job reads a window of at a time."""
    for name in (VARIABLE, SOURCE_FLAGS):
        if name in scene and scene[name].chunks is None:
            old = scene[name].variable
            sizes = {"y": chunk, "x": chunk}
            lazy: Any = da.from_array(  # type: ignore[no-untyped-call]
                old.values, chunks=tuple(sizes.get(str(dim), -1) for dim in old.dims)
            )
            scene = scene.assign({name: (old.dims, lazy, old.attrs, old.encoding)})
    return scene


def _unpacked(scene: xr.Dataset, notes: list[str]) -> xr.Dataset:
    """With physical values, where the attributes still say how they are packed."""
    old = scene[VARIABLE].variable
    scale, offset, fill, missing = (
        None if name not in old.attrs else float(old.attrs[name]) for name in _PACKING
    )
    how = packing([scale], [offset], [missing if fill is None else fill], old.dtype, notes)
    if how == Packing():
        return scene
    if old.dtype.kind == "f" and (how.scale, how.offset) != (None, None):
        raise UsageError(
            f"{VARIABLE} is {old.dtype} and its attributes state a scale_factor or add_offset: "
            "remove them if its values are physical, else apply them (xarray.decode_cf)"
        )
    lazy = old.data.map_blocks(how.decode, slice(None), dtype=np.float32)
    rest = {name: value for name, value in old.attrs.items() if name not in _PACKING}
    encoding = {**old.encoding, **how.encoding(old.dtype)}
    return scene.assign({VARIABLE: (old.dims, lazy, rest, encoding)})
