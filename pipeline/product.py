"""The output scene as a Dataset, before it has any content."""

from __future__ import annotations

from typing import Any, get_args

import dask.array as da
import numpy as np
import xarray as xr

from pipeline.arrays import VARIABLE
from pipeline.calibration import Calibration
from pipeline.grid import TileGrid, scaled_coordinates
from pipeline.spectral import BandPlan, Role
from pipeline.tile import ValueEncoding

_CARRIED = ("sensor", "datetime", "reader_notes")


def output_dataset(
    scene: xr.Dataset, grid: TileGrid, calibration: Calibration, encoding: ValueEncoding
) -> xr.Dataset:
    """The output with a lazy variable of no content yet.

    `good_band` is False where the source says so and where the output holds no value. Where some
    bands are not the network's work, `band_role` tells which.
    """
    bands = scene.sizes["band"]
    rows, columns = grid.output_size
    # xarray encodes on writing; the values here are never computed.
    dtype = (
        np.float32 if encoding.dtype == "float32" or encoding.fill is not None else encoding.dtype
    )
    values = da.zeros((bands, rows, columns), dtype=dtype, chunks=(bands, grid.shard, grid.shard))
    good = np.zeros(bands, dtype=bool)
    good[list(calibration.bands.valued)] = True
    coordinates: dict[str, Any] = {
        name: scene[name].variable for name in ("wavelength", "fwhm") if name in scene.coords
    }
    coordinates |= {"good_band": ("band", good), **scaled_coordinates(scene, grid.scale)}
    if calibration.bands.upsampled:
        coordinates["band_role"] = _band_roles(calibration.bands, bands)
    variable = xr.Variable(("band", "y", "x"), values, _variable_attributes(scene))
    if "spatial_ref" in coordinates:
        # As an attribute: from the encoding, xarray would not reopen spatial_ref as a coordinate.
        variable.attrs["grid_mapping"] = "spatial_ref"
    attributes = {"Conventions": "CF-1.11", "title": "super-resolved hyperspectral scene"}
    attributes |= {name: scene.attrs[name] for name in _CARRIED if name in scene.attrs}
    result = xr.Dataset({VARIABLE: variable}, coordinates, attributes)
    for coordinate in result.coords.values():
        coordinate.encoding = {"_FillValue": None} if coordinate.dtype.kind == "f" else {}
    return result


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
    attributes = {
        name: source[name] for name in ("long_name", "units", "standard_name") if name in source
    }
    reference = scene.coords.get("spatial_ref")
    if reference is not None and "crs_wkt" in reference.attrs:
        # GDAL's Zarr driver looks here, not at the grid mapping.
        attributes["_CRS"] = {"wkt": reference.attrs["crs_wkt"]}
    return attributes
