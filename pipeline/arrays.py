"""The arrays of one output scene: their layout on disk and whole-shard writes into them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from pipeline.grid import TileGrid, Window
from pipeline.settings import Layout
from pipeline.storage import is_local, open_filesystem

VARIABLE = "reflectance"
# Objects that make a group visible, in the order in which they are written; the last one decides.
ROOTS: dict[Layout, tuple[str, ...]] = {
    "sharded": ("zarr.json",),
    "plain": (".zmetadata", ".zattrs", ".zgroup"),
}
METADATA = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})
_PLAIN_BANDS = 16  # bands of a chunk in the plain layout


@dataclass(frozen=True)
class WrittenObject:
    """One object of the store: key below the scene, size, CRC-32C of its bytes."""

    key: str
    bytes: int
    crc32c: str


class _RecordingStore(WrapperStore[Store]):
    """Passes writes on and remembers size and checksum of each object."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: dict[str, WrittenObject] = {}

    async def set(self, key: str, value: Buffer) -> None:
        data = value.to_bytes()
        await super().set(key, value)
        self.written[key] = WrittenObject(f"{VARIABLE}/{key}", len(data), checksum(data))


def checksum(data: bytes) -> str:
    """CRC-32C as the ledger writes it."""
    return f"{google_crc32c.value(data):08x}"


class OutputArray:
    """The scene's array, open for whole-shard writes."""

    def __init__(self, url: str) -> None:
        self._store = _RecordingStore(_zarr_store(url))
        opened = zarr.open_array(self._store, mode="r+")
        # A tile of nothing but fill still leaves its shard: the ledger counts on it.
        self._array = opened.with_config({"write_empty_chunks": True})
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
        encode = self._array.metadata.encode_chunk_key
        return [encode((b, r, c)) for b in range(counts) for r in rows for c in columns]


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
        layout: `sharded` is Zarr v3; `plain` is Zarr v2, which every GDAL since 3.4 reads.
        encoding: `dtype`, `scale_factor`, `add_offset`, `_FillValue` of the values.

    Returns:
        Bytes by key; the objects named in `ROOTS` carry the consolidated metadata.
    """
    bands = dataset.sizes["band"]
    memory = MemoryStore()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        dataset.to_zarr(
            memory,
            compute=False,
            mode="w",
            zarr_format=3 if layout == "sharded" else 2,
            consolidated=True,
            encoding={VARIABLE: {**encoding, **_storage(bands, grid, layout)}},
        )
    return {key: value.to_bytes() for key, value in memory._store_dict.items()}


def _storage(bands: int, grid: TileGrid, layout: Layout) -> dict[str, Any]:
    if layout == "plain":
        blosc = numcodecs.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.Blosc.BITSHUFFLE)
        chunks = (min(bands, _PLAIN_BANDS), grid.shard, grid.shard)
        return {"chunks": chunks, "compressors": (blosc,)}
    return {
        "shards": (bands, grid.shard, grid.shard),
        "chunks": (bands, grid.chunk, grid.chunk),
        "compressors": (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()),
    }
