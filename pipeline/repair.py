"""Mend what `pipeline.integrity` finds.

The scene stays visible: each object is replaced in one write, a tile's by the bytes that its ledger
tells. Only `accept` writes anything else. Every change is noted in the scene's state, in
`repairs.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

import xarray as xr

from pipeline.arrays import is_of_group, root_last
from pipeline.copies import Copies
from pipeline.difference import compare_objects
from pipeline.errors import SceneError, UsageError
from pipeline.integrity import (
    Fault,
    read_records,
    repair_command,
    verify_scene,
)
from pipeline.ledger import LEDGER, TileRecord, ledger_bytes
from pipeline.provenance import package_versions
from pipeline.recompute import (
    Recomputer,
    Source,
    check_tiles,
    chosen_scenes,
    recorded_job,
    stored_objects,
)
from pipeline.scene_job import Model
from pipeline.storage import describe
from pipeline.store import SceneStore

_JOURNAL = "repairs.json"


@dataclass(frozen=True)
class Request:
    """What to mend; nothing named means all that a check finds.

    Attributes:
        tiles: keys "row.column" to compute again.
        metadata: restore metadata, coordinates, constants and the ledger from their copies.
        foreign: remove objects that nothing of this product wrote.
        accept: take what differs from the records, and change the records.
        deep: where a check looks for faults, read all data.
    """

    tiles: tuple[str, ...] = ()
    metadata: bool = False
    foreign: bool = False
    accept: bool = False
    deep: bool = False

    @property
    def everything(self) -> bool:
        return not (self.tiles or self.metadata or self.foreign)


@dataclass(frozen=True)
class Outcome:
    """What became of one thing to mend.

    Attributes:
        what: a tile, an object, or the copies.
        status: `repaired`; `sound` (it was as recorded); `removed`; `accepted` (the records were
            changed); `differs` (nothing was written); `refused`.
    """

    scene_id: str
    what: str
    status: Literal["repaired", "sound", "removed", "accepted", "differs", "refused"]
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.status in ("differs", "refused")


def repair(
    output: str, scenes: Sequence[str], request: Request, source: Source
) -> Iterator[Outcome]:
    """Mend published scenes; a scene that cannot be mended does not stop the others.

    Args:
        output: of the archive job.
        scenes: ids; empty means all.
        request: what to mend.
        source: how the scenes were made; the checkpoint is loaded when a tile needs it.

    Raises:
        UsageError: a scene or tile that is not there, or a checkpoint that cannot be used.
    """
    chosen = chosen_scenes(output, scenes)
    if request.tiles and len(scenes) != 1:
        raise UsageError("--tile needs exactly one --scene")
    model = cache(source.load_model)
    for scene_id in chosen:
        try:
            yield from _Repair(SceneStore(output, scene_id), request, source, model).run()
        except SceneError as error:
            yield Outcome(scene_id, "scene", "refused", str(error))


class _Repair:
    """The repair of one scene."""

    def __init__(
        self,
        store: SceneStore,
        request: Request,
        source: Source,
        model: Callable[[], Model],
    ) -> None:
        self._store, self._request, self._source, self._model = store, request, source, model
        self._recorded, _ = read_records(store)
        check_tiles(request.tiles, self._recorded)
        self._notes: list[dict[str, Any]] = []

    def run(self) -> Iterator[Outcome]:
        """Documents first, the root's last: it may make the scene visible again."""
        try:
            yield from self._steps()
        finally:
            self._write_journal()

    def _steps(self) -> Iterator[Outcome]:
        request, recorded = self._request, self._recorded
        faults = verify_scene(self._store, deep=request.deep) if self._needs_check() else []
        if request.everything and not faults:
            yield Outcome(self._store.scene_id, "scene", "sound")
        metadata = request.metadata or (request.everything and _of_metadata(faults))
        if metadata and recorded.copies is not None:
            yield from self._restore(recorded.copies)
        if request.foreign or request.everything:
            for key in dict.fromkeys(fault.key for fault in faults if fault.kind == "foreign"):
                self._store.remove(key)
                yield self._done(key, "removed")
        if tiles := self._tiles(faults):
            yield from self._recompute(tiles)
        if metadata and recorded.copies is not None:
            yield from self._restore_root(recorded.copies)
        elif metadata:
            yield self._adopt()

    def _needs_check(self) -> bool:
        return self._request.everything or self._request.foreign

    def _tiles(self, faults: Sequence[Fault]) -> list[str]:
        """Tiles to compute again, in order."""
        if not self._request.everything:
            return sorted(set(self._request.tiles), key=_place)
        if not self._recorded.records:  # no ledger and no copy of it
            return list(self._recorded.tiles)
        return sorted({fault.tile for fault in faults if fault.tile}, key=_place)

    def _done(
        self,
        what: str,
        status: Literal["repaired", "sound", "removed", "accepted", "differs", "refused"],
        note: str = "",
    ) -> Outcome:
        if status in ("repaired", "removed", "accepted"):
            self._notes.append({"what": what, "status": status, "note": note})
        return Outcome(self._store.scene_id, what, status, note)

    def _restore(self, copies: Copies) -> Iterator[Outcome]:
        """Everything but the root's documents."""
        for name, data in copies.state.items():
            if self._store.state_object(name) != data:
                self._store.put_state(name, data)
                yield self._done(f"state: {name}", "repaired")
        inner = [key for key in copies.scene if not _of_root(key)]
        groups = root_last(filter(is_of_group, inner))
        yield from self._put(copies, [key for key in inner if not is_of_group(key)] + groups)

    def _restore_root(self, copies: Copies) -> Iterator[Outcome]:
        root = root_last(filter(_of_root, copies.scene))
        present = self._store.objects()
        absent = self._recorded.objects.keys() - present.keys()
        if self._store.published() is None and absent:
            note = f"{len(absent)} objects of tiles are missing: {repair_command(self._store)}"
            yield self._done(root[-1], "refused", note)
            return
        yield from self._put(copies, root)

    def _put(self, copies: Copies, keys: Iterable[str]) -> Iterator[Outcome]:
        for key in keys:
            if self._store.read_if_present(key) != copies.scene[key]:
                self._store.put(key, copies.scene[key])
                yield self._done(key, "repaired")

    def _adopt(self) -> Outcome:
        """Keep what lies there as copies, if the operator says so and it can be read."""
        command = repair_command(self._store, "--metadata", "--accept")
        if not self._request.accept:
            note = f"there are none to restore from; `{command}` records what lies there now"
            return self._done("copies", "refused", note)
        try:
            xr.open_zarr(self._store.url, chunks=None).close()
            records = self._store.ledger()
        except Exception as error:  # whatever damaged metadata makes of a reader
            note = f"the scene cannot be opened ({describe(error)}): publish it anew with a run"
            return self._done("copies", "refused", note)
        if self._recorded.tiles and records.keys() != set(self._recorded.tiles):
            note = f"the ledger lacks tiles: {repair_command(self._store, '--accept')}"
            return self._done("copies", "refused", note)
        self._store.keep(self._store.present())
        return self._done("copies", "accepted", "what lies there was recorded")

    def _recompute(self, tiles: Sequence[str]) -> Iterator[Outcome]:
        model = self._model()
        job = recorded_job(self._store, self._recorded.made, model, self._source)
        records = dict(self._recorded.records)
        with Recomputer(self._store, self._recorded, job, model) as recomputer:
            for tile in tiles:
                record, objects = recomputer.tile(tile)
                yield self._settle(tile, record, objects, records)
        if records != self._recorded.records:
            self._enter(records)

    def _settle(
        self,
        tile: str,
        record: TileRecord,
        objects: Mapping[str, bytes],
        records: dict[str, TileRecord],
    ) -> Outcome:
        """Write a tile's objects if they are what the ledger tells, or that is accepted."""
        stored, known = stored_objects(self._store, objects), records.get(tile)
        if known is not None:
            expected = {item.key: item for item in known.objects}
            same = expected.keys() == objects.keys() and all(
                expected[key].is_of(data) for key, data in objects.items()
            )
        else:  # what is stored is the only witness
            same = bool(stored) and all(stored[key] == objects[key] for key in stored)
        if not same and not self._request.accept:
            return self._done(f"tile {tile}", "differs", self._by_how_much(record, objects, stored))
        changed = [key for key in objects if stored.get(key) != objects[key]]
        for key in changed:
            self._store.put(key, objects[key])
        note = f"{record.device}, {record.precision}"
        if not same:
            note = f"{self._by_how_much(record, objects, stored)}; {note}"
        if not same or known is None:
            records[tile] = record
        done: Literal["repaired", "sound"] = "repaired" if changed or known is None else "sound"
        return self._done(f"tile {tile}", done if same else "accepted", note)

    def _by_how_much(
        self, record: TileRecord, objects: Mapping[str, bytes], stored: Mapping[str, bytes]
    ) -> str:
        if stored == objects:
            return "what is stored is right and the ledger is not: --accept corrects the ledger"
        said = "computed again it is not what the ledger tells"
        parts = []
        for key in sorted(objects.keys() & stored.keys()):
            try:
                documents, one = self._recorded.documents, {key: stored[key]}
                parts += compare_objects(documents, one, objects, record.precision)
            except Exception:  # what is stored is damaged, so there is nothing to compare with
                continue
        if not parts:
            return f"{said}; nothing that can be read is stored to compare it with"
        worst = max(parts, key=lambda part: part.maximum / (part.rounding or 1.0))
        return f"{said}; {worst}"

    def _enter(self, records: Mapping[str, TileRecord]) -> None:
        """Change the ledger: the copy first, from which a half-done change is completed."""
        data, copies = ledger_bytes(records), self._recorded.copies
        if copies is not None:
            self._store.keep(Copies(copies.scene, {**copies.state, LEDGER: data}))
        self._store.put_state(LEDGER, data)

    def _write_journal(self) -> None:
        if not self._notes:
            return
        try:
            earlier = json.loads(self._store.state_object(_JOURNAL) or b"[]")
        except ValueError:
            earlier = []
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"time": now, "packages": package_versions(), "changes": self._notes}
        self._store.put_state(_JOURNAL, json.dumps([*earlier, entry], indent=1).encode())


def _of_metadata(faults: Iterable[Fault]) -> bool:
    return any(
        not fault.tile and fault.kind in ("altered", "missing", "ledger", "copies")
        for fault in faults
    )


def _of_root(key: str) -> bool:
    return "/" not in key


def _place(tile: str) -> tuple[int, ...]:
    return tuple(int(part) for part in tile.split("."))
