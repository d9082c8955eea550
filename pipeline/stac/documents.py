"""The items of a STAC source: Item, ItemCollection, static Catalog or Collection, stac-geoparquet.

Layouts after STAC 1.1 (item-spec.md, catalog-spec.md, collection-spec.md), the ItemCollection of
STAC API 1.0 with its `next` links, and the STAC GeoParquet Specification 1.1.0; what older
versions write is read as far as it has the same fields.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SceneError, UsageError
from pipeline.readers import scene_stem
from pipeline.readers.boundary import boundary, failure, is_file
from pipeline.stac.links import Root, canonical, printable, scheme_of
from pipeline.storage import describe, open_filesystem, redact, unstrip

_HEAD = 64
_PARQUET = b"PAR1"
_DEEPEST = 32
_MOST_DOCUMENTS = 1_000_000
_LARGEST = 1 << 30  # bytes of one document
_BATCH = 256  # documents that are fetched, and items of a parquet file that are decoded, at once
_BULKY = frozenset({"bands", "eo:bands", "raster:bands", "geometry", "proj:geometry", "statistics"})
_ASSET_FIELDS = frozenset(
    {"href", "type", "roles", "element", "item", "updated", "file:checksum", "file:size"}
    | {"zarr:zarr_format"}
)
_ITEM_FIELDS = frozenset({"id", "updated"})


@dataclass(frozen=True)
class FoundItem:
    """One item: its JSON without geometry and bands, and the document it was found in."""

    item: dict[str, Any]
    base: str


@dataclass
class Items:
    """What a STAC source holds; `faults` are (name, address, reason) of what could not be read."""

    root: Root
    found: list[FoundItem] = field(default_factory=list)
    faults: list[tuple[str, str, SceneError]] = field(default_factory=list)


def is_stac(source: str) -> bool:
    """Whether a source is one JSON document or parquet file, seen from its first bytes.

    What has the suffix of a scene is none; some servers would send all of it for a look.
    """
    filesystem, path = open_filesystem(source)
    if scene_stem(path) != path.rpartition("/")[2]:
        return False
    try:
        if scheme_of(source) not in ("http", "https") and not is_file(filesystem, path):
            return False
        head = filesystem.cat_file(path, start=0, end=_HEAD)
    except Exception:  # whoever opens it as something else says what is wrong
        return False
    return bool(head.startswith(_PARQUET) or head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"))


def read_items(source: str) -> Items:
    """Every item that a STAC source leads to; nothing but STAC documents is opened.

    Raises:
        UsageError: the document itself cannot be read or is no STAC.
    """
    filesystem, path = open_filesystem(source)
    address = unstrip(filesystem, path)
    items = Items(Root.of(address))
    try:
        with boundary(address, "cannot read the STAC document", "bad-header"):
            filesystem.invalidate_cache()
            data = _fetch([address])[0]
            if data.startswith(_PARQUET):
                items.found.extend(_of_parquet(data, address))
            else:
                _Walk(items).run(address, _document(data, address))
    except SceneError as error:
        raise UsageError(error.message) from error
    return items


class _Walk:
    """Breadth first through child, item and next links, one batch of requests per level."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._seen: set[str] = set()
        self._queue: list[str] = []

    def run(self, address: str, document: dict[str, Any]) -> None:
        self._seen.add(canonical(address))
        self._queue += self._take(document, address)
        for _ in range(_DEEPEST):
            if not self._queue:
                return
            level, self._queue = self._queue, []
            self._fetch_level(level)
        for left in self._queue:
            message = f"{redact(left)}: more than {_DEEPEST} levels below the catalogue"
            self._fault(left, SceneError("bad-header", message))

    def _fetch_level(self, level: list[str]) -> None:
        while level:  # pages of a search come one after the other and are no deeper level
            batch, level = level[:_BATCH], level[_BATCH:]
            for address, data in zip(batch, _fetch(batch, strict=False), strict=True):
                try:
                    if isinstance(data, SceneError):
                        raise data
                    level += self._take(_document(data, address), address)
                except SceneError as error:
                    self._fault(address, error)

    def _take(self, document: dict[str, Any], address: str) -> list[str]:
        """Note a document's items and links; returns its next page."""
        kind = document.get("type")
        if kind == "Feature":
            self._items.found.append(FoundItem(document, address))
            return []
        if kind == "FeatureCollection":
            features = _list(document.get("features"))
            self._items.found += [FoundItem(entry, _base(entry, address)) for entry in features]
            return self._links(document, address, ("next",))
        if kind in ("Catalog", "Collection") or (
            "stac_version" in document and "links" in document
        ):
            self._queue += self._links(document, address, ("child", "item"))
            return []
        raise failure("bad-header", address, "no STAC Item, ItemCollection, Catalog or Collection")

    def _links(
        self, document: dict[str, Any], address: str, relations: tuple[str, ...]
    ) -> list[str]:
        found = []
        for link in _list(document.get("links")):
            if link.get("rel") not in relations:
                continue
            try:
                url = self._items.root.resolve(link.get("href"), address, page="next" in relations)
                if str(link.get("method", "GET")).upper() != "GET":
                    what = "its next page asks for POST: search with GET, or save all pages"
                    raise failure("unsupported", address, what)
                if len(self._seen) >= _MOST_DOCUMENTS:
                    raise failure("bad-header", address, f"over {_MOST_DOCUMENTS} documents")
                if canonical(url) not in self._seen:
                    self._seen.add(canonical(url))
                    found.append(url)
            except SceneError as error:
                self._fault(str(link.get("href")), error)
        return found

    def _fault(self, address: str, error: SceneError) -> None:
        shown = printable(address)
        self._items.faults.append((shown.partition("?")[0], shown, error))


def _list(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _base(item: dict[str, Any], address: str) -> str:
    """Where an item of a collection really lies: an API's items say so in `self`."""
    if scheme_of(address) in ("http", "https"):
        for link in _list(item.get("links")):
            href = str(link.get("href"))
            if link.get("rel") == "self" and scheme_of(href) in ("http", "https"):
                return href
    return address


def _fetch(addresses: list[str], *, strict: bool = True) -> list[Any]:
    """The bytes of documents, in one batch per filesystem; a failed one is a SceneError."""
    groups: dict[int, tuple[Any, list[str], list[str]]] = {}
    results: dict[str, Any] = {}
    for address in addresses:
        try:
            filesystem, path = open_filesystem(address)
        except UsageError as error:
            results[address] = SceneError("bad-header", str(error))
            continue
        _, paths, names = groups.setdefault(id(filesystem), (filesystem, [], []))
        paths.append(path)
        names.append(address)
    for filesystem, paths, names in groups.values():
        results |= dict(zip(names, _cat(filesystem, paths), strict=True))
    found = [_checked(results[address], address) for address in addresses]
    if strict:
        for entry in found:
            if isinstance(entry, SceneError):
                raise entry
    return found


def _cat(filesystem: Any, paths: list[str]) -> list[Any]:
    if len(paths) == 1:
        try:
            return [filesystem.cat_file(paths[0], start=0, end=_LARGEST)]
        except Exception as error:  # said with the document's name by the caller
            return [error]
    ends = [_LARGEST] * len(paths)
    return list(filesystem.cat_ranges(paths, [0] * len(paths), ends, on_error="return"))


def _checked(data: Any, address: str) -> Any:
    if isinstance(data, bytes):
        if len(data) < _LARGEST:
            return data
        return failure("bad-header", address, f"a document of more than {_LARGEST >> 20} MiB")
    if isinstance(data, SceneError):
        return data
    return failure("unreadable", address, f"cannot read the STAC document ({describe(data)})")


def _document(data: bytes, address: str) -> dict[str, Any]:
    """A JSON object; what is bulky and not needed here is dropped while it is parsed."""

    def slim(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in entry.items()
            if name not in _BULKY or (isinstance(value, dict) and "href" in value)  # an asset
        }

    with boundary(address, "no valid JSON", "bad-header"):
        document = json.loads(data, object_hook=slim)
    if not isinstance(document, dict):
        raise failure("bad-header", address, "no STAC: the JSON is not an object")
    return document


def _of_parquet(data: bytes, address: str) -> Iterator[FoundItem]:
    """The rows of a stac-geoparquet file; of all its columns only those that are needed.

    Relative hrefs are taken as relative to the file.
    """
    with pq.ParquetFile(io.BytesIO(data)) as file:
        names = set(file.schema_arrow.names)
        if not {"id", "assets"} <= names:
            raise failure("bad-header", address, "a parquet file without STAC's id and assets")
        columns = [path for path in _leaves(file) if _needed(path)]
        if not any(path.startswith("assets.") for path in columns):
            raise failure("bad-header", address, "its assets have no href")
        for batch in file.iter_batches(_BATCH * 8, columns=columns):
            for row in _rows(batch):
                yield FoundItem(row, address)


def _leaves(file: Any) -> list[str]:
    return [file.schema.column(index).path for index in range(len(file.schema))]


def _needed(path: str) -> bool:
    if path in _ITEM_FIELDS:
        return True
    if not path.startswith("assets."):
        return False
    parts = path.removesuffix(".list.element").removesuffix(".list.item").split(".")
    return parts[-1] in _ASSET_FIELDS


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        assets: dict[str, Any] = defaultdict(dict)
        for key, asset in (row.get("assets") or {}).items():
            if asset and asset.get("href") is not None:
                assets[key] = {name: value for name, value in asset.items() if value is not None}
        updated = row.get("updated")
        text = updated.isoformat() if hasattr(updated, "isoformat") else updated
        yield {"id": row.get("id"), "assets": dict(assets), "properties": {"updated": text}}
