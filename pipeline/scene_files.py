"""Which files under a source belong to which scene, by one listing.

A Zarr store is one scene, an ENVI header with its data is one scene, every GeoTIFF, MATLAB, .npz
and HDF5 file is one scene. A delivered product is one scene whatever files it has: its metadata,
quality layers, masks and geometry files count into the scene's version and are no scenes; an
archive is one scene where its name says EnMAP, DESIS or DIMS order. Hidden files, this product's
own state folders and unrelated files are passed over.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SceneError, UsageError
from pipeline.folder import Folder, Listing, by_folder
from pipeline.readers import recognise, scene_stem
from pipeline.readers.delivery import is_archive, is_image, is_layer, is_product_archive, product_of
from pipeline.readers.emit import is_companion, mask_names
from pipeline.readers.envi import data_candidates
from pipeline.storage import describe, is_local, open_filesystem, redact, unstrip
from pipeline.store import STATE

_ZARR_MARKERS = ("zarr.json", ".zgroup", ".zarray")
_BY_SUFFIX = {
    ".tif": "geotiff",
    ".tiff": "geotiff",
    ".mat": "matlab",
    ".npz": "npz",
    ".nc": "hdf",
    ".he5": "hdf",
    ".h5": "hdf",
}
_HEADER_PEEK = 64
OUTSIDE = "leads-outside"  # in the `info` of a link


@dataclass(frozen=True)
class Found:
    """A scene before it has an id: where it is, what it is named after, and its objects."""

    path: str
    name: str
    format: str
    objects: tuple[tuple[str, dict[str, Any]], ...]
    error: SceneError | None = None


def find_scenes(source: str) -> tuple[Any, list[Found], list[str]]:
    """The filesystem of a source, the scenes in it, and archives that are not looked into.

    Raises:
        UsageError: the source is not there, cannot be listed, or holds no scene.
    """
    filesystem, root = open_filesystem(source)
    listing = _list(filesystem, root, source)
    ignored: list[str] = []
    if root in listing:
        found = [_single(filesystem, root, listing)]
    elif any(f"{root}/{marker}" in listing for marker in _ZARR_MARKERS):
        objects = tuple(sorted((path[len(root) :], info) for path, info in listing.items()))
        found = [Found(root, scene_stem(root), "zarr", objects)]
    else:
        found = _walk(filesystem, root, listing, ignored)
    if not found:
        raise UsageError(
            f"no scene in {redact(source)}: expected .zarr, .tif, .hdr with its data, .mat, .npz, "
            ".nc, .he5, .h5 or an EnMAP or DESIS archive"
        )
    return filesystem, found, ignored


def _list(filesystem: Any, root: str, source: str) -> Listing:
    try:
        filesystem.invalidate_cache()  # a listing kept from an earlier run misses new scenes
        listing: Listing = filesystem.find(root, detail=True)
    except Exception as error:  # whatever a filesystem raises, the source is of no use
        raise UsageError(f"cannot list {redact(source)}: {describe(error)}") from error
    if not listing:
        there = filesystem.exists(root)
        reason = "is empty" if there else "does not exist: check the path or URL"
        raise UsageError(f"{redact(source)} {reason}")
    files = {path: info for path, info in listing.items() if info.get("type") != "directory"}
    return _regular(root, files) if is_local(filesystem) else files


def _regular(root: str, files: Listing) -> Listing:
    """The regular files of a local listing, links among them marked where they lead outside.

    Pipes and devices are passed over: opening one could wait for ever. An ENVI header may describe
    any bytes as an image, so a link could publish any file that this process may read.
    """
    kept: Listing = {}
    inside = os.path.realpath(root)
    for path, info in files.items():
        if info.get("islink"):
            target = os.path.realpath(path)
            if not Path(target).is_file():
                continue
            info = dict(info)
            info["mtime"] = Path(target).stat().st_mtime  # of the bytes, not of the link
            if target != inside and not target.startswith(inside.rstrip("/") + "/"):
                info[OUTSIDE] = True
        elif info.get("type") != "file":
            continue
        kept[path] = info
    return kept


def _single(filesystem: Any, path: str, listing: Listing) -> Found:
    """The scene that the operator named; the one place where a scene's bytes are looked at."""
    objects = ((posixpath.basename(path), listing[path]),)
    name = scene_stem(path)
    try:
        kind = recognise(filesystem, path)
    except SceneError as error:
        return Found(path, name, "unknown", objects, error)
    if kind == "envi":
        beside = _beside(filesystem, path)
        headers = {low: p for low, p in beside.lower.items() if low.endswith(".hdr")}
        options = (path, f"{path}.hdr", posixpath.splitext(path)[0] + ".hdr")
        header = next((headers[p.lower()] for p in options if p.lower() in headers), path)
        return _envi(header, beside, name)
    if is_image(path) or mask_names(path):
        return _file(path, kind, _beside(filesystem, path), name)
    return Found(path, name, kind.rstrip("0123456789"), objects)


def _beside(filesystem: Any, path: str) -> Folder:
    return Folder(filesystem.find(posixpath.dirname(path), maxdepth=1, detail=True))


def _walk(filesystem: Any, root: str, listing: Listing, ignored: list[str]) -> list[Found]:
    stores = _stores(root, listing)
    found: list[Found] = []
    inside: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    plain: Listing = {}
    for path in sorted(listing):
        store = _store_of(path, stores)
        if _hidden(root, store or path):
            continue
        if store is not None:
            inside[store].append((path[len(store) :], listing[path]))
        else:
            plain[path] = listing[path]
    for store, objects in inside.items():
        found.append(Found(store, _name(root, store), "zarr", tuple(objects)))
    folders = by_folder(plain)
    headers = [
        path
        for path in plain
        if path.lower().endswith(".hdr") and not folders[posixpath.dirname(path)].explains(path)
    ]
    lower = {path.lower(): path for path in plain}
    for path in _envi_headers(filesystem, headers, plain, lower):
        found.append(_envi(path, folders[posixpath.dirname(path)], _name(root, path)))
    for path in plain:
        kind = _BY_SUFFIX.get(posixpath.splitext(path)[1].lower())
        if is_product_archive(path):
            kind = "product"
        elif is_archive(path):
            ignored.append(unstrip(filesystem, path))
        beside = folders[posixpath.dirname(path)]
        copy = is_image(path) and path not in beside.images
        if kind is not None and not (copy or is_layer(path) or is_companion(path)):
            found.append(_file(path, kind, beside, _name(root, path)))
    return found


def _file(path: str, kind: str, beside: Folder, name: str) -> Found:
    """A scene of one file, with the files beside it that are read with it."""
    if is_image(path):
        kind, parts = "product", beside.products[product_of(path) or ""]
    else:
        parts = [path, *(mask for mask in mask_names(path) if mask in beside.listing)][:2]
    return Found(path, name, kind, beside.objects(parts))


def _stores(root: str, listing: Listing) -> set[str]:
    """Folders with a Zarr marker that lie in no other such folder; the root is none."""
    marked = {
        posixpath.dirname(path) for path in listing if posixpath.basename(path) in _ZARR_MARKERS
    }
    outer = {folder for folder in marked if _store_of(posixpath.dirname(folder), marked) is None}
    # An array inside an unmarked .zarr belongs to a store that is not published yet.
    return {folder for folder in outer if ".zarr/" not in folder[len(root) :]}


def _store_of(path: str, stores: set[str]) -> str | None:
    """The outermost store that is `path` or holds it."""
    outermost = None
    while path and path != "/":
        if path in stores:
            outermost = path
        path = path.rpartition("/")[0]
    return outermost


def _hidden(root: str, path: str) -> bool:
    parts = path[len(root) :].strip("/").split("/")
    return any(part.startswith(".") or part == STATE for part in parts)


def _envi_headers(
    filesystem: Any, headers: list[str], plain: Listing, lower: dict[str, str]
) -> list[str]:
    """The headers that are ENVI's: with data beside them, or with ENVI in the first line.

    Only lonely headers are looked into, all in one batch of requests.
    """
    lonely = [path for path in headers if _data_of(path, lower) is None]
    if lonely:
        ends = [min(_HEADER_PEEK, int(plain[path]["size"] or 0)) for path in lonely]
        heads = filesystem.cat_ranges(lonely, [0] * len(lonely), ends, on_error="return")
        other = {
            path
            for path, head in zip(lonely, heads, strict=True)
            if isinstance(head, bytes) and not head.lstrip(b"\xef\xbb\xbf \t").startswith(b"ENVI")
        }
        return [path for path in headers if path not in other]
    return headers


def _data_of(header: str, lower: dict[str, str]) -> str | None:
    options = (lower.get(candidate.lower()) for candidate in data_candidates(header))
    return next((path for path in options if path is not None), None)


def _envi(path: str, beside: Folder, name: str) -> Found:
    data = _data_of(path, beside.lower)
    if data is None:
        reason = f"{redact(path)}: its data file is not beside it: copy both files"
        error = SceneError("missing-data", reason)
        return Found(path, name, "envi", beside.objects([path]), error)
    location = beside.geometry.location(path)
    placed = None if location is None else _data_of(location, beside.lower)
    extra = [part for part in (location, placed) if part is not None]
    return Found(path, name, "envi", beside.objects([path, data, *extra]))


def _name(root: str, path: str) -> str:
    """The path below the root, the last part without its suffix."""
    below = path[len(root) :].strip("/")
    folder = posixpath.dirname(below)
    return posixpath.join(folder, scene_stem(path)) if folder else scene_stem(path)
