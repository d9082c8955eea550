"""A STAC catalogue as the list of scenes, and its comparison with what the bucket holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pipeline.catalog import Catalogue, Reconciliation, SceneRef, scene_id
from pipeline.errors import SceneError, UsageError
from pipeline.readers import scene_stem
from pipeline.readers.delivery import is_image, metadata_names
from pipeline.readers.envi import data_candidates
from pipeline.stac.assets import choose_asset
from pipeline.stac.documents import FoundItem, Items, read_items
from pipeline.stac.links import Root, canonical, printable
from pipeline.storage import describe, join, redact, version_of
from pipeline.storage_batch import infos

_MARKERS = {3: ("zarr.json",), 2: (".zgroup", ".zarray")}


@dataclass(frozen=True)
class _Scene:
    """An item's scene before its version is known."""

    scene_id: str
    uri: str
    format: str
    key: str
    version: str | None
    bytes: int
    zarr_format: object = None


def list_stac(
    source: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    asset: str | None = None,
    present: Catalogue | None = None,
) -> Catalogue:
    """The scenes of a STAC source, sorted by id; their bytes are not looked at.

    A version is taken from `file:checksum`, else from `updated` (of the asset or the item, with
    `file:size`), else from `present` or the store, in one batch of requests. So a scene whose
    item states its version is not looked for before it is opened.

    Args:
        source: address of an Item, ItemCollection, Catalog, Collection or stac-geoparquet file.
        include: globs of scene ids to keep; empty keeps all.
        exclude: globs of scene ids to leave out.
        asset: key of the asset to take from every item.
        present: what a bucket was found to hold; the result then has a `reconciliation`.

    Raises:
        UsageError: the source cannot be read or leads to no item.
    """
    items = read_items(source)
    if not items.found and not items.faults:
        raise UsageError(f"{redact(source)} leads to no STAC item")
    catalogue = Catalogue()
    scenes = _scenes(items, asset, catalogue)
    catalogue.rejected += [(scene_id(name), url, error) for name, url, error in items.faults]
    _add_versions(scenes, catalogue, present)
    _filter(catalogue, include, exclude)
    if present is not None:
        catalogue.reconciliation = reconcile(catalogue, present)
    return catalogue


def reconcile(stac: Catalogue, bucket: Catalogue) -> Reconciliation:
    """Compare by address what a STAC catalogue says with what a bucket holds."""
    listed = {_place(scene.uri, scene.format) for scene in stac.scenes}
    rejected = [(name, uri) for name, uri, error in stac.rejected if error.code != "duplicate-id"]
    claimed = listed | {_place(uri, "") for _, uri in rejected}
    held = {_place(scene.uri, scene.format) for scene in bucket.scenes}
    held |= {_place(uri, "") for _, uri, _ in bucket.rejected}
    absent = [
        (scene.scene_id, scene.uri)
        for scene in stac.scenes
        if _place(scene.uri, scene.format) not in held
    ]
    absent += [entry for entry in rejected if _place(entry[1], "") not in held]
    unlisted = [
        (scene.scene_id, scene.uri)
        for scene in bucket.scenes
        if not {_place(scene.uri, scene.format), _place(scene.uri, "")} & claimed
    ]
    return Reconciliation(unlisted, sorted(absent))


def _place(uri: str, kind: str) -> str:
    """What two catalogues have in common for one scene: for ENVI, data and header are one."""
    try:
        address = canonical(uri)
    except SceneError:
        return uri
    if kind == "envi":
        return address[: len(address) - len(address.rpartition("/")[2])] + scene_stem(address)
    return address.rstrip("/")


def _scenes(items: Items, asset: str | None, catalogue: Catalogue) -> list[_Scene]:
    """The items' scenes; faulty ones and second ones of an id go to `catalogue.rejected`."""
    taken: dict[str, str] = {}
    scenes = []
    for found in sorted(items.found, key=lambda entry: str(entry.item.get("id"))):
        name = found.item.get("id")
        address = f"{found.base}#{printable(name)}"
        try:
            if not isinstance(name, str) or not name.strip():
                raise SceneError("bad-header", f"{redact(found.base)}: an item without an id")
            scene = _scene(found, items.root, asset)
            if scene.scene_id in taken:
                message = (
                    f"item {printable(name)!r} has the id of {taken[scene.scene_id]}: exclude one"
                )
                address = scene.uri
                raise SceneError("duplicate-id", f"{redact(scene.uri)}: {message}")
        except SceneError as error:
            catalogue.rejected.append((scene_id(str(name or "item")), address, error))
            continue
        taken[scene.scene_id] = redact(scene.uri)
        scenes.append(scene)
    return scenes


def _scene(found: FoundItem, root: Root, asset: str | None) -> _Scene:
    item = found.item
    key, kind, entry = choose_asset(item, found.base, asset)
    properties = item.get("properties")
    updated = entry.get("updated") or (
        properties.get("updated") if isinstance(properties, dict) else None
    )
    size = entry.get("file:size")
    size = size if isinstance(size, int) and size >= 0 else None
    return _Scene(
        scene_id(item["id"]),
        canonical(root.resolve(entry.get("href"), found.base)).rstrip("/"),
        kind,
        key,
        _stated_version(entry.get("file:checksum"), updated, size),
        size or 0,
        entry.get("zarr:zarr_format"),
    )


def _stated_version(checksum: object, updated: object, size: int | None) -> str | None:
    """`file:checksum` is a multihash in hexadecimal (File Info Extension 2.1)."""
    if isinstance(checksum, str) and checksum:
        return f"multihash:{checksum[:256]}"
    if isinstance(updated, str) and updated:
        return f"updated:{updated[:64]},size:{size}"
    return None


def _add_versions(scenes: list[_Scene], catalogue: Catalogue, present: Catalogue | None) -> None:
    """Make `SceneRef`s; scenes without a stated version are asked for, all at once."""
    held = {_place(ref.uri, ref.format): ref for ref in (present.scenes if present else [])}
    unknown: list[_Scene] = []
    for scene in scenes:
        known = held.get(_place(scene.uri, scene.format))
        version = scene.version or (known.version if known else None)
        size = known.bytes if known else scene.bytes
        if version is None:
            unknown.append(scene)
        else:
            catalogue.scenes.append(_reference(scene, version, size))
    parts = [_parts(scene) for scene in unknown]
    answers = iter(infos([url for urls in parts for url in urls]))
    for scene, urls in zip(unknown, parts, strict=True):
        found = {url: next(answers) for url in urls}
        try:
            catalogue.scenes.append(_with_version(scene, found))
        except SceneError as error:
            catalogue.rejected.append((scene.scene_id, scene.uri, error))
    catalogue.scenes.sort(key=lambda ref: ref.scene_id)


def _parts(scene: _Scene) -> list[str]:
    """The objects whose versions make up the scene's; the first decides whether it is there."""
    uri = scene.uri
    if scene.format == "zarr":
        stated = scene.zarr_format
        known = _MARKERS.get(stated) if isinstance(stated, int) else None
        return [join(uri, name) for name in known or (*_MARKERS[3], *_MARKERS[2])]
    if scene.format == "envi":
        if uri.lower().endswith(".hdr"):
            return [uri, *data_candidates(uri)]
        stem = uri[: len(uri) - len(uri.rpartition("/")[2])] + scene_stem(uri)
        return list(dict.fromkeys([uri, f"{uri}.hdr", f"{stem}.hdr"]))
    return [uri, *metadata_names(uri)] if is_image(uri) else [uri]


def _with_version(scene: _Scene, found: Mapping[str, Any]) -> SceneRef:
    there = {url: info for url, info in found.items() if isinstance(info, dict)}
    if not (there if scene.format == "zarr" else scene.uri in there):
        answers = [answer for answer in found.values() if isinstance(answer, Exception)]
        raise _absent(scene, answers[0])
    versions = [f"{url.rpartition('/')[2]}\0{version_of(info)}" for url, info in there.items()]
    if len(versions) == 1 and scene.format != "zarr":
        version = version_of(there[scene.uri])
    else:
        version = f"sha256:{hashlib.sha256(chr(10).join(versions).encode()).hexdigest()[:32]}"
    size = sum(int(info.get("size") or 0) for info in there.values())
    counted = scene.bytes or (0 if scene.format == "zarr" else size)
    return _reference(scene, version, counted)


def _reference(scene: _Scene, version: str, size: int) -> SceneRef:
    parts = () if scene.format == "zarr" else tuple(_parts(scene))
    return SceneRef(scene.scene_id, scene.uri, scene.format, version, size, parts, listed=False)


def _absent(scene: _Scene, error: Exception) -> SceneError:
    where = f"{redact(scene.uri)}: the item's asset {scene.key!r}"
    if isinstance(error, FileNotFoundError):
        return SceneError("unreadable", f"{where} is not there: restore it or correct the item")
    return SceneError("unreadable", f"{where} cannot be reached ({describe(error)})")


def _filter(catalogue: Catalogue, include: Sequence[str], exclude: Sequence[str]) -> None:
    def wanted(name: str) -> bool:
        kept = not include or any(fnmatchcase(name, glob) for glob in include)
        return kept and not any(fnmatchcase(name, glob) for glob in exclude)

    catalogue.scenes = [ref for ref in catalogue.scenes if wanted(ref.scene_id)]
    catalogue.rejected = [entry for entry in catalogue.rejected if wanted(entry[0])]
