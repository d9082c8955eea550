"""Whole shards in bytes: those that zarr-python writes, made with less work.

zarr-python can write any part of any shard, through any chain of codecs. A tile writes all of one
shard through one known chain, so its chunks are compressed and joined right here, each once, in
several threads: blosc leaves the interpreter's lock. The layout is that of the Zarr v3 codecs
`sharding_indexed`, `bytes`, `blosc` and `crc32c`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_NOWHERE = 2**64 - 1  # offset and length, in a shard's index, of a chunk that it does not hold

Place = tuple[int, ...]


class Block(Protocol):
    """What is to be stored: an array, or something that has parts of one made when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: Any, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class ShardEncoder:
    """How an array's shards become bytes.

    Attributes:
        shard, chunk: shapes; equal where the array is not sharded.
        dtype: as it is stored, little-endian.
        fill: what lies beyond the array's edge.
        blosc: compresses a chunk.
        indexed: the array is sharded.
    """

    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Any
    blosc: Any
    indexed: bool

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> ShardEncoder | None:
        """The encoder of an array's shards, or None where they are not of the known kind."""
        dtype = np.dtype(array.dtype)
        if array.metadata.zarr_format != 3 or dtype.kind not in "iuf":
            return None
        codecs: Sequence[Any] = array.metadata.codecs
        indexed = isinstance(codecs[0], ShardingCodec)
        inner = _codecs_of_chunks(codecs[0]) if indexed else codecs
        if inner is None or not _is_known(inner):
            return None
        return cls(
            array.shards or array.chunks,
            array.chunks,
            dtype.newbyteorder("<"),
            array.fill_value,
            _blosc(inner[1]),
            indexed,
        )

    def encode(self, block: Block) -> bytes:
        """The shard that begins with this block, as large as the shard or as the array's rest."""
        spans = zip(block.shape, self.chunk, strict=True)
        places = sorted(product(*(range(-(-size // side)) for size, side in spans)), key=_morton)
        chunks = list(_threads().map(lambda place: self._chunk(block, place), places))
        parts = [part for chunk in chunks for part in chunk]
        if self.indexed:
            parts += _checked(self._index(places, [sum(map(len, chunk)) for chunk in chunks]))
        return b"".join(parts)

    def _chunk(self, block: Block, place: Place) -> tuple[bytes, bytes]:
        corner = [index * side for index, side in zip(place, self.chunk, strict=True)]
        part = block[tuple(slice(at, at + n) for at, n in zip(corner, self.chunk, strict=True))]
        if part.shape != self.chunk:
            whole = np.full(self.chunk, self.fill, self.dtype)
            whole[tuple(slice(size) for size in part.shape)] = part
            part = whole
        return _checked(self.blosc.encode(np.ascontiguousarray(part, self.dtype)))

    def _index(self, places: Sequence[Place], lengths: Sequence[int]) -> bytes:
        counts = [size // side for size, side in zip(self.shard, self.chunk, strict=True)]
        index = np.full((*counts, 2), _NOWHERE, "<u8")
        offset = 0
        for place, length in zip(places, lengths, strict=True):
            index[place] = offset, length
            offset += length
        return index.tobytes()


def _codecs_of_chunks(codec: Any) -> tuple[Any, ...] | None:
    index = codec.index_codecs
    known = codec.index_location.value == "end" and len(index) == 2
    known = known and _is_little(index[0]) and isinstance(index[1], Crc32cCodec)
    return codec.codecs if known else None


def _is_known(codecs: Sequence[Any]) -> bool:
    kinds = (BytesCodec, BloscCodec, Crc32cCodec)
    return tuple(map(type, codecs)) == kinds and _is_little(codecs[0])


def _is_little(codec: Any) -> bool:
    """Whether numbers are stored so; single bytes have no order."""
    return isinstance(codec, BytesCodec) and getattr(codec.endian, "value", "little") == "little"


def _blosc(codec: BloscCodec) -> Any:
    return numcodecs.Blosc(
        cname=codec.cname.value,
        clevel=codec.clevel,
        shuffle=_SHUFFLES[codec.shuffle.value],
        blocksize=codec.blocksize,
        typesize=codec.typesize,
    )


def _checked(data: bytes) -> tuple[bytes, bytes]:
    """Bytes and what the codec `crc32c` puts behind them."""
    return data, google_crc32c.value(data).to_bytes(4, "little")


def _morton(place: Place) -> int:
    """Where a chunk comes in a shard: along the Z curve, first axis fastest, as zarr-python."""
    axes = len(place)
    bits = range(max(place).bit_length())
    return sum(
        (place[axis] >> bit & 1) << (bit * axes + axis) for bit in bits for axis in range(axes)
    )


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """As many as zarr-python's codecs get."""
    return ThreadPoolExecutor(zarr.config.get("threading.max_workers"), "shard")
