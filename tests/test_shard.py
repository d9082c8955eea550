"""Shards made here are those that zarr-python writes, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec
from zarr.storage import MemoryStore

from pipeline.shard import ShardEncoder

BITSHUFFLED = (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec())


def make_array(shape: tuple[int, ...], **options: Any) -> zarr.Array[Any]:
    array = zarr.create_array(
        MemoryStore(), shape=shape, **{"compressors": BITSHUFFLED, "fill_value": 0, **options}
    )
    return array.with_config({"write_empty_chunks": True})


def objects_of(array: zarr.Array[Any]) -> dict[str, bytes]:
    memory: Any = array.store
    return {key: value.to_bytes() for key, value in memory._store_dict.items() if "/" in key}


def made_here(array: zarr.Array[Any], values: np.ndarray) -> dict[str, bytes]:
    """All shards of an array by key, each from its own block."""
    encoder = ShardEncoder.of(array)
    assert encoder is not None
    found = {}
    counts = [-(-size // side) for size, side in zip(values.shape, encoder.shard, strict=True)]
    for place in np.ndindex(*counts):
        corner = [index * side for index, side in zip(place, encoder.shard, strict=True)]
        part = tuple(slice(at, at + side) for at, side in zip(corner, encoder.shard, strict=True))
        found[array.metadata.encode_chunk_key(place)] = encoder.encode(values[part])
    return found


@settings(max_examples=40, deadline=None)
@given(
    bands=st.sampled_from([None, 1, 3]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    side=st.integers(4, 9),
    across=st.integers(1, 6),
    dtype=st.sampled_from(["int16", "uint16", "int32", "uint8", "float32", "float64"]),
    fill=st.sampled_from([0, 7]),
    block=st.sampled_from([0, 256, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_the_bytes_are_those_of_zarr_python(
    bands: int | None,
    size: tuple[int, int],
    side: int,
    across: int,
    dtype: str,
    fill: int,
    block: int,
    seed: int,
) -> None:
    ahead = () if bands is None else (bands,)
    shards = {"shards": (*ahead, side * across, side * across)} if across > 1 else {}
    array = make_array(
        (*ahead, *size),
        dtype=dtype,
        chunks=(*ahead, side, side),
        fill_value=fill,
        compressors=(replace(BITSHUFFLED[0], blocksize=block), BITSHUFFLED[1]),
        **shards,
    )
    values = np.random.default_rng(seed).integers(0, 9, (*ahead, *size)).astype(dtype)
    array[...] = values
    assert made_here(array, values) == objects_of(array)
    assert np.array_equal(array[...], values)


@pytest.mark.parametrize("content", ["fill", "noise"])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_large_chunks_too(dtype: str, content: str) -> None:
    fill: float = float("nan") if dtype == "float32" else -32768
    array = make_array(
        (5, 300, 256), dtype=dtype, chunks=(5, 128, 128), shards=(5, 256, 256), fill_value=fill
    )
    values = np.full(array.shape, fill, dtype)
    if content == "noise":
        values[...] = np.random.default_rng(0).normal(3000, 900, values.shape).astype(dtype)
    array[...] = values
    assert made_here(array, values) == objects_of(array)


def test_zarr_python_reads_them(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path, shape=(2, 40, 56), dtype="int16", chunks=(2, 8, 8), shards=(2, 32, 32),
        compressors=BITSHUFFLED,
    )  # fmt: skip
    values = np.random.default_rng(0).integers(-99, 99, array.shape).astype(np.int16)
    for key, data in made_here(array, values).items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(data)
    assert np.array_equal(zarr.open_array(tmp_path, mode="r")[...], values)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": (GzipCodec(),)},
        {"compressors": BITSHUFFLED[:1]},
        {"serializer": BytesCodec(endian="big")},
        {"dtype": "complex64"},
        {"zarr_format": 2, "compressors": None},
        {
            "chunks": (16, 16),
            "compressors": None,
            "serializer": ShardingCodec(
                chunk_shape=(8, 8), codecs=(BytesCodec(), *BITSHUFFLED), index_location="start"
            ),
        },
    ],
)
def test_other_codecs_are_left_to_zarr_python(options: dict[str, Any]) -> None:
    array = make_array((16, 16), **{"dtype": "int16", "chunks": (8, 8), **options})
    assert ShardEncoder.of(array) is None
