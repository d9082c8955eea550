"""What a STAC item says of a published scene, read back from the published store alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from pipeline.arrays import VARIABLE
from pipeline.errors import SceneError
from pipeline.grid import geobox_of
from pipeline.masks import QUALITY
from pipeline.readers.boundary import boundary, failure
from pipeline.spread import SPREAD
from pipeline.store import SceneStore

_FIGURES = ("rmse", "relative_rmse", "sam_degrees")

Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class PublishedScene:
    """One published scene, as far as its item needs it.

    Attributes:
        scene_id: names the store `<scene_id>.zarr` in the output.
        attributes: of the store's root; `sr_archive` as `pipeline.provenance` writes it.
        shape: bands, rows, columns of the output.
        dtype: NumPy name of the stored values.
        scale_factor, add_offset: physical = stored * scale_factor + add_offset.
        fill: stored value of nodata; None where there is none.
        units: of the physical values, as the source states them.
        wavelength, fwhm: in nm by band; None where the scene has none.
        good_band: by band; None where not known.
        crs_wkt: None without georeferencing.
        transform: pixel (column, row) to CRS coordinates, in the order a, b, c, d, e, f of
            x = a column + b row + c, y = d column + e row + f.
        geometry: GeoJSON in WGS 84, or None.
        bbox: west, south, east, north in degrees; west > east across the antimeridian.
        quality: measured figures of the scene by name.
        flags, spread: whether the store holds the arrays `quality` and `reflectance_spread`.
        quicklook: whether `stac/quicklooks/<scene_id>.png` is there.
        zarr_format: 2 or 3.
    """

    scene_id: str
    attributes: Mapping[str, Any]
    shape: tuple[int, int, int]
    dtype: str
    scale_factor: float = 1.0
    add_offset: float = 0.0
    fill: float | None = None
    units: str | None = None
    wavelength: tuple[float, ...] | None = None
    fwhm: tuple[float, ...] | None = None
    good_band: tuple[bool, ...] | None = None
    crs_wkt: str | None = None
    transform: Transform | None = None
    geometry: Mapping[str, Any] | None = None
    bbox: Sequence[float] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    flags: bool = False
    spread: bool = False
    quicklook: bool = False
    zarr_format: int = 3


def facts_of_published(
    store: SceneStore,
    *,
    geometry: Mapping[str, Any] | None = None,
    bbox: Sequence[float] | None = None,
    quality: Mapping[str, Any] | None = None,
    quicklook: bool = False,
) -> PublishedScene:
    """The facts of a published scene: its root metadata and the coordinates of its bands.

    Args:
        store: the scene.
        geometry: footprint in GeoJSON, WGS 84; None where the scene is not georeferenced.
        bbox: of the geometry; computed where None, which is wrong across the antimeridian only.
        quality: figures; default those in the root attribute `sr_archive`, entry `consistency`.
        quicklook: whether the scene's PNG lies in `stac/quicklooks`.

    Raises:
        SceneError: the scene is not published, or its metadata cannot be read.
    """
    with boundary(store.url, "cannot read the published scene", "bad-header"):
        attributes = store.published()
        if attributes is None:
            raise failure("unreadable", store.url, "not published")
        # x and y are long and add nothing to the transform.
        with xr.open_zarr(store.url, chunks=None, drop_variables=["x", "y"]) as dataset:
            if VARIABLE not in dataset or dataset[VARIABLE].ndim != 3:
                raise failure("no-cube", store.url, f"has no {VARIABLE} (band, y, x)")
            return PublishedScene(
                store.scene_id,
                attributes,
                geometry=geometry,
                bbox=bbox,
                quality=_quality(attributes) if quality is None else quality,
                quicklook=quicklook,
                zarr_format=store.zarr_format(),
                **_of_dataset(dataset),
            )


def _quality(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    made = attributes.get("sr_archive")
    measured = made.get("consistency") if isinstance(made, dict) else None
    if not isinstance(measured, dict):
        return {}
    plain = measured.get("bicubic")
    figures = {f"consistency_{name}": measured.get(name) for name in _FIGURES}
    if isinstance(plain, dict):
        figures |= {f"bicubic_consistency_{name}": plain.get(name) for name in _FIGURES}
    return {name: value for name, value in figures.items() if isinstance(value, float | int)}


def _of_dataset(dataset: xr.Dataset) -> dict[str, Any]:
    values = dataset[VARIABLE]
    encoding = values.encoding
    fill = encoding.get("_FillValue")
    box = geobox_of(dataset)
    crs = dataset["spatial_ref"].attrs.get("crs_wkt") if "spatial_ref" in dataset.coords else None
    units = values.attrs.get("units")
    return {
        "shape": tuple(int(side) for side in values.shape),
        "dtype": np.dtype(encoding.get("dtype", values.dtype)).name,
        "scale_factor": float(encoding.get("scale_factor", 1.0)),
        "add_offset": float(encoding.get("add_offset", 0.0)),
        "fill": None if fill is None else float(fill),
        "units": units if isinstance(units, str) else None,
        "wavelength": _numbers(dataset, "wavelength"),
        "fwhm": _numbers(dataset, "fwhm"),
        "good_band": _flags(dataset),
        "crs_wkt": crs if isinstance(crs, str) and crs else None,
        "transform": None if box is None else tuple(float(value) for value in box.affine[:6]),
        "flags": QUALITY in dataset,
        "spread": SPREAD in dataset,
    }


def _numbers(dataset: xr.Dataset, name: str) -> tuple[float, ...] | None:
    if name not in dataset.coords:
        return None
    return tuple(float(value) for value in _per_band(dataset, name))


def _flags(dataset: xr.Dataset) -> tuple[bool, ...] | None:
    if "good_band" not in dataset.coords:
        return None
    return tuple(bool(value) for value in _per_band(dataset, "good_band"))


def _per_band(dataset: xr.Dataset, name: str) -> Any:
    values = dataset[name].values
    if values.shape != (dataset.sizes["band"],):
        raise SceneError("bad-header", f"{name} does not have one value per band")
    return values
