"""Whether a published scene is what its records say, and the command that mends each fault.

Two depths. The fast one lists the scene and reads its root documents and its state: it finds what
is missing, foreign or of another size. The deep one reads every object once, compares it with the
ledger's checksums (or with the copy) and decodes it chunk by chunk: it finds any changed byte.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.arrays import ROOTS, WrittenObject, is_of_tile
from pipeline.copies import Copies
from pipeline.documents import root_attributes
from pipeline.errors import SceneError
from pipeline.inventory import scenes_of
from pipeline.ledger import LEDGER, TileRecord, records_of
from pipeline.objects import array_of, decoded, grid_of, open_objects, tile_of
from pipeline.storage import describe, redact
from pipeline.store import SceneStore

Kind = Literal[
    "missing",  # an object is not there
    "size",  # it has another size than was written
    "checksum",  # its bytes are not those that were written
    "undecodable",  # its bytes are no chunks of its array
    "unreadable",  # the store does not hand it out
    "altered",  # metadata or a coordinate differs from its copy
    "foreign",  # nothing of this product wrote it
    "ledger",  # the ledger cannot be read, or lacks a tile
    "copies",  # there are no copies to compare with
    "catalogue",  # of the STAC catalogue
]
_AT_ONCE = 8
_IN_FLIGHT = 1 << 30  # bytes of objects that a deep check holds at once, unless one is larger
_ROOT_NAMES = frozenset(name for names in ROOTS.values() for name in names)


@dataclass(frozen=True)
class Fault:
    """One thing that is not as recorded.

    Attributes:
        kind: see `Kind`.
        message: one line for the operator; names the object.
        command: of this product, which mends this and nothing else.
        key: the object below the scene; empty where the fault is no single object's.
        tile: "row.column" of the tile that has to be computed again; else empty.
    """

    kind: Kind
    message: str
    command: str
    key: str = ""
    tile: str = ""

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Recorded:
    """What is known of a scene apart from its own objects.

    Attributes:
        copies: None where there are none.
        records: of the ledger, or of its copy where the ledger is damaged.
        documents: metadata of arrays by key below the scene.
        tiles: keys of all tiles, in order; those of the ledger where the grid is not known.
        attributes: of the root.
    """

    copies: Copies | None
    records: Mapping[str, TileRecord]
    documents: Mapping[str, bytes]
    tiles: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def made(self) -> Mapping[str, Any]:
        """How the scene was made (`pipeline.provenance`); empty where its root does not say."""
        made = self.attributes.get("sr_archive")
        return made if isinstance(made, dict) else {}

    @property
    def objects(self) -> dict[str, WrittenObject]:
        """What tiles wrote, by key."""
        return {item.key: item for record in self.records.values() for item in record.objects}

    @property
    def lacking(self) -> frozenset[str]:
        """Tiles without a record."""
        return frozenset(self.tiles) - self.records.keys()


def scenes_to_verify(output: str) -> dict[str, str]:
    """Fingerprints by id of all scenes that are published, or were until their root was lost.

    Raises:
        UsageError: the output holds no state of this product.
    """
    found = {}
    for entry in scenes_of(output):
        store = SceneStore(output, entry.scene_id)
        if entry.status == "published":
            found[entry.scene_id] = entry.fingerprint
        elif store.was_published():
            found[entry.scene_id] = str((store.state() or {}).get("fingerprint", ""))
    return found


def repair_command(store: SceneStore, *options: str) -> str:
    """`sr-archive repair` for one scene, fit for a shell; the output's address is redacted."""
    words = ("sr-archive", "repair", redact(store.output), "--scene", store.scene_id, *options)
    return shlex.join(words)


def read_records(store: SceneStore) -> tuple[Recorded, list[Fault]]:
    """The ledger and the copies of a scene, and what is wrong with these."""
    faults: list[Fault] = []
    copies = _copies(store, faults)
    records = _records(store, copies, faults)
    documents = copies.scene if copies is not None else store.present().scene
    try:
        rows, columns = grid_of(documents)
        tiles = tuple(f"{row}.{column}" for row in range(rows) for column in range(columns))
    except Exception:  # metadata may say anything, and is reported where it is compared
        tiles = tuple(sorted(records))
    attributes = root_attributes(documents.get) or {}
    found = Recorded(copies, records, documents, tiles, attributes)
    if records:
        for tile in filter(found.lacking.__contains__, tiles):
            command = repair_command(store, "--tile", tile)
            faults.append(Fault("ledger", f"the ledger lacks tile {tile}", command, tile=tile))
    return found, faults


def _copies(store: SceneStore, faults: list[Fault]) -> Copies | None:
    try:
        copies = store.copies()
        if copies is not None and copies.scene and LEDGER in copies.state:
            return copies
        reason = "no copies of its metadata were kept (an earlier version made it)"
    except SceneError as error:
        reason = error.message
    command = repair_command(store, "--metadata", "--accept")
    faults.append(Fault("copies", reason, command))
    return None


def _records(
    store: SceneStore, copies: Copies | None, faults: list[Fault]
) -> dict[str, TileRecord]:
    data = store.state_object(LEDGER)
    kept = None if copies is None else copies.state[LEDGER]
    problem = "is missing" if data is None else "cannot be read"
    records = None if data is None else _parsed(data)
    if records is not None and kept in (None, data):
        return records
    if records is not None:
        problem = "differs from its copy"
    options = ("--metadata",) if kept is not None else ()
    faults.append(Fault("ledger", f"the ledger {problem}", repair_command(store, *options)))
    return (_parsed(kept) if kept is not None else records) or {}


def _parsed(data: bytes) -> dict[str, TileRecord] | None:
    try:
        return records_of(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def verify_scene(store: SceneStore, *, deep: bool = False) -> list[Fault]:
    """Compare a scene with its records; none if all is well.

    Args:
        store: a scene that is published, or was until its root documents were lost.
        deep: read and decode every object; else the listing and a few documents are compared.
            At most `_IN_FLIGHT` bytes of objects, or the largest one, are held at once.
    """
    recorded, faults = read_records(store)
    present = store.listing()
    faults += _state_faults(store, recorded)
    faults += _metadata_faults(store, recorded, present, deep=deep)
    faults += _listing_faults(store, recorded, present)
    if deep:
        faults += _deep_faults(store, recorded, present)
    return faults


def _state_faults(store: SceneStore, recorded: Recorded) -> Iterator[Fault]:
    for name, kept in recorded.copies.state.items() if recorded.copies else ():
        if name != LEDGER and (data := store.state_object(name)) != kept:
            what = "is missing" if data is None else "differs from its copy"
            yield Fault("altered", f"state: {name} {what}", repair_command(store, "--metadata"))


def _metadata_faults(
    store: SceneStore, recorded: Recorded, present: Mapping[str, int], *, deep: bool
) -> list[Fault]:
    """Of documents and coordinates; the root's documents are always read."""
    if recorded.copies is None:
        return []
    kept, command = recorded.copies.scene, repair_command(store, "--metadata")
    absent = sorted(kept.keys() - present.keys())
    faults = [Fault("missing", f"missing {key}", command, key) for key in absent]

    def check(key: str) -> Fault | None:
        same = present[key] == len(kept[key])
        if same and (deep or key in _ROOT_NAMES):
            same = store.read_if_present(key) == kept[key]
        if same:
            return None
        return Fault("altered", f"altered {key}: it differs from its copy", command, key)

    return faults + _checked(check, sorted(kept.keys() & present.keys()), _AT_ONCE)


def _listing_faults(
    store: SceneStore, recorded: Recorded, present: Mapping[str, int]
) -> Iterator[Fault]:
    expected, copies = recorded.objects, recorded.copies
    for key in sorted(expected.keys() - present.keys()):
        yield _tile_fault(store, "missing", key, f"missing {key}")
    for key in sorted(present.keys() - expected.keys()):
        # Without a ledger or copies nobody can say what is foreign.
        ours = tile_of(key) in recorded.lacking if is_of_tile(key) else copies is None
        if recorded.records and not ours and (copies is None or key not in copies.scene):
            command = repair_command(store, "--foreign")
            yield Fault("foreign", f"foreign {key}", command, key)
    for key in sorted(expected.keys() & present.keys()):
        if present[key] != expected[key].bytes:
            said = f"size of {key}: {present[key]}, the ledger says {expected[key].bytes}"
            yield _tile_fault(store, "size", key, said)


def _tile_fault(store: SceneStore, kind: Kind, key: str, message: str) -> Fault:
    tile = tile_of(key)
    return Fault(kind, message, repair_command(store, "--tile", tile), key, tile)


def _deep_faults(store: SceneStore, recorded: Recorded, present: Mapping[str, int]) -> list[Fault]:
    """Of the objects that tiles wrote and that have the right size."""
    expected = recorded.objects
    keys = [
        key
        for key in sorted(filter(is_of_tile, present))
        if (key in expected and expected[key].bytes == present[key])
        or tile_of(key) in recorded.lacking
    ]

    def check(key: str) -> Fault | None:
        try:
            data = store.read(key)
        except Exception as error:  # whatever the store raises
            return _tile_fault(store, "unreadable", key, f"cannot read {key}: {describe(error)}")
        item = expected.get(key)
        if item is not None and not item.is_of(data):
            said = f"checksum of {key} differs from the ledger's"
            return _tile_fault(store, "checksum", key, said)
        return _undecodable(store, recorded.documents, key, data)

    largest = max((present[key] for key in keys), default=1)
    return _checked(check, keys, max(1, min(_AT_ONCE, _IN_FLIGHT // max(1, largest))))


def _undecodable(
    store: SceneStore, documents: Mapping[str, bytes], key: str, data: bytes
) -> Fault | None:
    try:
        array = open_objects(documents, array_of(key), {key: data})
        for _ in decoded(array, key):
            continue
    except Exception as error:  # a codec may raise anything
        said = f"{key} cannot be decoded: {describe(error)}"
        return _tile_fault(store, "undecodable", key, said)
    return None


def _checked(
    check: Callable[[str], Fault | None], keys: Iterable[str], at_once: int
) -> list[Fault]:
    with ThreadPoolExecutor(at_once) as pool:
        return [fault for fault in pool.map(check, keys) if fault is not None]
