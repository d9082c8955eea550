"""Items as rows of a stac-geoparquet file, and back.

STAC GeoParquet Specification 1.1.0: properties are columns of their own, times are timestamps, the
geometry is WKB and the box a struct (GeoParquet 1.1.0). Relative hrefs are relative to the
file, `OUTPUT/stac/items.parquet`, as those of an item are to the item. One thing is not as in JSON:
`nodata` is a number in every row, NaN for "nan", for a column has one type.
"""

from __future__ import annotations

import io
import json
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
import shapely.geometry

from pipeline.readers.boundary import boundary, failure
from pipeline.stac.item import Item, rfc3339, utc

_FOLDER = "items"  # of the items, seen from the file
_ROWS = 2000  # of a row group
_BATCH = 256  # items that are held as objects at once
_BOX = ("xmin", "ymin", "xmax", "ymax")
_TIMES = ("datetime", "start_datetime", "end_datetime", "created", "processing:datetime")
_TOP = ("stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets")
_ADDRESS = re.compile(r"^(/|[A-Za-z][A-Za-z0-9+.-]*:)")
_KEY = b"stac-geoparquet"


def table_of(items: Iterable[Item]) -> pa.Table:
    """Items as a table; a few hundred are held as objects at any time."""
    tables = []
    batch: list[dict[str, Any]] = []
    for item in items:
        batch.append(_row(item))
        if len(batch) == _BATCH:
            tables.append(_table(batch))
            batch = []
    if batch or not tables:
        tables.append(_table(batch))
    return joined(*tables)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    # Not from_pylist, which takes its columns from the first row alone.
    return pa.Table.from_struct_array(pa.array(rows)) if rows else pa.table({})


def joined(*tables: pa.Table) -> pa.Table:
    """One table under another; a field that one of them lacks is null there.

    Raises:
        SceneError: the same field has types that do not fit.
    """
    filled = [table for table in tables if table.num_rows]
    with boundary("items.parquet", "items do not fit into one table", "bad-header"):
        return pa.concat_tables(filled or tables[:1], promote_options="permissive")


def without(table: pa.Table, ids: Iterable[str]) -> pa.Table:
    """The rows of all other items."""
    if not table.num_rows:
        return table
    gone = pc.is_in(table["id"], value_set=pa.array(sorted(ids), pa.string()))
    return table.filter(pc.invert(gone))


def items_of(table: pa.Table, ids: Iterable[str] | None = None) -> Iterator[Item]:
    """The items of a table, all or those with the given ids."""
    if ids is not None and table.num_rows:
        table = table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids), pa.string())))
    for batch in table.to_batches(max_chunksize=_BATCH):
        yield from (_item(row) for row in batch.to_pylist())


def to_bytes(table: pa.Table, collection: Mapping[str, Any]) -> bytes:
    """The file; the collection travels in its metadata."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": _geometry_types(table)}
    column["covering"] = {"bbox": {name: ["bbox", name] for name in _BOX}}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    # Links to each item would be the file once more.
    links = [link for link in collection["links"] if link["rel"] != "item"]
    stated = {collection["id"]: {**collection, "links": links}}
    stac = {"version": "1.1.0", "collections": stated}
    metadata = {b"geo": json.dumps(geo).encode(), _KEY: json.dumps(stac).encode()}
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata), sink, compression="zstd", row_group_size=_ROWS
    )
    return sink.getvalue()


def from_bytes(data: bytes, where: str) -> pa.Table:
    """The table of a file that `to_bytes` made.

    Raises:
        SceneError: it is torn, or some other file.
    """
    with boundary(where, "cannot read the table of items", "bad-header"):
        table = pq.read_table(io.BytesIO(data))
    ours = _KEY in (table.schema.metadata or {}) and {*_TOP, "collection"} <= set(
        table.column_names
    )
    if not ours or table.schema.field("id").type != pa.string():
        raise failure("bad-header", where, "not a table of items that sr-archive wrote")
    return table


def field_of(table: pa.Table, *path: str) -> pa.Array | None:
    """A column or, below it, a field of a struct or of all structs of a list; None if absent."""
    if path[0] not in table.column_names:
        return None
    column = table[path[0]].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    for name in path[1:]:
        if pa.types.is_list(column.type):
            column = column.flatten()
        kind = column.type
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        column = pc.struct_field(column, name)
    return column


def _geometry_types(table: pa.Table) -> list[str]:
    """Empty where there is none: "not known", as GeoParquet has it."""
    wkb = table["geometry"].to_pylist() if table.num_rows else []
    kinds = {shapely.from_wkb(value).geom_type for value in wkb if value is not None}
    return sorted(kinds)


def _row(item: Item) -> dict[str, Any]:
    shape = item["geometry"]
    wkb = None if shape is None else shapely.to_wkb(shapely.geometry.shape(shape))
    box = None if shape is None else dict(zip(_BOX, item["bbox"], strict=True))
    row = {name: item[name] for name in ("stac_version", "stac_extensions", "id", "collection")}
    row |= {"geometry": wkb, "bbox": box}
    row["links"] = [{**link, "href": _moved(link["href"], _FOLDER, "")} for link in item["links"]]
    row["assets"] = {key: _asset_row(asset) for key, asset in item["assets"].items()}
    for name, value in item["properties"].items():
        row[name] = utc(value)[0] if name in _TIMES and value is not None else value  # type: ignore[index]
    return row


def _asset_row(asset: Mapping[str, Any]) -> dict[str, Any]:
    row = {**asset, "href": _moved(asset["href"], _FOLDER, "")}
    if "nodata" in asset:
        row["nodata"] = float(asset["nodata"])
    return row


def _moved(href: str, old: str, new: str) -> str:
    """A relative href of a document in the folder `old`, for one in the folder `new`."""
    if _ADDRESS.match(href):
        return href
    return posixpath.relpath(posixpath.join("/a/b", old, href), posixpath.join("/a/b", new))


def _item(row: dict[str, Any]) -> Item:
    shape, box = row.pop("geometry"), row.pop("bbox")
    where: dict[str, Any] = {"geometry": None}
    if shape is not None:
        where["geometry"] = _plain(shapely.geometry.mapping(shapely.from_wkb(shape)))
        where["bbox"] = [box[name] for name in _BOX]
    links = [_present(link) for link in row.pop("links")]
    assets = {key: _asset(asset) for key, asset in row.pop("assets").items() if asset is not None}
    top = {name: row.pop(name) for name in ("stac_version", "stac_extensions", "id")}
    collection = row.pop("collection")
    return {
        "type": "Feature",
        **top,
        **where,
        "properties": {"datetime": None} | _present(row),
        "links": [{**link, "href": _moved(link["href"], "", _FOLDER)} for link in links],
        "assets": assets,
        "collection": collection,
    }


def _asset(row: dict[str, Any]) -> dict[str, Any]:
    asset: dict[str, Any] = _present(row)
    nodata = asset.get("nodata")
    if nodata is not None:
        asset["nodata"] = "nan" if math.isnan(nodata) else _shortest(nodata)
    asset["href"] = _moved(asset["href"], "", _FOLDER)
    return asset


def _shortest(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _present(value: Any) -> Any:
    """Without the fields that only other rows have; times as text."""
    if isinstance(value, dict):
        return {name: _present(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_present(inner) for inner in value]
    return rfc3339(value) if isinstance(value, datetime) else value


def _plain(value: Any) -> Any:
    """GeoJSON with lists, as JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
