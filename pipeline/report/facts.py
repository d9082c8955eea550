"""What a page says of a scene beside its pixels; untrusted all of it, and so plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
import shapely.geometry
import xarray as xr
from shapely.geometry.polygon import orient

from pipeline.accessor import good_bands
from pipeline.arrays import VARIABLE
from pipeline.outline import footprint
from pipeline.storage import without_secrets

_LONGEST_TEXT = 2000
_MOST_ENTRIES = 400
_DEEPEST = 8
_DEGREES = 5  # decimals: a metre
_SIMPLER = 0.002  # of an outline's width that its drawing may be off


def plain(value: Any, depth: int = 0) -> Any:
    """Untrusted JSON as JSON that a page can show: bounded, finite, without credentials."""
    if isinstance(value, str):
        return without_secrets(value)[:_LONGEST_TEXT]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        entries = list(value.items())[:_MOST_ENTRIES]
        return {plain(str(key)): plain(each, depth + 1) for key, each in entries}
    if isinstance(value, Sequence | np.ndarray):
        return [plain(each, depth + 1) for each in list(value)[:_MOST_ENTRIES]]
    return plain(value.item()) if isinstance(value, np.generic) else plain(str(value))


def number(value: Any) -> float | None:
    """A finite number, or None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and math.isfinite(value) else None


def scene_row(result: xr.Dataset, made: Mapping[str, Any], scene_id: str) -> dict[str, Any]:
    """What the overview says of a published scene."""
    consistency = _consistency(made)
    bands, rows, columns = (result.sizes[name] for name in ("band", "y", "x"))
    return {
        "id": scene_id,
        "sensor": plain(_text(result.attrs.get("sensor"))),
        "datetime": plain(_text(result.attrs.get("datetime"))),
        "published": plain(_text(made.get("published"))),
        "model": plain(_text(made.get("model"))),
        "note": plain(_text(made.get("bands_note"))),
        "bands": bands,
        "rows": rows,
        "columns": columns,
        "scale": made.get("scale"),
        "inconsistency": number(consistency.get("relative_rmse")),
        "of_bicubic": number(_mapping(consistency.get("bicubic")).get("relative_rmse")),
        "outline": _outline(result),
    }


def scene_facts(result: xr.Dataset, made: Mapping[str, Any], address: str) -> dict[str, Any]:
    """What a scene's page says; `address` opens the scene."""
    consistency = _consistency(made)
    aside = ("card", "consistency", "seams")
    record = {key: value for key, value in made.items() if key not in aside}
    units = result[VARIABLE].attrs.get("units")
    return {
        "address": plain(address),
        "units": plain(_text(units)),
        "wavelength": _per_band(result, "wavelength"),
        "good": [bool(each) for each in good_bands(result)],
        "consistency": {
            "degradation": plain(_text(consistency.get("degradation"))),
            "high": _figures(consistency),
            "bicubic": _figures(_mapping(consistency.get("bicubic"))),
        },
        "seams": plain(_mapping(made.get("seams"))),
        "reader_notes": plain(_text(result.attrs.get("reader_notes"))),
        "provenance": plain(record),
        "card": plain(_mapping(made.get("card"))),
    }


def _figures(sums: Mapping[str, Any]) -> dict[str, Any]:
    per_band = sums.get("rmse_per_band")
    return {
        **{name: number(sums.get(name)) for name in ("rmse", "relative_rmse", "sam_degrees")},
        "rmse_per_band": [number(each) for each in per_band] if isinstance(per_band, list) else [],
    }


def _per_band(result: xr.Dataset, name: str) -> list[float | None] | None:
    return [number(float(each)) for each in result[name].values] if name in result.coords else None


def _consistency(made: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(made.get("consistency"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _outline(result: xr.Dataset) -> Any:
    """The footprint as GeoJSON with the fewest corners that draw it; None without a place."""
    geometry = footprint(result)
    if geometry is None:
        return None
    shape = shapely.geometry.shape(geometry)
    west, south, east, north = shape.bounds
    simpler = shape.simplify(_SIMPLER * max(east - west, north - south))
    rounded = shapely.transform(simpler, lambda degrees: np.round(degrees, _DEGREES))
    # The library of the map takes a ring for what lies to its right, unlike RFC 7946.
    turned = [orient(part, -1.0) for part in getattr(rounded, "geoms", [rounded])]
    return shapely.geometry.mapping(shapely.MultiPolygon(turned))
