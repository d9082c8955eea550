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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

from pipeline.arrays import ROOTS, is_of_group, is_of_tile, root_last
from pipeline.copies import Copies
from pipeline.documents import json_object, root_attributes, with_root_attributes
from pipeline.errors import SceneError, StoreUnavailable
from pipeline.ledger import LEDGER, TileRecord, ledger_bytes, records_in
from pipeline.storage import (
    is_leftover,
    is_local,
    join,
    open_filesystem,
    read_if_present,
    write_atomic,
)

STATE = "_sr-archive"
CALIBRATION = "calibration.safetensors"
_COPIES = "copies.zip"
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def is_safe_id(scene_id: object) -> bool:
    """Whether a scene's id is one path component and nothing else, as `catalog.scene_id` makes."""
    return isinstance(scene_id, str) and _ID.fullmatch(scene_id) is not None


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
        return None if data is None else json_object(data)

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
        records = [record for data in documents for record in records_in(data)]
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
        groups = json_object(self._fs.cat_file(join(self._state, "groups.json")))
        documents = with_root_attributes(groups, attributes)
        if documents is None:
            where = f"{STATE}/scenes/{self.scene_id}"
            raise SceneError("output-failed", f"{where} is damaged: remove it and run again")
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
        return None if data is None else json_object(data)

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
