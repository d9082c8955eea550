"""The output: one Zarr store per scene, its ledger of finished tiles, and the one write that
publishes it.

    <output>/<scene_id>.zarr/                 the scene; its root zarr.json is written last
    <output>/_sr-archive/scenes/<scene_id>/   what resuming needs: plan, calibration, ledger
    <output>/_sr-archive/quarantine/<scene_id>.json
    <output>/_sr-archive/runs/<run_id>.json

Existence is decided by objects that are read, never by prefixes that seem to exist.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from pipeline.grid import TileGrid, Window
from pipeline.settings import Layout
from pipeline.storage import is_local, join, open_filesystem, write_atomic

STATE = "_sr-archive"
VARIABLE = "reflectance"
ROOT = "zarr.json"
_PLAIN_BANDS = 16  # bands of a chunk in the plain layout


@dataclass(frozen=True)
class WrittenObject:
    """One object of the store: key below the scene, size, CRC-32C of its bytes."""

    key: str
    bytes: int
    crc32c: str


@dataclass(frozen=True)
class TileRecord:
    """The ledger's line for one finished tile.

    Attributes:
        tile: "row.column".
        objects: what it wrote; one shard, or in the plain layout its chunks.
        seconds: read, compute and write, by name.
        valid: valid LR pixels x bands in the core.
        minimum, maximum: of the valid output, physical units; None where all is fill.
        worker: the process that made it, for the operator.
    """

    tile: str
    objects: tuple[WrittenObject, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    valid: int = 0
    minimum: float | None = None
    maximum: float | None = None
    worker: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TileRecord:
        objects = tuple(WrittenObject(**entry) for entry in values["objects"])
        return cls(**{**values, "objects": objects})


class _RecordingStore(WrapperStore[Store]):
    """Passes writes on and remembers size and checksum of each object."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: dict[str, WrittenObject] = {}

    async def set(self, key: str, value: Buffer) -> None:
        data = value.to_bytes()
        await super().set(key, value)
        checksum = f"{google_crc32c.value(data):08x}"
        self.written[key] = WrittenObject(f"{VARIABLE}/{key}", len(data), checksum)


class OutputArray:
    """The scene's array, open for whole-shard writes."""

    def __init__(self, url: str) -> None:
        self._store = _RecordingStore(_zarr_store(url))
        self._array = zarr.open_array(
            self._store, mode="r+", zarr_format=3, config={"write_empty_chunks": True}
        )
        self.shard = self._array.shards or self._array.chunks

    def write(self, window: Window, block: NDArray[Any]) -> tuple[WrittenObject, ...]:
        """Write `(bands, rows, cols)` at a window of HR pixels.

        Raises:
            ValueError: the window is not made of whole shards, which would lose data silently
                where two writers meet.
        """
        rows, columns = window.slices
        for piece, side, size in zip(
            (rows, columns), self.shard[1:], self._array.shape[1:], strict=True
        ):
            if piece.start % side or (piece.stop % side and piece.stop != size):
                raise ValueError(f"window {window} is not aligned to shards of {self.shard}")
        self._array[:, rows, columns] = block
        return tuple(self._store.written.pop(key) for key in sorted(self._keys(window)))

    def _keys(self, window: Window) -> list[str]:
        counts = -(-self._array.shape[0] // self.shard[0])
        rows, columns = (
            range(piece.start // side, -(-piece.stop // side))
            for piece, side in zip(window.slices, self.shard[1:], strict=True)
        )
        return [f"c/{b}/{r}/{c}" for b in range(counts) for r in rows for c in columns]


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
        data = read_if_present(self._fs, join(self.path, ROOT))
        if data is None:
            return None
        attributes: dict[str, Any] = json.loads(data).get("attributes", {})
        return attributes

    def state(self) -> dict[str, Any] | None:
        """What `prepare` recorded (fingerprint, number of tiles), or None."""
        data = read_if_present(self._fs, join(self._state, "scene.json"))
        return None if data is None else json.loads(data)

    def calibration(self) -> bytes | None:
        return read_if_present(self._fs, join(self._state, "calibration.safetensors"))

    def prepare(
        self, template: dict[str, bytes], calibration: bytes, state: dict[str, Any]
    ) -> None:
        """Create the arrays' metadata and coordinates, all but the root; record the state last.

        Args:
            template: objects by key, from `scene_template`.
            calibration: the scene's constants.
            state: JSON facts with at least `fingerprint` and `tiles`.
        """
        for key, data in template.items():
            if key != ROOT:
                write_atomic(self._fs, join(self.path, key), data)
        write_atomic(self._fs, join(self._state, "root.json"), template[ROOT])
        write_atomic(self._fs, join(self._state, "calibration.safetensors"), calibration)
        write_atomic(self._fs, join(self._state, "scene.json"), json.dumps(state).encode())

    def open_array(self) -> OutputArray:
        return OutputArray(join(self.url, VARIABLE))

    def record(self, record: TileRecord) -> None:
        """Add one finished tile to the ledger; called after its shard is written."""
        data = json.dumps(asdict(record)).encode()
        write_atomic(self._fs, join(self._state, "tiles", f"{record.tile}.json"), data)

    def ledger(self) -> dict[str, TileRecord]:
        """Finished tiles by key: the compact ledger of a published scene, or the single records."""
        compact = read_if_present(self._fs, join(self._state, "ledger.json"))
        entries = json.loads(compact) if compact else self._single_records()
        return {entry["tile"]: TileRecord.from_dict(entry) for entry in entries}

    def _single_records(self) -> list[dict[str, Any]]:
        paths = [path for path in self._find(join(self._state, "tiles")) if path.endswith(".json")]
        return [json.loads(data) for data in self._fs.cat(paths).values()] if paths else []

    def publish(self, attributes: dict[str, Any]) -> None:
        """Make the scene visible: ledger first, then the root metadata in one write.

        Raises:
            RuntimeError: the ledger does not hold every tile.
        """
        state = self.state() or {}
        records = self.ledger()
        if len(records) != state.get("tiles"):
            raise RuntimeError(f"{len(records)} of {state.get('tiles')} tiles are in the ledger")
        entries = [asdict(records[key]) for key in sorted(records)]
        write_atomic(self._fs, join(self._state, "ledger.json"), json.dumps(entries).encode())
        root = json.loads(self._fs.cat_file(join(self._state, "root.json")))
        root["attributes"] = {**root.get("attributes", {}), **attributes}
        write_atomic(self._fs, join(self.path, ROOT), json.dumps(root, indent=1).encode())
        self._remove(join(self._state, "tiles"))
        self.clear_quarantine()

    def unpublish(self) -> None:
        """Remove the scene, its root first, so that no reader sees a part; then its state."""
        if self.published() is not None:
            self._fs.rm_file(join(self.path, ROOT))
        self._remove(self.path)
        self._remove(self._state)

    def quarantine(self, facts: dict[str, Any]) -> None:
        write_atomic(self._fs, self._quarantine, json.dumps(facts, indent=1).encode())

    def quarantined(self) -> dict[str, Any] | None:
        data = read_if_present(self._fs, self._quarantine)
        return None if data is None else json.loads(data)

    def clear_quarantine(self) -> None:
        if read_if_present(self._fs, self._quarantine) is not None:
            self._fs.rm_file(self._quarantine)

    def objects(self) -> dict[str, int]:
        """Sizes of the array's data objects by key below the scene."""
        prefix = join(self.path, VARIABLE)
        found = self._find(join(prefix, "c"))
        return {
            f"{VARIABLE}{path[len(prefix) :]}": int(info["size"]) for path, info in found.items()
        }

    def read(self, key: str) -> bytes:
        data: bytes = self._fs.cat_file(join(self.path, key))
        return data

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


def read_if_present(filesystem: Any, path: str) -> bytes | None:
    try:
        data: bytes = filesystem.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data


def _zarr_store(url: str) -> Store:
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return LocalStore(path)
    return FsspecStore.from_url(url)


def scene_template(
    dataset: xr.Dataset, grid: TileGrid, layout: Layout, encoding: dict[str, Any]
) -> dict[str, bytes]:
    """The objects of an empty output store, as xarray itself writes them.

    Args:
        dataset: coordinates, attributes and the lazy, dask-backed variable.
        grid: gives shards and chunks.
        layout: sharded, or plain chunks for readers that know no shards.
        encoding: `dtype`, `scale_factor`, `add_offset`, `_FillValue` of the values.

    Returns:
        Bytes by key; the root `zarr.json` carries the consolidated metadata.
    """
    bands = dataset.sizes["band"]
    blosc = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    if layout == "sharded":
        storage: dict[str, Any] = {
            "shards": (bands, grid.shard, grid.shard),
            "chunks": (bands, grid.chunk, grid.chunk),
            "compressors": (blosc, Crc32cCodec()),
        }
    else:
        storage = {
            "chunks": (min(bands, _PLAIN_BANDS), grid.shard, grid.shard),
            "compressors": (blosc,),
        }
    memory = MemoryStore()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        dataset.to_zarr(
            memory,
            compute=False,
            mode="w",
            zarr_format=3,
            consolidated=True,
            encoding={VARIABLE: {**encoding, **storage}},
        )
    return {key: value.to_bytes() for key, value in memory._store_dict.items()}


def verify_scene(store: SceneStore, *, deep: bool = False) -> list[str]:
    """Compare the ledger with the objects; return the faults found, none if all is well.

    Args:
        store: the scene.
        deep: read every object and compare its checksum; else only sizes are compared.
    """
    expected = {item.key: item for record in store.ledger().values() for item in record.objects}
    present = store.objects()
    faults = [f"missing {key}" for key in sorted(expected.keys() - present.keys())]
    faults += [f"foreign {key}" for key in sorted(present.keys() - expected.keys())]
    for key in sorted(expected.keys() & present.keys()):
        item = expected[key]
        if present[key] != item.bytes:
            faults.append(f"size of {key}: {present[key]}, the ledger says {item.bytes}")
        elif deep and f"{google_crc32c.value(store.read(key)):08x}" != item.crc32c:
            faults.append(f"checksum of {key} differs from the ledger's {item.crc32c}")
    return faults


def empty_like(dtype: np.dtype[Any], shape: tuple[int, ...], fill: float | None) -> NDArray[Any]:
    """An array of the fill value, or zeros where none is declared."""
    return np.full(shape, 0 if fill is None else fill, dtype=dtype)
