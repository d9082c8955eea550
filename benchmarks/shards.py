"""The shards of one tile made by `pipeline.shard` and by zarr-python, in processor time.

    python -m benchmarks.shards [--side 256] [--bands 128] [--runs 5]

Both make the same bytes, in memory, of values whose every pixel is repeated 4 x 4, three levels of
overviews, and a quality plane. Processor time, because it is what a worker has too little of.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from benchmarks.common import print_table
from pipeline.arrays import COMPRESSORS, chunk_side
from pipeline.shard import ShardEncoder

Pairs = list[tuple[zarr.Array[Any], np.ndarray]]


def tile_arrays(bands: int, side: int) -> Pairs:
    """An array of one shard, and what goes into it, for all that a tile writes."""
    band, y, x = np.mgrid[0:bands, 0 : side // 4, 0 : side // 4]
    noise = np.random.default_rng(0).normal(0, 30, band.shape)
    counts = (3000 + 1500 * np.sin(x / 12 + 0.03 * band) * np.cos(y / 12) + noise).astype(np.int16)
    fine = counts.repeat(4, axis=1).repeat(4, axis=2)
    levels = [fine[:, ::factor, ::factor] for factor in (1, 2, 4, 8)]
    return [(empty_array(part), part) for part in (*levels, np.zeros((side, side), np.uint16))]


def empty_array(like: np.ndarray) -> zarr.Array[Any]:
    shard = like.shape[-1]
    chunk = (*like.shape[:-2], chunk_side(shard), chunk_side(shard))
    array = zarr.create_array(
        MemoryStore(),
        shape=like.shape,
        dtype=like.dtype,
        chunks=chunk,
        shards=None if chunk == like.shape else like.shape,
        compressors=COMPRESSORS,
    )
    return array.with_config({"write_empty_chunks": True})


def encoded_here(arrays: Pairs) -> list[bytes]:
    encoders = [ShardEncoder.of(array) for array, _ in arrays]
    return [
        encoder.encode(values)
        for encoder, (_, values) in zip(encoders, arrays, strict=True)
        if encoder is not None
    ]


def by_zarr(arrays: Pairs) -> list[bytes]:
    for array, values in arrays:
        array[...] = values
    return [taken(array) for array, _ in arrays]


def taken(array: zarr.Array[Any]) -> bytes:
    """The one shard of an array, which is empty again."""
    objects: Any = array.store
    [key] = [key for key in objects._store_dict if key != "zarr.json"]
    data: bytes = objects._store_dict.pop(key).to_bytes()
    return data


def processor_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return 1e3 * (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--bands", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    arrays = tile_arrays(given.bands, given.side)
    if encoded_here(arrays) != by_zarr(arrays):
        raise SystemExit("the bytes differ")
    here, zarrs = [], []
    for _ in range(given.runs):
        here.append(processor_ms(lambda: encoded_here(arrays)))
        zarrs.append(processor_ms(lambda: by_zarr(arrays)))
    rows = [("pipeline.shard", here), ("zarr-python", zarrs)]
    print_table(
        f"shards of {given.bands} x {given.side} x {given.side} int16 and what goes with them, "
        f"median of {given.runs}",
        ["", "ms of processor time", "least"],
        [[name, statistics.median(spent), min(spent)] for name, spent in rows],
    )


if __name__ == "__main__":
    main()
