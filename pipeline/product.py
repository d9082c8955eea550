"""The output scene as Datasets, one per level, before it has any content."""

from __future__ import annotations

from typing import Any, get_args

import dask.array as da
import numpy as np
import xarray as xr

from pipeline.arrays import VARIABLE, Level
from pipeline.calibration import Calibration
from pipeline.encoding import ValueEncoding
from pipeline.geozarr import multiscales_attributes, spatial_attributes
from pipeline.grid import TileGrid, geobox_of, scaled_coordinates
from pipeline.masks import QUALITY, quality_attributes
from pipeline.overviews import overview_factors, overview_name
from pipeline.refinement import Refinement
from pipeline.spectral import BandPlan, Role
from pipeline.spread import SPREAD, spread_attributes
from pipeline.swath import POSITIONS, is_swath

_CARRIED = ("sensor", "datetime", "reader_notes")


def output_levels(
    scene: xr.Dataset,
    grid: TileGrid,
    calibration: Calibration,
    encoding: ValueEncoding,
    refinement: Refinement,
) -> dict[str, Level]:
    """The output's groups by path, with lazy variables of no content yet.

    `good_band` is False where the source says so and where the output holds no value. Where some
    bands are not the network's work, `band_role` tells which.
    """
    root = _root(scene, grid, calibration, encoding, refinement)
    levels = {"": Level(_finished(root), grid.shard)}
    for factor in overview_factors(grid):
        coordinates = scaled_coordinates(scene, grid.scale, factor)
        dataset = _overview(root, factor, coordinates)
        levels[overview_name(factor)] = Level(dataset, grid.shard // factor)
    return levels


def _root(
    scene: xr.Dataset,
    grid: TileGrid,
    calibration: Calibration,
    encoding: ValueEncoding,
    refinement: Refinement,
) -> xr.Dataset:
    good = np.zeros(scene.sizes["band"], dtype=bool)
    good[list(calibration.bands.valued)] = True
    coordinates: dict[str, Any] = {
        name: scene[name].variable for name in ("wavelength", "fwhm") if name in scene.coords
    }
    coordinates |= {"good_band": ("band", good), **scaled_coordinates(scene, grid.scale)}
    if is_swath(scene):
        coordinates |= {
            name: (("y", "x"), _empty(grid.output_size, "float64"), attributes)
            for name, attributes in POSITIONS.items()
        }
    if calibration.bands.upsampled:
        coordinates["band_role"] = _band_roles(calibration.bands, len(good))
    attributes = {"Conventions": "CF-1.11", "title": "super-resolved hyperspectral scene"}
    attributes |= {name: scene.attrs[name] for name in _CARRIED if name in scene.attrs}
    box = geobox_of(scene)
    fine = None if box is None else box.zoom_out(1 / grid.scale)
    factors, crs = overview_factors(grid), _crs_of(scene)
    attributes |= multiscales_attributes(factors, grid.output_size, fine, crs)
    # GDAL's Zarr driver looks for _CRS, not at the grid mapping.
    placed = ({} if crs is None else {"_CRS": {"wkt": crs}}) | spatial_attributes(fine, crs)
    # xarray encodes on writing; the values here are never computed.
    decoded = encoding.dtype == "float32" or encoding.fill is not None
    arrays: dict[str, tuple[str, dict[str, Any]]] = {
        VARIABLE: ("float32" if decoded else encoding.dtype, _variable_attributes(scene))
    }
    if refinement.uncertainty:
        arrays[SPREAD] = "float32", spread_attributes(scene[VARIABLE].attrs.get("units"))
    shape = (scene.sizes["band"], *grid.output_size)
    variables = {
        name: xr.Variable(("band", "y", "x"), _empty(shape, dtype), own | placed)
        for name, (dtype, own) in arrays.items()
    }
    quality = _empty(grid.output_size, "uint16")
    variables[QUALITY] = xr.Variable(("y", "x"), quality, quality_attributes())
    return xr.Dataset(variables, coordinates, attributes)


def _overview(root: xr.Dataset, factor: int, coordinates: dict[str, xr.Variable]) -> xr.Dataset:
    values = root[VARIABLE]
    count, rows, columns = values.shape
    coarse = _empty((count, -(-rows // factor), -(-columns // factor)), values.dtype)
    variable = xr.Variable(values.dims, coarse, values.attrs)
    bands = {name: root[name].variable for name in root.coords if root[name].dims == ("band",)}
    level = xr.Dataset({VARIABLE: variable}, {**bands, **coordinates})
    placed = spatial_attributes(geobox_of(level), _crs_of(level))
    level[VARIABLE].attrs |= placed
    return _finished(level.assign_attrs(placed))


def _crs_of(scene: xr.Dataset) -> str | None:
    reference = scene.coords.get("spatial_ref")
    return None if reference is None else reference.attrs.get("crs_wkt")


def _empty(shape: tuple[int, ...], dtype: Any) -> Any:
    return da.zeros(shape, dtype=dtype, chunks=shape)  # type: ignore[no-untyped-call]


def _finished(dataset: xr.Dataset) -> xr.Dataset:
    """With what xarray needs to be told for reading it back as it is here."""
    if "spatial_ref" in dataset.coords:
        for variable in dataset.data_vars.values():
            # As an attribute: from the encoding, xarray would not reopen spatial_ref as one.
            variable.attrs["grid_mapping"] = "spatial_ref"
    for coordinate in dataset.coords.values():
        if coordinate.chunks is None:
            coordinate.encoding = {"_FillValue": None} if coordinate.dtype.kind == "f" else {}
    return dataset


def _band_roles(plan: BandPlan, bands: int) -> xr.Variable:
    """Where each band's values come from, as CF flags (CF conventions, section 3.5)."""
    names = list(get_args(Role))
    flags = np.array([names.index(role) for role in plan.roles(bands)], np.int8)
    attributes = {
        "long_name": "origin of the values",
        "flag_values": list(range(len(names))),
        "flag_meanings": " ".join(names),
    }
    return xr.Variable(("band",), flags, attributes)


def _variable_attributes(scene: xr.Dataset) -> dict[str, Any]:
    source = scene[VARIABLE].attrs
    return {
        name: source[name] for name in ("long_name", "units", "standard_name") if name in source
    }
