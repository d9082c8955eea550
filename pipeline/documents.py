"""The JSON documents of a scene's groups, whose root holds its attributes; and JSON not trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.arrays import ROOTS, is_of_group


def root_attributes(read: Callable[[str], bytes | None]) -> dict[str, Any] | None:
    """The root attributes in the documents of a scene; None where no reader could parse them."""
    for roots in ROOTS.values():
        marker = read(roots[-1])
        if marker is None:
            continue
        document = parsed(marker)
        if not isinstance(document, dict):
            return None
        inside = document.get("attributes") or parsed(read(".zattrs") or b"")
        return inside if isinstance(inside, dict) else None
    return None


def fingerprint_in(attributes: Mapping[str, Any]) -> str:
    """The fingerprint in a published scene's root attributes; empty where there is none."""
    facts = attributes.get("sr_archive")
    found = facts.get("fingerprint") if isinstance(facts, dict) else None
    return found if isinstance(found, str) else ""


def with_root_attributes(
    groups: Mapping[str, Any], attributes: Mapping[str, Any]
) -> dict[str, bytes] | None:
    """The groups' documents, by key, with what is to be added to the root's attributes.

    Whoever can write the output must not make this process write anywhere else: None where the keys
    are not all a group's, or the documents not what they should be.
    """
    roots = [key for key in groups if "/" not in key]
    if not roots or not all(map(is_of_group, groups)):
        return None
    try:
        for key in roots:
            _attributes_of(key, groups[key]).update(attributes)
    except (AttributeError, KeyError, TypeError):
        return None
    return {key: json.dumps(document, indent=1).encode() for key, document in groups.items()}


def _attributes_of(key: str, document: dict[str, Any]) -> dict[str, Any]:
    """Where a root object keeps the group's attributes; a `.zgroup` keeps none."""
    if key == ".zattrs":
        return document
    if key == ".zmetadata":
        nested: dict[str, Any] = document["metadata"].setdefault(".zattrs", {})
        return nested
    attributes: dict[str, Any] = document.setdefault("attributes", {}) if key == "zarr.json" else {}
    return attributes


def json_object(data: bytes) -> dict[str, Any]:
    """A JSON object; empty where the bytes are none, so that nothing they say is believed."""
    found = parsed(data)
    return found if isinstance(found, dict) else {}


def parsed(data: bytes) -> Any:
    """What JSON says; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
