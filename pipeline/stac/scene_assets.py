"""The assets of a scene's STAC item: the store, arrays in it, the quicklook; where pixels lie."""

from __future__ import annotations

import math
from typing import Any

import pyproj

from pipeline.masks import QUALITY
from pipeline.spread import SPREAD
from pipeline.stac.facts import PublishedScene

ZARR_TYPE = "application/vnd.zarr"
_UP = "../.."  # from stac/items to the output's root


def assets_of(scene: PublishedScene) -> dict[str, dict[str, Any]]:
    """By key; hrefs are relative to `OUTPUT/stac/items`."""
    assets = {"data": _data_asset(scene)}
    if scene.flags:
        assets["quality"] = _flags_asset(scene)
    if scene.spread:
        assets["spread"] = _spread_asset(scene)
    if scene.quicklook:
        assets["thumbnail"] = {
            "href": f"../quicklooks/{scene.scene_id}.png",
            "type": "image/png",
            "title": "Quicklook",
            "roles": ["thumbnail"],
        }
    return assets


def _data_asset(scene: PublishedScene) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": f"{_UP}/{scene.scene_id}.zarr",
        "type": ZARR_TYPE,
        "title": "Super-resolved scene",
        "roles": ["data"],
        "zarr:zarr_format": scene.zarr_format,
        "zarr:node_type": "group",
        "zarr:consolidated": True,
        "data_type": scene.dtype,
    }
    if scene.fill is not None:
        asset["nodata"] = _nodata(scene)
    if scene.units:
        asset["unit"] = scene.units
    if (scene.scale_factor, scene.add_offset) != (1.0, 0.0):
        asset |= {"raster:scale": scene.scale_factor, "raster:offset": scene.add_offset}
    pixel = pixel_size(scene)
    if pixel is not None:
        asset["raster:spatial_resolution"] = pixel
    return asset | _projection(scene) | {"bands": _bands(scene)}


def _nodata(scene: PublishedScene) -> float | int | str:
    assert scene.fill is not None
    if math.isnan(scene.fill):
        return "nan"
    return int(scene.fill) if scene.fill.is_integer() else scene.fill


def _flags_asset(scene: PublishedScene) -> dict[str, Any]:
    return {
        **_array_asset(scene, QUALITY),
        "title": "What each pixel rests on",
        "roles": ["metadata", "data-mask"],
        "data_type": "uint16",
    }


def _spread_asset(scene: PublishedScene) -> dict[str, Any]:
    unit = {"unit": scene.units} if scene.units else {}
    return {
        **_array_asset(scene, SPREAD),
        "title": "How far the results for all flips and turns of the scene spread",
        "roles": ["metadata", "uncertainty"],
        "data_type": "float32",
        "nodata": "nan",
        **unit,
    }


def _array_asset(scene: PublishedScene, name: str) -> dict[str, Any]:
    return {
        "href": f"{_UP}/{scene.scene_id}.zarr/{name}",
        "type": ZARR_TYPE,
        "zarr:zarr_format": scene.zarr_format,
        "zarr:node_type": "array",
    }


def _bands(scene: PublishedScene) -> list[dict[str, Any]]:
    """One entry per band; centre and width in micrometres, as the EO extension has them."""
    bands: list[dict[str, Any]] = []
    for index in range(scene.shape[0]):
        band: dict[str, Any] = {"name": f"band_{index + 1}"}
        for field, values in (
            ("eo:center_wavelength", scene.wavelength),
            ("eo:full_width_half_max", scene.fwhm),
        ):
            if values is not None and math.isfinite(values[index]) and values[index] > 0:
                band[field] = round(values[index] / 1000, 9)
        if scene.good_band is not None:
            band["sr:good"] = scene.good_band[index]
        bands.append(band)
    return bands


def _projection(scene: PublishedScene) -> dict[str, Any]:
    """On the asset, as the extension advises: the quicklook has no such grid."""
    _, rows, columns = scene.shape
    found: dict[str, Any] = {"proj:shape": [rows, columns]}
    if scene.crs_wkt:
        crs = pyproj.CRS.from_wkt(scene.crs_wkt)
        authority = crs.to_authority()
        if authority is not None:
            found["proj:code"] = ":".join(authority)
        found["proj:wkt2"] = crs.to_wkt("WKT2_2019")
    if scene.transform is not None:
        a, b, c, d, e, f = scene.transform
        corners = [(0, 0), (columns, 0), (0, rows), (columns, rows)]
        xs = [a * column + b * row + c for column, row in corners]
        ys = [d * column + e * row + f for column, row in corners]
        found["proj:transform"] = [a, b, c, d, e, f]
        found["proj:bbox"] = [min(xs), min(ys), max(xs), max(ys)]
    return found


def pixel_size(scene: PublishedScene) -> float | None:
    """The side of a pixel, where the grid is in metres."""
    if scene.crs_wkt is None or scene.transform is None:
        return None
    crs = pyproj.CRS.from_wkt(scene.crs_wkt)
    if not crs.is_projected or any(axis.unit_conversion_factor != 1 for axis in crs.axis_info[:2]):
        return None
    a, b, _, d, e, _ = scene.transform
    return round(math.sqrt(abs(a * e - b * d)), 6)
