"""Offline validation of STAC documents.

The core schemas of STAC 1.1.0 come with pystac. The extensions' schemas come with no package, so
what their documents demand is stated here anew: types and ranges of the fields, no unknown field
under the prefix, and at least one field where the extension is declared.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import referencing
from pystac.validation.local_validator import get_local_schema_cache

Json = dict[str, Any]

_NUMBER: Json = {"type": "number"}
_POSITIVE: Json = {"type": "number", "exclusiveMinimum": 0}
_TEXT: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}


def _numbers(*sizes: int) -> Json:
    options = [{"minItems": size, "maxItems": size} for size in sizes]
    return {"type": "array", "items": _NUMBER, "oneOf": options}


FIELDS: dict[str, tuple[str, Json]] = {
    "projection/v2.0.0": (
        "proj:",
        {
            "proj:code": {"type": ["string", "null"], "pattern": "^[^:]+:.+$"},
            "proj:wkt2": {"type": ["string", "null"]},
            "proj:projjson": {"type": ["object", "null"]},
            "proj:geometry": {"type": "object"},
            "proj:bbox": _numbers(4, 6),
            "proj:centroid": {"type": "object", "required": ["lat", "lon"]},
            "proj:shape": {"type": "array", "items": _INTEGER, "minItems": 2, "maxItems": 2},
            "proj:transform": _numbers(6, 9),
        },
    ),
    "eo/v2.0.0": (
        "eo:",
        {
            "eo:cloud_cover": {"type": "number", "minimum": 0, "maximum": 100},
            "eo:snow_cover": {"type": "number", "minimum": 0, "maximum": 100},
            "eo:common_name": _TEXT,
            "eo:center_wavelength": _POSITIVE,
            "eo:full_width_half_max": _POSITIVE,
            "eo:solar_illumination": {"type": "number", "minimum": 0},
        },
    ),
    "raster/v2.0.0": (
        "raster:",
        {
            "raster:bits_per_sample": _INTEGER,
            "raster:sampling": {"enum": ["area", "point"]},
            "raster:scale": _NUMBER,
            "raster:offset": _NUMBER,
            "raster:spatial_resolution": _NUMBER,
            "raster:histogram": {"type": "object"},
        },
    ),
    "processing/v1.2.0": (
        "processing:",
        {
            "processing:expression": {"type": "object", "required": ["format", "expression"]},
            "processing:lineage": _TEXT,
            "processing:level": {"type": "string", "pattern": "^(RAW|L[0-4][A-C]?)$"},
            "processing:facility": _TEXT,
            "processing:version": _TEXT,
            "processing:datetime": {"type": "string", "pattern": "(\\+00:00|Z)$"},
            "processing:software": {"type": "object", "additionalProperties": _TEXT},
        },
    ),
    "zarr/v1.1.0": (
        "zarr:",
        {
            "zarr:consolidated": {"type": "boolean"},
            "zarr:node_type": {"enum": ["array", "group"]},
            "zarr:zarr_format": {"enum": [2, 3]},
        },
    ),
}


def _url(name: str) -> str:
    return f"https://stac-extensions.github.io/{name}/schema.json"


def _extension(prefix: str, fields: Json) -> Json:
    """The fields are allowed in properties, assets and bands."""
    known: Json = {
        "properties": fields,
        "patternProperties": {f"^(?!{prefix})": {}},
        "additionalProperties": False,
    }
    with_bands = {"allOf": [known, {"properties": {"bands": {"items": known}}}]}
    return {
        "type": "object",
        "properties": {
            "properties": with_bands,
            "assets": {"additionalProperties": with_bands},
        },
    }


def _uses(document: Json, prefix: str) -> bool:
    places = [document.get("properties", {}), *document.get("assets", {}).values()]
    places += [band for asset in document.get("assets", {}).values() for band in asset_bands(asset)]
    return any(name.startswith(prefix) for place in places for name in place)


def asset_bands(asset: Json) -> list[Json]:
    return list(asset.get("bands", []))


def validate(document: Json) -> None:
    """Raise ValidationError unless the document is valid STAC 1.1 with what it declares."""
    cache = get_local_schema_cache()
    resources = [
        (url, referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT7))
        for url, schema in cache.items()
    ]
    registry: Any = referencing.Registry().with_resources(resources)
    kind = {"Feature": "item", "Collection": "collection"}[document["type"]]
    core = cache[f"https://schemas.stacspec.org/v1.1.0/{kind}-spec/json-schema/{kind}.json"]
    jsonschema.Draft7Validator(core, registry=registry).validate(document)
    declared = document.get("stac_extensions", [])
    for name, (prefix, fields) in FIELDS.items():
        if _uses(document, prefix) != (_url(name) in declared):
            raise jsonschema.ValidationError(f"{name} is used and not declared, or the reverse")
        jsonschema.Draft7Validator(_extension(prefix, fields)).validate(document)
    unknown = set(declared) - {_url(name) for name in FIELDS}
    if unknown:
        raise jsonschema.ValidationError(f"no schema for {unknown}")
