"""Whether the STAC catalogue of an output is that of its published scenes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.errors import SceneError
from pipeline.integrity import Fault
from pipeline.stac.catalogue import FOLDER, catalogued
from pipeline.stac.table import from_bytes
from pipeline.storage import join, open_filesystem, read_if_present, redact

_BATCH = 256


def verify_catalogue(
    output: str, published: Mapping[str, str], *, deep: bool = False
) -> list[Fault]:
    """Compare an output's catalogue with its published scenes; none if all is well.

    Args:
        output: of the archive job.
        published: fingerprints of its published scenes by id.
        deep: read every item; else the table is read and the items are listed.
    """
    filesystem, root = open_filesystem(join(output, FOLDER))
    filesystem.invalidate_cache()
    update = shlex.join(("sr-archive", "catalogue", redact(output)))
    broken = _table_faults(filesystem, root, published)
    known: dict[str, str | None] = {} if broken else catalogued(output)
    names = [] if broken else sorted(published.keys() | known.keys())
    entries = [_entry_fault(name, published, known) for name in names]
    items = _item_faults(filesystem, root, published, known, deep=deep)
    return [
        Fault("catalogue", message, command)
        for messages, command in (
            (broken, update),
            (filter(None, entries), update),
            (items, f"{update} --rebuild"),
        )
        for message in messages
    ]


def remove_foreign_items(output: str, published: Collection[str]) -> list[str]:
    """Remove the items of scenes that are not published; return a line for each."""
    filesystem, root = open_filesystem(join(output, FOLDER))
    filesystem.invalidate_cache()
    there = _items(filesystem, root)
    foreign = sorted(there.keys() - set(published))
    for name in foreign:
        filesystem.rm_file(there[name])
    return [f"removed {FOLDER}/items/{name}.json: no such scene is published" for name in foreign]


def _table_faults(filesystem: Any, root: str, published: Mapping[str, str]) -> list[str]:
    """Of the two objects that stand for the whole."""
    missing = [
        name
        for name in ("collection.json", "items.parquet")
        if published and read_if_present(filesystem, join(root, name)) is None
    ]
    if missing:
        return [f"missing {FOLDER}/{name}" for name in missing]
    data = read_if_present(filesystem, join(root, "items.parquet"))
    try:
        if data is not None:
            from_bytes(data, f"{FOLDER}/items.parquet")
    except SceneError as error:
        return [error.message]
    return []


def _entry_fault(
    name: str, published: Mapping[str, str], known: Mapping[str, str | None]
) -> str | None:
    if name not in known:
        return f"{name} is published and not in the catalogue"
    if name not in published:
        return f"{name} is in the catalogue and not published"
    if known[name] != published[name]:
        return f"the item of {name} is of another version of the scene"
    return None


def _item_faults(
    filesystem: Any,
    root: str,
    published: Mapping[str, str],
    known: Mapping[str, str | None],
    *,
    deep: bool,
) -> list[str]:
    """Of the items whose entries are right; an update writes the others anyway."""
    there = _items(filesystem, root)
    right = {name for name in known if known[name] == published.get(name)}
    faults = [f"missing {FOLDER}/items/{name}.json" for name in sorted(right - there.keys())]
    foreign = there.keys() - known.keys() - published.keys()
    faults += [f"foreign {FOLDER}/items/{name}.json" for name in sorted(foreign)]
    if deep:
        names = sorted(there.keys() & right)
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            found = filesystem.cat([there[name] for name in part], on_error="return")
            faults += [
                f"{FOLDER}/items/{name}.json is not the item of the published scene"
                for name in part
                if not _is_item(found[there[name]], name, known[name])
            ]
    return faults


def _items(filesystem: Any, root: str) -> dict[str, str]:
    """Paths of item documents by the id that their name tells."""
    try:
        paths = [p for p in filesystem.ls(join(root, "items"), detail=False) if p.endswith(".json")]
    except FileNotFoundError:
        return {}
    return {path.rsplit("/", 1)[-1].removesuffix(".json"): path for path in paths}


def _is_item(data: Any, name: str, fingerprint: str | None) -> bool:
    try:
        item = json.loads(data)
        return bool((item["id"], item["properties"].get("sr:fingerprint")) == (name, fingerprint))
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
