"""`scene.sr`: what one does with a scene, as methods of its Dataset."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.arrays import VARIABLE
from pipeline.errors import UsageError

RED, NIR = (620.0, 690.0), (780.0, 900.0)  # nm; Landsat TM's bands 3 and 4 lie about there


@xr.register_dataset_accessor("sr")  # type: ignore[no-untyped-call]
class SceneAccessor:
    """Methods of scenes, before and after super-resolution; registered by `import pipeline`."""

    def __init__(self, scene: xr.Dataset) -> None:
        self._scene = scene

    def super_resolve(self, **options: Any) -> xr.Dataset:
        """`pipeline.super_resolve` of this scene; the same options, result and errors."""
        from pipeline.in_memory import super_resolve  # it loads torch

        return super_resolve(self._scene, **options)

    def nearest_band(self, wavelength: float) -> int:
        """Place on `band` of the good band whose centre is nearest.

        Args:
            wavelength: nm.

        Raises:
            UsageError: the scene states no wavelengths, or has no good band with one.
        """
        distance = np.abs(self._wavelengths() - wavelength)
        distance[~self._good() | np.isnan(distance)] = np.inf
        if not np.isfinite(distance).any():
            raise UsageError("the scene has no good band with a wavelength")
        return int(distance.argmin())

    def mean_between(self, first: float, last: float) -> xr.DataArray:
        """Mean `(y, x)` of the good bands whose centres lie between two wavelengths, lazy if the
        scene is.

        Args:
            first, last: nm, both inclusive.

        Raises:
            UsageError: the scene states no wavelengths, or no good band lies there.
        """
        centres = self._wavelengths()
        bands = np.flatnonzero((centres >= first) & (centres <= last) & self._good())
        if not len(bands):
            raise UsageError(f"no good band between {first:g} and {last:g} nm")
        mean: xr.DataArray = self._scene[VARIABLE].isel(band=bands).mean("band", skipna=False)
        return mean

    def ndvi(self, red: tuple[float, float] = RED, nir: tuple[float, float] = NIR) -> xr.DataArray:
        """Normalised difference vegetation index `(y, x)`, NaN in gaps (Rouse et al. 1974).

        Of super-resolved scenes it is an estimate, as their values are.

        Args:
            red, nir: nm; all good bands between are averaged.

        Raises:
            UsageError: the scene states no wavelengths, or no good band lies there.
        """
        low, high = self.mean_between(*red), self.mean_between(*nir)
        index: xr.DataArray = (high - low) / (high + low)
        facts = {"long_name": "NDVI", "units": "1"}
        return index.where(np.isfinite(index)).rename("ndvi").assign_attrs(facts)

    def rgb(self) -> NDArray[np.uint8]:
        """Picture `(y, x, 3)`, as quicklooks are drawn; black where one of its bands has a gap.

        Natural colours from the good bands nearest to 650, 550 and 460 nm; where one of them is
        too far off, or wavelengths are absent, three bands spread over the good ones. Each is
        stretched by itself, between its 2nd and 98th percentile: to look at, not to compare.

        Raises:
            UsageError: the scene has no good band.
        """
        from pipeline.quicklook import composite_bands, stretch  # it loads Pillow

        centres = self._wavelengths() if "wavelength" in self._scene.coords else None
        try:
            bands = composite_bands(centres, self._good())
        except ValueError as error:
            raise UsageError(str(error)) from None
        planes = self._scene[VARIABLE].isel(band=list(bands)).transpose("band", "y", "x").values
        picture = stretch(planes)
        picture[~np.isfinite(planes).all(axis=0)] = 0
        return picture

    def for_netcdf(self) -> xr.Dataset:
        """The scene with attributes that netCDF can hold: those that are nested, as JSON.

        `scene.sr.for_netcdf().to_netcdf(path)`, with netCDF4 or h5netcdf installed.
        """
        scene = self._scene.copy()
        parts: list[Any] = [scene, *scene.variables.values()]
        for part in parts:
            part.attrs = {name: _flat(value) for name, value in part.attrs.items()}
        return scene

    def _wavelengths(self) -> NDArray[np.float64]:
        if "wavelength" not in self._scene.coords:
            raise UsageError("the scene states no wavelengths (coordinate `wavelength`, nm)")
        return np.asarray(self._scene["wavelength"].values, dtype=np.float64)

    def _good(self) -> NDArray[np.bool_]:
        return good_bands(self._scene)


def _flat(value: Any) -> Any:
    parts = value if isinstance(value, list | tuple) else (value,)
    plain = all(isinstance(part, str | int | float | np.generic | np.ndarray) for part in parts)
    return value if plain and not isinstance(value, bool) else json.dumps(value)


def good_bands(scene: xr.Dataset) -> NDArray[np.bool_]:
    """Which bands have values, by band; all where the scene does not say."""
    if "good_band" not in scene.coords:
        return np.ones(scene.sizes["band"], dtype=bool)
    return np.asarray(scene["good_band"].values, dtype=bool)
