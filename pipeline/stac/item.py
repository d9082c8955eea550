"""The STAC item of a published scene: a pure function of its facts.

STAC 1.1.0 (item-spec.md, commons/common-metadata.md) with the extensions Projection 2.0, EO 2.0,
Raster 2.0, Processing 1.2 and Zarr 1.1, each named only where its fields are used. Fields of this
product have the prefix `sr:`; docs/stac.md lists them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import shapely.geometry

from pipeline.errors import SceneError
from pipeline.readers.boundary import boundary
from pipeline.stac.facts import PublishedScene
from pipeline.stac.scene_assets import assets_of, pixel_size
from pipeline.storage import redact

COLLECTION = "super-resolved-scenes"
STAC_VERSION = "1.1.0"
_EXTENSION = "https://stac-extensions.github.io/{}/v{}/schema.json"
EXTENSIONS = {
    name: _EXTENSION.format(folder, version)
    for name, folder, version in (
        ("proj", "projection", "2.0.0"),
        ("eo", "eo", "2.0.0"),
        ("raster", "raster", "2.0.0"),
        ("processing", "processing", "1.2.0"),
        ("zarr", "zarr", "1.1.0"),
    )
}
# The acquisition of a scene without a time lies between these and its publication.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_FIGURE = re.compile(r"[^a-z0-9_]+")
_CARRIED = (
    "fingerprint",
    "run_id",
    "source_version",
    "bands_kind",
    "normalisation",
    "precision",
    "attention_statistics_sha256",
)

Item = dict[str, Any]


def scene_item(scene: PublishedScene, collection: str = COLLECTION) -> Item:
    """The item of a scene, for `OUTPUT/stac/items/SCENE.json`; its hrefs are relative to there.

    There is no `self` link: it would have to be absolute (item-spec.md, "Relation types"), and the
    archive could not be moved.

    Raises:
        SceneError: the facts contradict each other.
    """
    with boundary(scene.scene_id, "cannot describe the scene", "bad-header"):
        item = {
            "type": "Feature",
            "stac_version": STAC_VERSION,
            "stac_extensions": [],
            "id": scene.scene_id,
            **_where(scene),
            "properties": _properties(scene),
            "links": _links(scene),
            "assets": assets_of(scene),
            "collection": collection,
        }
        item["stac_extensions"] = _extensions(item)
        return item


def utc(text: object) -> tuple[datetime, bool] | None:
    """A stated time as UTC, and whether the zone was stated; None if it is no time."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC), False
    return moment.astimezone(UTC), True


def rfc3339(moment: datetime) -> str:
    """In UTC, as STAC wants it; with a fraction only where there is one."""
    moment = moment.astimezone(UTC)
    return moment.replace(tzinfo=None).isoformat() + "Z"


def _made(scene: PublishedScene) -> Mapping[str, Any]:
    made = scene.attributes.get("sr_archive")
    if not isinstance(made, dict):
        raise SceneError("bad-header", f"{scene.scene_id}: no record of how it was made")
    return made


def _where(scene: PublishedScene) -> dict[str, Any]:
    if scene.geometry is None:
        return {"geometry": None}
    bbox = scene.bbox or shapely.geometry.shape(scene.geometry).bounds
    return {"geometry": dict(scene.geometry), "bbox": [float(value) for value in bbox]}


def _properties(scene: PublishedScene) -> dict[str, Any]:
    made = _made(scene)
    packages = made.get("packages")
    properties = _times(scene, made)
    sensor, platform = scene.attributes.get("sensor"), scene.attributes.get("platform")
    if isinstance(sensor, str) and sensor:
        properties["instruments"] = [sensor]
    if isinstance(platform, str) and platform:
        properties["platform"] = platform
    pixel = pixel_size(scene)
    if pixel is not None and isinstance(made.get("scale"), int):
        properties["gsd"] = pixel * made["scale"]
    properties |= {
        "processing:level": "L4",
        "processing:lineage": _lineage(made),
    }
    if isinstance(packages, dict) and packages:
        properties["processing:software"] = {str(key): str(packages[key]) for key in packages}
    if made.get("code_version"):
        properties["processing:version"] = str(made["code_version"])
    return properties | _own(scene, made)


def _times(scene: PublishedScene, made: Mapping[str, Any]) -> dict[str, Any]:
    """`datetime` where the scene states one, else the interval in which it must lie.

    The specification allows no item without a time: `datetime` may be null only beside a start and
    an end.
    """
    published = utc(made.get("published"))
    if published is None:
        raise SceneError("bad-header", f"{scene.scene_id}: its record has no time of publication")
    taken = utc(scene.attributes.get("datetime"))
    at = rfc3339(published[0])
    times: dict[str, Any] = {"datetime": None if taken is None else rfc3339(taken[0])}
    if taken is None:
        times |= {"start_datetime": rfc3339(EARLIEST), "end_datetime": at}
        times["sr:datetime_unknown"] = True
    elif not taken[1]:
        times["sr:datetime_zone_unknown"] = True
    return times | {"created": at, "processing:datetime": at}


def _lineage(made: Mapping[str, Any]) -> str:
    parts = [f"Super-resolved {made.get('scale')} times"]
    for word, name in (("by", "model"), ("with weights of SHA-256", "weights_sha256")):
        parts += [f"{word} {made[name]}"] if made.get(name) else []
    if made.get("source"):
        version = f", version {made['source_version']}" if made.get("source_version") else ""
        parts.append(f"from {redact(str(made['source']))}{version}")
    return f"{' '.join(parts)}. An estimate by a network, not a measurement at this resolution."


def _own(scene: PublishedScene, made: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of this product, as far as they are known."""
    own: dict[str, Any] = {"sr:scale": made.get("scale"), "sr:model": made.get("model")}
    own["sr:weights_sha256"] = made.get("weights_sha256")
    own |= {f"sr:{name}": made.get(name) for name in _CARRIED}
    for name, value in scene.quality.items():
        key = f"sr:{_FIGURE.sub('_', str(name).lower()).strip('_')}"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and key not in own:
            own[key] = float(value)
    return {name: value for name, value in own.items() if value is not None}


def _links(scene: PublishedScene) -> list[dict[str, str]]:
    kinds = ("root", "parent", "collection")
    links = [
        {"rel": rel, "href": "../collection.json", "type": "application/json"} for rel in kinds
    ]
    source = _made(scene).get("source")
    if isinstance(source, str) and source:
        href = redact(source).replace(" ", "%20")
        links.append({"rel": "derived_from", "href": href, "title": "the scene as it was read"})
    return links


def _extensions(item: Item) -> list[str]:
    """The extensions whose prefix occurs in the properties, the assets or their bands."""
    names = set(item["properties"])
    for asset in item["assets"].values():
        names |= set(asset)
        for band in asset.get("bands", ()):
            names |= set(band)
    used = {name.partition(":")[0] for name in names}
    return [url for prefix, url in EXTENSIONS.items() if prefix in used]
