"""One scene in the output, the ledger of its finished tiles, and the write that publishes it.

    <output>/<scene_id>.zarr/                 the scene; its root metadata is written last
    <output>/_sr-archive/scenes/<scene_id>/   what resuming needs: plan, calibration, ledger
    <output>/_sr-archive/quarantine/<scene_id>.json
    <output>/_sr-archive/runs/<run_id>.json

Existence is decided by objects that are read, never by prefixes that seem to exist.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
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
from pipeline.errors import StoreUnavailable
from pipeline.grid import Window
from pipeline.storage import join, open_filesystem, read_if_present, write_atomic

STATE = "_sr-archive"


@dataclass(frozen=True)
class TileRecord:
    """The ledger's line for one finished tile.

    Attributes:
        tile: "row.column".
        objects: what it wrote; one shard, or in the plain layout its chunks.
        seconds: read, compute and write, by name.
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
        objects = tuple(WrittenObject(**entry) for entry in values["objects"])
        return cls(**{**values, "objects": objects})


class SceneStore:
    """One scene in the output."""

    def __init__(self, output: str, scene_id: str) -> None:
        self.scene_id = scene_id
        self.url = join(output, f"{scene_id}.zarr")
        self._fs, self.path = open_filesystem(self.url)
        _, self._state = open_filesystem(join(output, STATE, "scenes", scene_id))
        _, self._quarantine = open_filesystem(join(output, STATE, "quarantine", f"{scene_id}.json"))

    def published(self) -> dict[str, Any] | None:
        """The root attributes if the scene is published, else None."""
        for roots in ROOTS.values():
            marker = read_if_present(self._fs, join(self.path, roots[-1]))
            if marker is None:
                continue
            inside = json.loads(marker).get("attributes")
            beside = inside or json.loads(self._fs.cat_file(join(self.path, ".zattrs")))
            return dict(beside)
        return None

    def zarr_format(self) -> Literal[2, 3]:
        """Of the published scene, by the object that published it."""
        return 3 if read_if_present(self._fs, join(self.path, "zarr.json")) is not None else 2

    def state(self) -> dict[str, Any] | None:
        """What `prepare` recorded (fingerprint, number of tiles), or None."""
        data = read_if_present(self._fs, join(self._state, "scene.json"))
        return None if data is None else json.loads(data)

    def calibration(self) -> bytes | None:
        return read_if_present(self._fs, join(self._state, "calibration.safetensors"))

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
        write_atomic(self._fs, join(self._state, "groups.json"), json.dumps(held_back).encode())
        write_atomic(self._fs, join(self._state, "calibration.safetensors"), calibration)
        write_atomic(self._fs, join(self._state, "scene.json"), json.dumps(state).encode())

    def record(self, record: TileRecord) -> None:
        """Add one finished tile to the ledger; called after its shard is written."""
        data = json.dumps(asdict(record)).encode()
        write_atomic(self._fs, join(self._state, "tiles", f"{record.tile}.json"), data)

    def ledger(self) -> dict[str, TileRecord]:
        """Finished tiles by key: the compact ledger of a published scene, or the single records."""
        compact = read_if_present(self._fs, join(self._state, "ledger.json"))
        entries = json.loads(compact) if compact else self._single_records()
        return {entry["tile"]: TileRecord.from_dict(entry) for entry in entries}

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

    def _single_records(self) -> list[dict[str, Any]]:
        paths = [path for path in self._find(join(self._state, "tiles")) if path.endswith(".json")]
        return [json.loads(data) for data in self._fs.cat(paths).values()] if paths else []

    def publish(self, attributes: dict[str, Any], records: Mapping[str, TileRecord]) -> None:
        """Make the scene visible: ledger first, then the root metadata in one write.

        Args:
            attributes: what to add to the root's.
            records: the whole ledger.

        Raises:
            RuntimeError: the ledger does not hold every tile.
        """
        state = self.state() or {}
        if len(records) != state.get("tiles"):
            raise RuntimeError(f"{len(records)} of {state.get('tiles')} tiles are in the ledger")
        entries = [asdict(replace(records[key], consistency="")) for key in sorted(records)]
        write_atomic(self._fs, join(self._state, "ledger.json"), json.dumps(entries).encode())
        groups = json.loads(self._fs.cat_file(join(self._state, "groups.json")))
        for key, document in groups.items():
            if "/" not in key:
                _attributes_of(key, document).update(attributes)
            write_atomic(self._fs, join(self.path, key), json.dumps(document, indent=1).encode())
        with suppress(StoreUnavailable):  # the scene is published, and what stays harms nobody
            self._remove(join(self._state, "tiles"))
            self.clear_quarantine()

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
        return None if data is None else json.loads(data)

    def clear_quarantine(self) -> None:
        if read_if_present(self._fs, self._quarantine) is not None:
            self._fs.rm_file(self._quarantine)

    def objects(self) -> dict[str, int]:
        """Sizes of the data objects that tiles write, by key below the scene."""
        return {key: int(info["size"]) for key, info in self._keys().items() if is_of_tile(key)}

    def read(self, key: str) -> bytes:
        data: bytes = self._fs.cat_file(join(self.path, key))
        return data

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
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = OutputArray(self._url, name)
        return self._arrays[name].write(window, block)
