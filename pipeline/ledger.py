"""The ledger of a scene: what its finished tiles wrote, one record each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.arrays import WrittenObject, is_of_tile
from pipeline.documents import parsed

LEDGER = "ledger.json"
_TILE = re.compile(r"\d{1,9}\.\d{1,9}")


@dataclass(frozen=True)
class TileRecord:
    """The ledger's line for one finished tile.

    Attributes:
        tile: "row.column".
        objects: what it wrote; one shard, or in the plain layout its chunks.
        seconds: read, wait (for the network), compute and write, by name.
        valid: valid LR pixels x bands in the core.
        minimum, maximum: of the valid output, physical units; None where all is fill.
        device: what computed it: cpu or cuda.
        precision: in which it was computed: fp32 or bf16.
        consistency: of `pipeline.quality`; dropped when the scene is published.
    """

    tile: str
    objects: tuple[WrittenObject, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    valid: int = 0
    minimum: float | None = None
    maximum: float | None = None
    device: str = ""
    precision: str = ""
    consistency: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TileRecord:
        """The inverse of `dataclasses.asdict`.

        Raises:
            TypeError, ValueError, KeyError: it is no record of a tile.
        """
        objects = tuple(WrittenObject(**entry) for entry in values["objects"])
        record = cls(**{**values, "objects": objects})
        texts = [record.tile, record.device, record.precision, record.consistency]
        texts += [text for item in objects for text in (item.key, item.crc32c)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a record's names are texts")
        safe = all(is_of_tile(each.key) and ".." not in each.key.split("/") for each in objects)
        if _TILE.fullmatch(record.tile) is None or not safe:
            raise ValueError(f"{record.tile!r} is no tile, or not all of its objects are a tile's")
        return record


def records_of(entries: Iterable[dict[str, Any]]) -> dict[str, TileRecord]:
    """The records of a parsed ledger, by tile."""
    return {entry["tile"]: TileRecord.from_dict(entry) for entry in entries}


def ledger_bytes(records: Mapping[str, TileRecord]) -> bytes:
    """The compact ledger of a published scene."""
    entries = [asdict(replace(records[key], consistency="")) for key in sorted(records)]
    return json.dumps(entries).encode()


def records_in(data: bytes) -> list[TileRecord]:
    """The records of a ledger, or the one of a tile; what is none is left out and done again."""
    found = parsed(data)
    entries = found if isinstance(found, list) else [found]
    records = []
    for entry in entries:
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            records.append(TileRecord.from_dict(entry))
    return records
