"""The STAC catalogue of an output, kept up to date without reading all of it.

    <output>/stac/collection.json         extents, summaries, links to the items
    <output>/stac/items/<scene_id>.json
    <output>/stac/items.parquet           all items in one file (stac-geoparquet)
    <output>/stac/quicklooks/<scene_id>.png

Each object is written in one PUT, so a reader sees the old one or the new one. The order is items,
collection, table: the table says what is catalogued (`catalogued`), so an update that was killed
is done again by the next one. The items are the truth: the other two can be made from them at any
time (`rebuild_catalogue`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SceneError
from pipeline.stac.item import COLLECTION, STAC_VERSION, Item, rfc3339
from pipeline.stac.table import field_of, from_bytes, items_of, joined, table_of, to_bytes, without
from pipeline.storage import join, open_filesystem, read_if_present, redact, write_atomic
from pipeline.store import is_safe_id

FOLDER = "stac"
_WRITERS = 16
_EVERYWHERE = [-180.0, -90.0, 180.0, 90.0]
_LISTED = {  # summary: where a table has it
    "instruments": ("instruments",),
    "platform": ("platform",),
    "gsd": ("gsd",),
    "sr:scale": ("sr:scale",),
    "sr:model": ("sr:model",),
    "sr:weights_sha256": ("sr:weights_sha256",),
    "proj:code": ("assets", "data", "proj:code"),
}
_RANGED = {"eo:center_wavelength": ("assets", "data", "bands", "eo:center_wavelength")}


@dataclass
class CatalogueReport:
    """What an update did. `notes` are lines for the operator."""

    written: list[str] = field(default_factory=list)
    unchanged: int = 0
    removed: list[str] = field(default_factory=list)
    items: int = 0
    notes: list[str] = field(default_factory=list)


def output_collection(items: Iterable[Item], collection: str = COLLECTION) -> dict[str, Any]:
    """The collection of items, for `OUTPUT/stac/collection.json` (STAC 1.1, collection-spec.md)."""
    return _collection(table_of(items), collection)


def update_catalogue(
    output: str,
    items: Iterable[Item],
    removed: Sequence[str] = (),
    collection: str = COLLECTION,
) -> CatalogueReport:
    """Add or replace items, take out `removed`; all other items are taken from the old table.

    Only one process at a time may update an output: the last one to write the table wins, and
    `rebuild_catalogue` repairs it.

    Args:
        output: of the archive job; a path or fsspec URL.
        items: from `scene_item`; those that the table holds already are not written again.
        removed: ids of scenes that are unpublished now.
        collection: its id.

    Returns:
        What was done; a table that could not be read is a note, and was made anew from the items.
    """
    place = _Place(output)
    report = CatalogueReport()
    old = place.table(report.notes)
    fresh = table_of(_changed(items, old, place, report))
    gone = set(removed) & set(_ids(old)) - set(_ids(fresh))
    if not (report.written or gone or report.notes) and place.has_collection():
        report.items = old.num_rows
        return report
    report.removed = sorted(gone)
    place.remove_items(report.removed)
    table = joined(without(old, [*report.written, *gone]), fresh)
    place.write_table(table, collection)
    report.items = table.num_rows
    return report


def catalogued(output: str) -> dict[str, str | None]:
    """The fingerprints of the scenes in an output's catalogue by id; none where there is no table.

    A published scene that is not here, or with another fingerprint, has to be given to
    `update_catalogue`; an id that is here and not published, as removed.
    """
    table = _Place(output).table([])
    ids, prints = _ids(table), field_of(table, "sr:fingerprint") if table.num_rows else None
    return dict(
        zip(ids, prints.to_pylist() if prints is not None else [None] * len(ids), strict=True)
    )


def rebuild_catalogue(output: str, collection: str = COLLECTION) -> CatalogueReport:
    """Make the table and the collection anew from the items that lie in the output."""
    place = _Place(output)
    report = CatalogueReport()
    table = place.table_of_items(report.notes)
    place.write_table(table, collection)
    report.items = report.unchanged = table.num_rows
    return report


class _Place:
    """The objects of one output's catalogue."""

    def __init__(self, output: str) -> None:
        self._fs, self._root = open_filesystem(join(output, FOLDER))
        self._table = join(self._root, "items.parquet")

    def table(self, notes: list[str]) -> pa.Table:
        self._fs.invalidate_cache()
        data = read_if_present(self._fs, self._table)
        if data is None:
            return table_of([])
        try:
            return from_bytes(data, self._table)
        except SceneError as error:
            notes.append(f"{error.message}; made anew from the items")
            return self.table_of_items(notes)

    def table_of_items(self, notes: list[str]) -> pa.Table:
        """All items that lie there, read in one batch; one that cannot be read is noted."""
        self._fs.invalidate_cache()
        try:
            paths = [p for p in self._fs.ls(self._item(""), detail=False) if p.endswith(".json")]
        except FileNotFoundError:
            return table_of([])
        tables = []
        for start in range(0, len(paths), 256):
            found = self._fs.cat(sorted(paths)[start : start + 256], on_error="return")
            tables += [entry for path in found if (entry := _read(path, found[path], notes))]
        return joined(*tables) if tables else table_of([])

    def has_collection(self) -> bool:
        return read_if_present(self._fs, join(self._root, "collection.json")) is not None

    def write_items(self, items: Sequence[Item]) -> None:
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(self._write_item, items))

    def _write_item(self, item: Item) -> None:
        data = json.dumps(item, indent=1, allow_nan=False).encode()
        write_atomic(self._fs, self._item(f"{item['id']}.json"), data)

    def write_table(self, table: pa.Table, collection: str) -> None:
        document = _collection(table, collection)
        text = json.dumps(document, indent=1, allow_nan=False).encode()
        write_atomic(self._fs, join(self._root, "collection.json"), text)
        if table.num_rows:
            write_atomic(self._fs, self._table, to_bytes(table, document))
        elif read_if_present(self._fs, self._table) is not None:
            self._fs.rm_file(self._table)

    def remove_items(self, ids: Iterable[str]) -> None:
        for name in filter(is_safe_id, ids):  # a table that was tampered with may name any file
            for path in (self._item(f"{name}.json"), join(self._root, "quicklooks", f"{name}.png")):
                if self._fs.exists(path):
                    self._fs.rm_file(path)

    def _item(self, name: str) -> str:
        return join(self._root, "items", name).rstrip("/")


def _read(path: str, data: Any, notes: list[str]) -> pa.Table | None:
    """An item as a table; None, with a note, if it is not one of this product."""
    try:
        if isinstance(data, Exception):
            raise data
        return table_of([json.loads(data)])
    except Exception as error:  # a foreign file may hold anything
        reason = type(error).__name__
        notes.append(f"{redact(path)}: not an item that can be read ({reason}); left out")
        return None


def _ids(table: pa.Table) -> list[str]:
    return list(table["id"].to_pylist()) if table.num_rows else []


def _changed(
    items: Iterable[Item], old: pa.Table, place: _Place, report: CatalogueReport
) -> Iterable[Item]:
    """Write the items that the table does not hold as they are, and pass them on."""
    for batch in _batches(items):
        known = {item["id"]: item for item in items_of(old, [item["id"] for item in batch])}
        changed = [item for item in batch if known.get(item["id"]) != item]
        place.write_items(changed)
        report.written += [item["id"] for item in changed]
        report.unchanged += len(batch) - len(changed)
        yield from changed


def _batches(items: Iterable[Item], size: int = 256) -> Iterable[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _collection(table: pa.Table, collection: str) -> dict[str, Any]:
    links = [
        {"rel": "root", "href": "./collection.json", "type": "application/json"},
        *(
            {"rel": "item", "href": f"./items/{name}.json", "type": "application/geo+json"}
            for name in sorted(_ids(table))
        ),
    ]
    document: dict[str, Any] = {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "id": collection,
        "title": "Super-resolved hyperspectral scenes",
        "description": "Hyperspectral scenes super-resolved by sr-archive: estimates of a network "
        "on a finer grid, not measurements at that resolution.",
        "license": "other",
        "extent": {"spatial": {"bbox": [_extent(table)]}, "temporal": {"interval": [_span(table)]}},
        "summaries": _summaries(table),
        "links": links,
    }
    if table.num_rows:
        document["assets"] = {
            "items": {
                "href": "./items.parquet",
                "type": "application/vnd.apache.parquet",
                "title": "All items in one stac-geoparquet file",
                "roles": ["collection-mirror"],
            }
        }
    return document


def _extent(table: pa.Table) -> list[float]:
    """The box of all scenes; the whole globe if none has one, for the specification wants one."""
    boxes = [box for box in (table["bbox"].to_pylist() if table.num_rows else []) if box]
    if not boxes:
        return list(_EVERYWHERE)
    west, east = min(box["xmin"] for box in boxes), max(box["xmax"] for box in boxes)
    if any(box["xmin"] > box["xmax"] for box in boxes):  # across the antimeridian
        west, east = -180.0, 180.0
    south, north = min(box["ymin"] for box in boxes), max(box["ymax"] for box in boxes)
    return [west, south, east, north]


def _span(table: pa.Table) -> list[str | None]:
    """First and last acquisition; [None, None], open at both ends, where no scene states one."""
    column = field_of(table, "datetime") if table.num_rows else None
    times = [] if column is None else [value for value in column.to_pylist() if value]
    if not times:
        return [None, None]
    first: datetime = min(times)
    last: datetime = max(times)
    return [rfc3339(first), rfc3339(last)]


def _summaries(table: pa.Table) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, path in _LISTED.items():
        column = field_of(table, *path) if table.num_rows else None
        if column is None:
            continue
        flat = column.flatten() if pa.types.is_list(column.type) else column
        values = [value for value in pc.unique(flat).to_pylist() if value is not None]
        if values:
            found[name] = sorted(values)
    for name, path in _RANGED.items():
        column = field_of(table, *path) if table.num_rows else None
        if column is not None and column.null_count < len(column):
            ends = pc.min_max(column).as_py()
            found[name] = {"minimum": ends["min"], "maximum": ends["max"]}
    return found
