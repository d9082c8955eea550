"""Whether the STAC catalogue of an output is that of its published scenes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.errors import SceneError
from pipeline.integrity import Fault
from pipeline.stac.catalogue import FOLDER, catalogued
from pipeline.stac.table import from_bytes
from pipeline.storage import join, open_filesystem, read_if_present, redact

_BATCH = 256


def verify_catalogue(output: str, published: Mapping[str, str], *, deep: bool = False) -> list[Fault]:
    """Compare an output's catalogue with its published scenes; none if all is well.

    Args:
        output: of the archive job.
        published: fingerprints of its published scenes by id.
        deep: read every item; else the table is read and the items are listed.
    """
    filesystem, root = open_filesystem(join(output, FOLDER))
    filesystem.invalidate_cache()
    update = shlex.join(("sr-archive", "catalogue", redact(output)))
    faults = [
        Fault("catalogue", message, update) for message in _table_faults(filesystem, root, published)
    ]
    known: dict[str, str | None] = {} if faults else catalogued(output)
    if published and not faults:
        for name in sorted(published.keys() | known.keys()):
            if message := _entry_fault(name, published, known):
                faults.append(Fault("catalogue", message, update))
    listed = {} if faults else known  # an update that is due writes its items anyway
    faults += [
        Fault("catalogue", message, f"{update} --rebuild")
        for message in _item_faults(filesystem, root, listed, deep=deep)
    ]
    return faults


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
    filesystem: Any, root: str, known: Mapping[str, str | None], *, deep: bool
) -> list[str]:
    folder = join(root, "items")
    try:
        paths = [path for path in filesystem.ls(folder, detail=False) if path.endswith(".json")]
    except FileNotFoundError:
        paths = []
    there = {path.rsplit("/", 1)[-1].removesuffix(".json"): path for path in paths}
    faults = [f"missing {FOLDER}/items/{name}.json" for name in sorted(known.keys() - there.keys())]
    faults += [f"foreign {FOLDER}/items/{name}.json" for name in sorted(there.keys() - known.keys())]
    if deep:
        names = sorted(there.keys() & known.keys())
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            found = filesystem.cat([there[name] for name in part], on_error="return")
            faults += [
                f"{FOLDER}/items/{name}.json is not the item of the published scene"
                for name in part
                if not _is_item(found[there[name]], name, known[name])
            ]
    return faults


def _is_item(data: Any, name: str, fingerprint: str | None) -> bool:
    try:
        item = json.loads(data)
        return item["id"] == name and item["properties"].get("sr:fingerprint") == fingerprint
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
