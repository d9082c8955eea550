"""Which scenes lie under a source: one listing, no scene is opened."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pipeline.errors import SceneError, UsageError
from pipeline.scene_files import OUTSIDE, Found, find_scenes
from pipeline.storage import redact, unstrip, version_of
from pipeline.store import STATE

_LONGEST_ID = 120
# Device names that Windows takes for files in every folder, with any suffix.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)\d)(\..*)?")


@dataclass(frozen=True)
class SceneRef:
    """One scene of the archive; `version` changes whenever its bytes do.

    Attributes:
        parts: addresses of the objects that make its version; none for a Zarr store, where all
            below it do.
        listed: the version comes from a listing of these objects, not from a catalogue.
    """

    scene_id: str
    uri: str
    format: str
    version: str
    bytes: int
    parts: tuple[str, ...] = ()
    listed: bool = True


@dataclass(frozen=True)
class Reconciliation:
    """How a STAC catalogue and a bucket differ, as (scene_id, uri) each.

    Attributes:
        unlisted: in the bucket, but in no item; not processed.
        absent: in an item, but not in the bucket.
    """

    unlisted: list[tuple[str, str]]
    absent: list[tuple[str, str]]


@dataclass
class Catalogue:
    """What a source holds. `rejected` are (scene_id, uri, reason); `ignored` are archives that may
    hold scenes but are not looked into.
    """

    scenes: list[SceneRef] = field(default_factory=list)
    rejected: list[tuple[str, str, SceneError]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    reconciliation: Reconciliation | None = None


def list_scenes(
    source: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    asset: str | None = None,
    bucket: str | None = None,
) -> Catalogue:
    """The scenes of a file, a folder, a prefix or a STAC catalogue, sorted by id.

    Args:
        source: a scene, a folder or prefix that is walked, or a STAC document or stac-geoparquet
            file; a path or an fsspec URL.
        include: globs of scene ids to keep; empty keeps all.
        exclude: globs of scene ids to leave out.
        asset: with a STAC source, the key of the asset that is the scene.
        bucket: with a STAC source, a folder or prefix to compare it with.

    Raises:
        UsageError: the source is not there, cannot be listed, or holds no scene.
    """
    # Not above: both build on this module's types.
    from pipeline.stac.documents import is_stac
    from pipeline.stac.source import list_stac

    if is_stac(source):
        present = None if bucket is None else _walked(bucket)
        return list_stac(source, include, exclude, asset=asset, present=present)
    for option, value in (("--asset", asset), ("--bucket", bucket)):
        if value is not None:
            raise UsageError(f"{option} needs a STAC source, and {redact(source)} is none")
    return _walked(source, include, exclude)


def _walked(source: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Catalogue:
    filesystem, found, ignored = find_scenes(source)
    catalogue = Catalogue(ignored=ignored)
    _enter(filesystem, found, catalogue, include, exclude)
    return catalogue


def scene_id(name: str) -> str:
    """A name that is safe as one path component: letters, digits, `.`, `_`, `-`; 1 to 120 long."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name.strip("/").replace("/", "__")).lstrip(".")
    if len(safe) > _LONGEST_ID:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
        safe = f"{safe[: _LONGEST_ID - 13]}-{digest}"
    reserved = safe in ("", STATE) or _RESERVED.fullmatch(safe) is not None
    return "scene_" + safe if reserved else safe


def _enter(
    filesystem: Any,
    found: list[Found],
    catalogue: Catalogue,
    include: Sequence[str],
    exclude: Sequence[str],
) -> None:
    """Give ids, apply the globs, and set duplicates and faulty scenes aside."""
    taken: dict[str, str] = {}
    for identity, item in sorted(
        ((scene_id(item.name), item) for item in found), key=lambda pair: (pair[0], pair[1].path)
    ):
        if include and not any(fnmatchcase(identity, glob) for glob in include):
            continue
        if any(fnmatchcase(identity, glob) for glob in exclude):
            continue
        uri = unstrip(filesystem, item.path)
        error = item.error or _link_error(uri, item)
        if error is None and identity in taken:
            message = f"{redact(uri)} has the id of {taken[identity]}: rename or exclude one"
            error = SceneError("duplicate-id", message)
        if error is not None:
            catalogue.rejected.append((identity, uri, error))
            continue
        taken[identity] = redact(uri)
        size = sum(int(info.get("size") or 0) for _, info in item.objects)
        store = item.format == "zarr"
        version = combined_version(item.objects, store=store)
        folder = posixpath.dirname(item.path)
        names = () if store else (name for name, _ in item.objects)
        parts = tuple(unstrip(filesystem, posixpath.join(folder, name)) for name in names)
        catalogue.scenes.append(SceneRef(identity, uri, item.format, version, size, parts))


def set_twins_aside(catalogue: Catalogue) -> None:
    """Reject scenes whose ids differ from an earlier one in nothing but case."""
    first: dict[str, SceneRef] = {}
    for scene in catalogue.scenes:
        twin = first.setdefault(scene.scene_id.casefold(), scene)
        if twin is not scene:
            reason = f"the output takes its id for {twin.scene_id}: rename or exclude one"
            error = SceneError("duplicate-id", f"{redact(scene.uri)}: {reason}")
            catalogue.rejected.append((scene.scene_id, scene.uri, error))
    catalogue.scenes = list(first.values())


def _link_error(uri: str, item: Found) -> SceneError | None:
    led = next((name for name, info in item.objects if info.get(OUTSIDE)), None)
    if led is None:
        return None
    where = redact(uri)
    named = "it" if led.strip("/") in (posixpath.basename(uri), "") else repr(led.strip("/"))
    reason = f"{where}: {named} is a link that leads out of the source: name the scene by itself"
    return SceneError("unsupported", f"{reason}, or put the file there")


def combined_version(objects: Sequence[tuple[str, dict[str, Any]]], *, store: bool) -> str:
    """The object's own version, or a hash over the names and versions of all.

    Args:
        objects: name and `info` of each; names are below the scene for a Zarr store, else plain.
        store: the scene is a Zarr store.
    """
    if len(objects) == 1 and not store:
        return version_of(objects[0][1])
    digest = hashlib.sha256()
    for name, info in sorted(objects, key=lambda pair: pair[0]):
        digest.update(f"{name}\0{version_of(info)}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"
