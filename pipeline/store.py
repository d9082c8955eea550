"""One scene in the output, the ledger of its finished tiles, and the write that publishes it.

    <output>/<scene_id>.zarr/                 the scene; its root metadata is written last
    <output>/_sr-archive/scenes/<scene_id>/   what resuming needs: plan, calibration, ledger; and
                                              copies of what no tile can write again
    <output>/_sr-archive/quarantine/<scene_id>.json
    <output>/_sr-archive/leases/<scene_id>.json   which run works on it: `pipeline.lease`
    <output>/_sr-archive/runs/<run_id>.json

Existence is decided by objects that are read, never by prefixes that seem to exist.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from numpy.typing import NDArray

from pipeline.arrays import (
    ROOTS,
    OutputArray,
    WrittenObject,
    is_of_group,
    is_of_tile,
    root_last,
)
from pipeline.copies import Copies
from pipeline.errors import SceneError, StoreUnavailable
from pipeline.grid import Window
from pipeline.storage import (
    is_leftover,
    is_local,
    join,
    open_filesystem,
    read_if_present,
    write_atomic,
)

STATE = "_sr-archive"
LEDGER = "ledger.json"
CALIBRATION = "calibration.safetensors"
_COPIES = "copies.zip"
_TILE = re.compile(r"\d{1,9}\.\d{1,9}")
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def is_safe_id(scene_id: object) -> bool:
    """Whether a scene's id is one path component and nothing else, as `catalog.scene_id` makes."""
    return isinstance(scene_id, str) and _ID.fullmatch(scene_id) is not None


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


class SceneStore:
    """One scene in the output."""

    def __init__(self, output: str, scene_id: str) -> None:
        if not is_safe_id(scene_id):
            raise SceneError("bad-header", f"{scene_id[:200]!r} cannot be the id of a scene")
        self.scene_id = scene_id
        self.output = output
        self.url = join(output, f"{scene_id}.zarr")
        self._fs, self.path = open_filesystem(self.url)
        _, self._state = open_filesystem(join(output, STATE, "scenes", scene_id))
        _, self._quarantine = open_filesystem(join(output, STATE, "quarantine", f"{scene_id}.json"))

    def published(self) -> dict[str, Any] | None:
        """The root attributes if the scene is published, else None.

        A scene whose root document no reader can parse is not published.
        """
        return root_attributes(self.read_if_present)

    def was_published(self) -> bool:
        """Whether it is, or was until its root documents were lost; not while a run publishes."""
        if self.published() is not None:
            return True
        whole = self.state_object(LEDGER) is not None
        return whole and not self._find(join(self._state, "tiles"))

    def zarr_format(self) -> Literal[2, 3]:
        """Of the published scene, by the object that published it."""
        return 3 if read_if_present(self._fs, join(self.path, "zarr.json")) is not None else 2

    def state(self) -> dict[str, Any] | None:
        """What `prepare` recorded (fingerprint, number of tiles), or None."""
        data = read_if_present(self._fs, join(self._state, "scene.json"))
        return None if data is None else _object(data)

    def calibration(self) -> bytes | None:
        return self.state_object(CALIBRATION)

    def state_object(self, name: str) -> bytes | None:
        """An object of the scene's state by its name, or None."""
        return read_if_present(self._fs, join(self._state, name))

    def copies(self) -> Copies | None:
        """Copies of what no tile writes, or None where none were kept.

        Raises:
            SceneError: they are damaged.
        """
        data = self.state_object(_COPIES)
        return None if data is None else Copies.from_bytes(data)

    def prepare(
        self, template: dict[str, bytes], calibration: bytes, state: dict[str, Any]
    ) -> None:
        """Create the arrays' metadata and coordinates, no group; record the state last.

        Args:
            template: objects by key, from `scene_template`.
            calibration: the scene's constants.
            state: JSON facts with at least `fingerprint` and `tiles`.
        """
        groups = [key for key in template if is_of_group(key)]
        for key in template.keys() - set(groups):
            write_atomic(self._fs, join(self.path, key), template[key])
        held_back = {key: json.loads(template[key]) for key in root_last(groups)}
        facts = json.dumps(state).encode()
        arrays = {key: template[key] for key in template.keys() - set(groups)}
        self.keep(Copies(arrays, {CALIBRATION: calibration, "scene.json": facts}))
        self.put_state("groups.json", json.dumps(held_back).encode())
        self.put_state(CALIBRATION, calibration)
        self.put_state("scene.json", facts)

    def record(self, record: TileRecord) -> None:
        """Add one finished tile to the ledger; called after its shard is written."""
        data = json.dumps(asdict(record)).encode()
        write_atomic(self._fs, join(self._state, "tiles", f"{record.tile}.json"), data)

    def ledger(self) -> dict[str, TileRecord]:
        """Finished tiles by key: the compact ledger of a published scene, or the single records."""
        compact = self.state_object(LEDGER)
        documents = [compact] if compact else self._single_records()
        records = [record for data in documents for record in _records(data)]
        return {record.tile: record for record in records}

    def finished(self) -> frozenset[str]:
        """Tiles that need not be done again: in the ledger, and their objects are there.

        The second is asked because a machine that lost power may have kept the record and not the
        shard.
        """
        present = self.objects()
        return frozenset(
            key
            for key, record in self.ledger().items()
            if all(present.get(item.key) == item.bytes for item in record.objects)
        )

    def _single_records(self) -> list[bytes]:
        paths = [path for path in self._find(join(self._state, "tiles")) if path.endswith(".json")]
        return list(self._fs.cat(paths).values()) if paths else []

    def publish(self, attributes: dict[str, Any], records: Mapping[str, TileRecord]) -> None:
        """Make the scene visible: ledger first, then the root metadata in one write.

        Args:
            attributes: what to add to the root's.
            records: the whole ledger.

        Raises:
            RuntimeError: the ledger does not hold every tile.
            SceneError: the state is damaged.
        """
        state = self.state() or {}
        if len(records) != state.get("tiles"):
            raise RuntimeError(f"{len(records)} of {state.get('tiles')!r} tiles are in the ledger")
        self._remove_leftovers()
        ledger = ledger_bytes(records)
        groups = _object(self._fs.cat_file(join(self._state, "groups.json")))
        documents = self._group_documents(groups, attributes)
        kept = self._kept()
        self.keep(Copies({**kept.scene, **documents}, {**kept.state, LEDGER: ledger}))
        self.put_state(LEDGER, ledger)
        for key, document in documents.items():
            self.put(key, document)
        with suppress(StoreUnavailable):  # the scene is published, and what stays harms nobody
            self._remove(join(self._state, "tiles"))
            self.clear_quarantine()

    def _remove_leftovers(self) -> None:
        """What killed processes had begun to write beside objects; object stores keep no such."""
        if not is_local(self._fs):
            return
        for path in (*self._find(self.path), *self._find(self._state)):
            if is_leftover(path):
                with suppress(FileNotFoundError):  # a writer that lives after all has renamed it
                    self._fs.rm_file(path)

    def _group_documents(
        self, groups: Mapping[str, Any], attributes: Mapping[str, Any]
    ) -> dict[str, bytes]:
        """What `prepare` held back, with the attributes.

        Whoever can write the output must not make this process write anywhere else.
        """
        damaged = not any("/" not in key for key in groups) or not all(map(is_of_group, groups))
        try:
            for key in (key for key in groups if "/" not in key):
                _attributes_of(key, groups[key]).update(attributes)
        except (AttributeError, KeyError, TypeError):
            damaged = True
        if damaged:
            where = f"{STATE}/scenes/{self.scene_id}"
            raise SceneError("output-failed", f"{where} is damaged: remove it and run again")
        return {key: json.dumps(document, indent=1).encode() for key, document in groups.items()}

    def unpublish(self) -> None:
        """Remove the scene, its root first, so that no reader sees a part."""
        for roots in ROOTS.values():
            if read_if_present(self._fs, join(self.path, roots[-1])) is not None:
                self._fs.rm_file(join(self.path, roots[-1]))
        for key in filter(is_of_group, self._keys()):
            self._fs.rm_file(join(self.path, key))
        # State before data: a run that is killed here must not resume into what is half removed.
        self._remove(self._state)
        self._remove(self.path)

    def quarantine(self, facts: dict[str, Any]) -> None:
        write_atomic(self._fs, self._quarantine, json.dumps(facts, indent=1).encode())

    def quarantined(self) -> dict[str, Any] | None:
        data = read_if_present(self._fs, self._quarantine)
        return None if data is None else _object(data)

    def clear_quarantine(self) -> None:
        if read_if_present(self._fs, self._quarantine) is not None:
            self._fs.rm_file(self._quarantine)

    def objects(self) -> dict[str, int]:
        """Sizes of the data objects that tiles write, by key below the scene."""
        return {key: int(info["size"]) for key, info in self._keys().items() if is_of_tile(key)}

    def listing(self) -> dict[str, int]:
        """Sizes of all objects of the scene, by key below it."""
        return {key: int(info["size"]) for key, info in self._keys().items()}

    def read(self, key: str) -> bytes:
        data: bytes = self._fs.cat_file(join(self.path, key))
        return data

    def read_if_present(self, key: str) -> bytes | None:
        return read_if_present(self._fs, join(self.path, key))

    def present(self) -> Copies:
        """What of the scene and its state would be kept as copies, as it lies there now."""
        keys = [key for key in self.listing() if not is_of_tile(key)]
        names = (CALIBRATION, "scene.json", LEDGER)
        state = {name: self.state_object(name) for name in names}
        return Copies(
            {key: self.read(key) for key in keys},
            {name: data for name, data in state.items() if data is not None},
        )

    def _kept(self) -> Copies:
        """The copies; where an earlier version kept none, or they are damaged, what lies there."""
        try:
            copies = self.copies()
        except SceneError:
            copies = None
        return self.present() if copies is None else copies

    def keep(self, copies: Copies) -> None:
        """Replace the copies."""
        self.put_state(_COPIES, copies.to_bytes())

    def put(self, key: str, data: bytes) -> None:
        """Write one whole object of the scene; a reader sees the old one or the new one."""
        write_atomic(self._fs, join(self.path, key), data)

    def put_state(self, name: str, data: bytes) -> None:
        """The same for an object of its state."""
        write_atomic(self._fs, join(self._state, name), data)

    def remove(self, key: str) -> None:
        """Remove one object of the scene."""
        self._fs.rm_file(join(self.path, key))

    def _keys(self) -> dict[str, dict[str, Any]]:
        """Every object of the scene by its key below it."""
        return {path[len(self.path) + 1 :]: info for path, info in self._find(self.path).items()}

    def _find(self, path: str) -> dict[str, dict[str, Any]]:
        self._fs.invalidate_cache()
        try:
            found: dict[str, dict[str, Any]] = self._fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return found

    def _remove(self, path: str) -> None:
        if self._find(path):
            self._fs.rm(path, recursive=True)


def root_attributes(read: Callable[[str], bytes | None]) -> dict[str, Any] | None:
    """The root attributes in the documents of a scene; None where no reader could parse them."""
    for roots in ROOTS.values():
        marker = read(roots[-1])
        if marker is None:
            continue
        document = _json(marker)
        if not isinstance(document, dict):
            return None
        inside = document.get("attributes") or _json(read(".zattrs") or b"")
        return inside if isinstance(inside, dict) else None
    return None


def records_of(entries: Iterable[dict[str, Any]]) -> dict[str, TileRecord]:
    """The records of a parsed ledger, by tile."""
    return {entry["tile"]: TileRecord.from_dict(entry) for entry in entries}


def ledger_bytes(records: Mapping[str, TileRecord]) -> bytes:
    """The compact ledger of a published scene."""
    entries = [asdict(replace(records[key], consistency="")) for key in sorted(records)]
    return json.dumps(entries).encode()


def fingerprint_in(attributes: Mapping[str, Any]) -> str:
    """The fingerprint in a published scene's root attributes; empty where there is none."""
    facts = attributes.get("sr_archive")
    found = facts.get("fingerprint") if isinstance(facts, dict) else None
    return found if isinstance(found, str) else ""


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; empty where the bytes are none, so that nothing they say is believed."""
    found = _json(data)
    return found if isinstance(found, dict) else {}


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _records(data: bytes) -> list[TileRecord]:
    """The records of a ledger, or the one of a tile; what is none is left out and done again."""
    found = _json(data)
    entries = found if isinstance(found, list) else [found]
    records = []
    for entry in entries:
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            records.append(TileRecord.from_dict(entry))
    return records


def _attributes_of(key: str, document: dict[str, Any]) -> dict[str, Any]:
    """Where a root object keeps the group's attributes; a `.zgroup` keeps none."""
    if key == ".zattrs":
        return document
    if key == ".zmetadata":
        nested: dict[str, Any] = document["metadata"].setdefault(".zattrs", {})
        return nested
    attributes: dict[str, Any] = document.setdefault("attributes", {}) if key == "zarr.json" else {}
    return attributes


class OutputScene:
    """The arrays of a scene that tiles write, each opened when it is first needed."""

    def __init__(self, store: SceneStore) -> None:
        self._url = store.url
        self._arrays: dict[str, OutputArray] = {}
        self._lock = threading.Lock()

    def write(self, name: str, window: Window, block: NDArray[Any]) -> tuple[WrittenObject, ...]:
        """Write whole shards of the array of this path; see `OutputArray.write`."""
        return self._open(name).write(window, block)

    def read(self, name: str, window: Window) -> NDArray[Any]:
        """What is stored at a window of the array of this path."""
        return self._open(name).read(window)

    def _open(self, name: str) -> OutputArray:
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = OutputArray(self._url, name)
            return self._arrays[name]
