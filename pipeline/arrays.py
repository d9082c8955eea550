"""The arrays of one output scene: their layout on disk and whole-shard writes into them."""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import google_crc32c
import numcodecs
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from pipeline.grid import Window
from pipeline.settings import Layout
from pipeline.shard import Block, ShardEncoder
from pipeline.storage import is_local, join, open_filesystem

VARIABLE = "reflectance"
# Documents that make a group visible, in the order in which they are written; the last decides.
ROOTS: dict[Layout, tuple[str, ...]] = {
    "sharded": ("zarr.json",),
    "plain": (".zmetadata", ".zattrs", ".zgroup"),
}
_GROUP = re.compile(r"(overviews/(\d+/)?)?(zarr\.json|\.zgroup|\.zattrs|\.zmetadata)")
_TILED = re.compile(
    r"(overviews/\d+/)?(reflectance|reflectance_spread|quality|lat|lon)/(?!(.*/)?(zarr\.json|\.zarray|\.zattrs)$).+"
)
MAX_CHUNK = 128  # pixels along a chunk's side
_PLAIN_BANDS = 16  # bands of a chunk in the plain layout
# Bytes that blosc shuffles and compresses at a time. Of its own choice, 32 KiB, a bit's plane has a
# KiB or two, too little for Zstandard to learn what is noise: half as fast, with a larger result.
_BLOSC_BLOCK = 1 << 20
COMPRESSORS = (
    BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=_BLOSC_BLOCK),
    Crc32cCodec(),
)
_Bytes = bytes  # where a field of that name hides the type


@dataclass(frozen=True)
class WrittenObject:
    """One object of the store: key below the scene, size, CRC-32C and SHA-256 of its bytes.

    A CRC-32C over bytes that end in their own CRC-32C, as a shard's chunks do, depends on their
    number alone. So it finds damage, and does not tell one sound shard from another: the SHA-256
    does. Records of earlier versions lack it.
    """

    key: str
    bytes: int
    crc32c: str
    sha256: str = ""

    @classmethod
    def of(cls, key: str, data: _Bytes) -> WrittenObject:
        return cls(key, len(data), checksum(data), hashlib.sha256(data).hexdigest())

    def is_of(self, data: _Bytes) -> bool:
        """Whether these are the bytes that were written."""
        same = len(data) == self.bytes and checksum(data) == self.crc32c
        return same and self.sha256 in ("", hashlib.sha256(data).hexdigest())


class _RecordingStore(WrapperStore[Store]):
    """Passes writes on and remembers size and checksum of each object."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self._name = name
        self.written: dict[str, WrittenObject] = {}

    async def set(self, key: str, value: Buffer) -> None:
        data = value.to_bytes()
        await super().set(key, value)
        self.written[key] = WrittenObject.of(f"{self._name}/{key}", data)


def is_of_group(key: str) -> bool:
    """Whether an object's key, below the scene, is a document of one of its groups."""
    return _GROUP.fullmatch(key) is not None


def is_of_tile(key: str) -> bool:
    """Whether it is data that a tile writes."""
    return _TILED.fullmatch(key) is not None


def root_last(keys: Iterable[str]) -> list[str]:
    """Documents of groups in the order in which to write them."""
    order = [name for names in ROOTS.values() for name in names]
    return sorted(keys, key=lambda key: (-key.count("/"), order.index(key.rpartition("/")[2])))


def checksum(data: bytes) -> str:
    """CRC-32C as the ledger writes it."""
    return f"{google_crc32c.value(data):08x}"


class OutputArray:
    """One array of a scene, open for whole-shard writes; bands first where it has bands."""

    def __init__(self, scene_url: str, name: str) -> None:
        self._name, self._plain = name, _zarr_store(join(scene_url, name))
        self._store = _RecordingStore(self._plain, name)
        opened = zarr.open_array(self._store, mode="r+")
        # A tile of nothing but fill still leaves its shard: the ledger counts on it.
        self._array = opened.with_config({"write_empty_chunks": True})
        self.shard = self._array.shards or self._array.chunks
        self._encoder = ShardEncoder.of(opened)

    def read(self, window: Window) -> NDArray[Any]:
        """The stored `(..., rows, cols)` at any window of the array's pixels."""
        return np.asarray(self._array[..., *window.slices])

    def write(self, window: Window, block: Block) -> tuple[WrittenObject, ...]:
        """Write `(..., rows, cols)` at a window of the array's pixels.

        Raises:
            ValueError: the block has another shape, or the window is not made of whole shards,
                which would lose data silently where two writers meet.
        """
        rows, columns = window.slices
        for piece, side, size in zip(
            (rows, columns), self.shard[-2:], self._array.shape[-2:], strict=True
        ):
            if piece.start % side or (piece.stop % side and piece.stop != size):
                raise ValueError(f"window {window} is not aligned to shards of {self.shard}")
        if block.shape != (*self._array.shape[:-2], *window.shape):
            raise ValueError(f"a block of {block.shape} at {window} of {self._array.shape}")
        keys = self._keys(window)
        if self._encoder is not None and len(keys) == 1:
            return (self._put(keys[0], self._encoder.encode(block)),)
        self._array[..., rows, columns] = block[...]
        return tuple(self._store.written.pop(key) for key in sorted(keys))

    def _put(self, key: str, data: bytes) -> WrittenObject:
        sync(self._plain.set(key, default_buffer_prototype().buffer.from_bytes(data)))
        return WrittenObject.of(f"{self._name}/{key}", data)

    def _keys(self, window: Window) -> list[str]:
        ahead = zip(self._array.shape[:-2], self.shard[:-2], strict=True)
        counts = [range(-(-size // side)) for size, side in ahead]
        counts += [
            range(piece.start // side, -(-piece.stop // side))
            for piece, side in zip(window.slices, self.shard[-2:], strict=True)
        ]
        encode = self._array.metadata.encode_chunk_key
        return [encode(place) for place in product(*counts)]


def _zarr_store(url: str) -> Store:
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return LocalStore(path)
    return FsspecStore.from_url(url)


@dataclass(frozen=True)
class Level:
    """One group of a store: its content, lazy where tiles write it, and a shard's side there."""

    dataset: xr.Dataset
    shard: int


def scene_template(
    groups: Mapping[str, Level], layout: Layout, encoding: dict[str, Any]
) -> dict[str, bytes]:
    """The objects of an empty output store, as xarray itself writes them.

    Args:
        groups: by path; the root's is "".
        layout: `sharded` is Zarr v3; `plain` is Zarr v2, which every GDAL since 3.4 reads.
        encoding: `dtype`, `scale_factor`, `add_offset`, `_FillValue` of the values.

    Returns:
        Bytes by key; the root's carry the consolidated metadata of all groups.
    """
    memory = MemoryStore()
    version: Literal[2, 3] = 3 if layout == "sharded" else 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        for path, level in groups.items():
            level.dataset.to_zarr(
                memory,
                group=path or None,
                compute=False,
                mode="w",
                zarr_format=version,
                consolidated=False,
                encoding=_encodings(level, layout, encoding),
            )
        zarr.consolidate_metadata(memory, zarr_format=version)
    return {key: value.to_bytes() for key, value in memory._store_dict.items()}


def _encodings(level: Level, layout: Layout, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        str(name): {
            **(values if name == VARIABLE else {}),
            **_storage(array.shape[:-2], level.shard, layout),
        }
        for name, array in level.dataset.variables.items()
        if array.chunks is not None
    }


def _storage(bands: tuple[int, ...], shard: int, layout: Layout) -> dict[str, Any]:
    if layout == "plain":
        blosc = numcodecs.Blosc("zstd", 1, numcodecs.Blosc.BITSHUFFLE, _BLOSC_BLOCK)
        chunks = (*(min(size, _PLAIN_BANDS) for size in bands), shard, shard)
        return {"chunks": chunks, "compressors": (blosc,)}
    side = chunk_side(shard)
    storage = {"chunks": (*bands, side, side), "compressors": COMPRESSORS}
    return storage if side == shard else {**storage, "shards": (*bands, shard, shard)}


def chunk_side(shard: int) -> int:
    """Pixels along a chunk's side: the largest part of a shard up to `MAX_CHUNK`."""
    return next(
        shard // n for n in range(1, shard + 1) if shard % n == 0 and shard // n <= MAX_CHUNK
    )


class OutputScene:
    """The arrays of a scene that tiles write, each opened when it is first needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._arrays: dict[str, OutputArray] = {}
        self._lock = threading.Lock()

    def write(self, name: str, window: Window, block: Block) -> tuple[WrittenObject, ...]:
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
