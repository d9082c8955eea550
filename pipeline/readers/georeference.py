"""Where pixels lie: coordinates and grid mapping of a scene.

After the CF conventions 1.11 (grid mappings) and GDAL's six-number geotransform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj

GeoTransform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: GDAL's geotransform and the CRS as WKT; either may be unknown."""

    transform: GeoTransform | None
    crs_wkt: str | None = None

    @property
    def axis_aligned(self) -> bool:
        return self.transform is not None and self.transform[2] == 0 == self.transform[4]


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
