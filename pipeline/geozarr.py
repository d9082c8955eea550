"""Group and array attributes by which GeoZarr readers place an output and find its overviews.

After the Zarr conventions `proj`, `spatial` and `multiscales`, each in its release v0.1, of which
GeoZarr is composed. They stand beside CF's `spatial_ref`, which this module does not touch. A
transform maps (column, row), counted from the outer corner of the first pixel, to (x, y), so
rotated and sheared grids are stated in full.

The main branch of `spatial` has moved on since v0.1: where a group has a `multiscales` layout, the
group itself may have neither transform nor shape, each level states its own. That is followed
here, and v0.1 allows it. Swaths have no transform, so the convention has no words for them; their
`lat` and `lon` are CF's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyproj
from odc.geo.geobox import GeoBox

from pipeline.overviews import overview_name

Attributes = dict[str, Any]

DIMENSIONS = ("y", "x")


def _convention(name: str, uuid: str, description: str) -> dict[str, str]:
    site = "https://{}/zarr-conventions/" + name
    return {
        "schema_url": site.format("raw.githubusercontent.com") + "/refs/tags/v0.1/schema.json",
        "spec_url": site.format("github.com") + "/blob/v0.1/README.md",
        "uuid": uuid,
        "name": name,
        "description": description,
    }


MULTISCALES = _convention(
    "multiscales", "d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"
)
PROJ = _convention(
    "proj",
    "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "Coordinate reference system information for geospatial data",
)
SPATIAL = _convention(
    "spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"
)


def spatial_attributes(box: GeoBox | None, crs: str | None = None) -> Attributes:
    """Where the pixels of an array, or of the arrays of a group without overviews, lie.

    Args:
        box: the grid; None where there is no transform.
        crs: WKT of a CRS that is known without a transform; not used where there is a grid.

    Returns:
        `zarr_conventions` with `proj:*` where a CRS is known, and `spatial:*` where there is a
        grid; nothing where neither is known.
    """
    proj = _proj(box, crs)
    if box is None:
        return _registered((PROJ, proj))
    return _registered((PROJ, proj), (SPATIAL, _extent(box) | _placed(box)))


def multiscales_attributes(
    levels: Sequence[int],
    shape: tuple[int, int],
    box: GeoBox | None = None,
    crs: str | None = None,
    *,
    variable: str = "reflectance",
    axes: int = 3,
) -> Attributes:
    """The root group's attributes when `variable` has overviews in `overviews/2` and so on.

    A level is the mean of the pixels of the one before. Levels name arrays, not groups: the full
    resolution is in the root itself, for which the convention has no path. A level's `scale` has
    one entry per axis of the array, which GDAL 3.13 asks for; it is the ratio of the pixels' sizes
    and so, where a size is odd, not quite that of the arrays'.

    Args:
        levels: factors to the full resolution, each a multiple of the one before: 2, 4, 8.
        shape: (rows, cols) at full resolution.
        box: the grid at full resolution; None where there is no transform.
        crs: see `spatial_attributes`.
        variable: the array's name, the same in every level.
        axes: of the array; the last two are y and x.

    Returns:
        `zarr_conventions`, `multiscales`, and what is known of `proj:*` and `spatial:*`.

    Raises:
        ValueError: a level is not a multiple of the one before.
    """
    if not levels:
        return spatial_attributes(box, crs)
    parts = [(MULTISCALES, {"multiscales": _layout(levels, shape, box, variable, axes)})]
    parts.append((PROJ, _proj(box, crs)))
    if box is not None:
        parts.append((SPATIAL, _extent(box)))
    return _registered(*parts)


def overview_box(box: GeoBox, factor: int) -> GeoBox:
    """The grid of a level: the same corner and larger pixels.

    Sizes are divided and rounded up, so that the last pixel may reach beyond the scene.
    """
    return box.zoom_out(factor)


def _registered(*parts: tuple[dict[str, str], Attributes]) -> Attributes:
    """The attributes of the conventions that have any, and the list that declares those."""
    used = [part for part in parts if part[1]]
    if not used:
        return {}
    merged: Attributes = {"zarr_conventions": [dict(convention) for convention, _ in used]}
    for _, attributes in used:
        merged |= attributes
    return merged


def _proj(box: GeoBox | None, crs: str | None) -> Attributes:
    """WKT always, as the convention recommends, and a code only if it means exactly the same."""
    if box is not None:
        known = box.crs.proj if box.crs is not None else None
    else:
        known = pyproj.CRS.from_user_input(crs) if crs else None
    if known is None:
        return {}
    attributes: Attributes = {"proj:wkt2": known.to_wkt("WKT2_2019")}
    authority = known.to_authority(min_confidence=100)
    if authority is not None:
        attributes["proj:code"] = ":".join(authority)
    return attributes


def _extent(box: GeoBox) -> Attributes:
    """What holds for a grid at every level: names, registration and bounds in the grid's CRS."""
    rows, columns = box.shape
    corners = [box.affine @ corner for corner in ((0, 0), (columns, 0), (0, rows), (columns, rows))]
    x, y = zip(*corners, strict=True)
    return {
        "spatial:dimensions": list(DIMENSIONS),
        "spatial:registration": "pixel",
        "spatial:bbox": [float(bound) for bound in (min(x), min(y), max(x), max(y))],
    }


def _placed(box: GeoBox) -> Attributes:
    """Transform [a, b, c, d, e, f] and shape [rows, cols] of one level."""
    return {
        "spatial:transform": [float(value) for value in tuple(box.affine)[:6]],
        "spatial:shape": [int(size) for size in box.shape],
    }


def _layout(
    levels: Sequence[int], shape: tuple[int, int], box: GeoBox | None, variable: str, axes: int
) -> Attributes:
    still = [1.0] * (axes - len(DIMENSIONS))
    entries: list[Attributes] = [{"asset": variable, **_level(1, shape, box)}]
    for before, factor in pairwise((1, *levels)):
        if factor % before or factor <= before:
            raise ValueError(f"level {factor} is not a multiple of {before}")
        entry = {
            "asset": f"{overview_name(factor)}/{variable}",
            "derived_from": entries[-1]["asset"],
            "transform": {
                "scale": [*still, *[float(factor // before)] * len(DIMENSIONS)],
                "translation": [0.0] * axes,
            },
        }
        entries.append(entry | _level(factor, shape, box))
    return {"layout": entries, "resampling_method": "average"}


def _level(factor: int, shape: tuple[int, int], box: GeoBox | None) -> Attributes:
    """Shape and transform of a level; nothing without a grid, when `spatial` is not declared."""
    if box is None:
        return {}
    if (box.shape.y, box.shape.x) != shape:
        raise ValueError(f"a grid of {box.shape} for an array of {shape}")
    return _placed(overview_box(box, factor))
